"""The architecture as docs/architecture.md has it: one name, rooms, what stays light; and that every YAML is read.

Who may import whom is held by `make lint` (the import contracts in pyproject.toml).
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("contract", "precompute", "align", "train", "eval", "pipelines", "benchmarks", "cli")
DOC = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
MOST_LINES = 400
MOST_MODULES = 10


def modules(*packages: str) -> Iterator[Path]:
    for package in packages:
        yield from sorted((ROOT / package).rglob("*.py"))


def rooms() -> list[Path]:
    return sorted({path.parent for path in modules(*PACKAGES)})


def docstring(path: Path) -> str | None:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_there_is_a_link_for_every_package_and_nothing_else() -> None:
    links = {path.name: path.readlink() for path in (ROOT / "fusionx").iterdir() if path.is_symlink()}
    shipped = ("configs", "constraints.txt")
    assert links == {name: Path("..", name) for name in (*PACKAGES, *shipped)}
    files = {path.name for path in (ROOT / "fusionx").iterdir() if not path.is_symlink()} - {"__pycache__"}
    assert files == {"__init__.py", "__main__.py", "py.typed"}


def test_modules_are_loaded_from_the_folders_that_a_person_opens() -> None:
    """A breakpoint set there is met; through a link it would not be."""
    assert run_python("import fusionx.train.config as config; print(config.__file__)").strip() == str(
        ROOT / "train" / "config.py"
    )


def test_the_project_is_imported_by_its_one_name() -> None:
    for path in [*modules(*PACKAGES), *sorted((ROOT / "tests").rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found = [alias.name.split(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                found = [(node.module or "").split(".")[0]]
            else:
                continue
            assert not {*found} & {*PACKAGES}, path


def test_there_is_no_utils_file() -> None:
    assert not [path for path in modules(*PACKAGES) if path.stem in ("utils", "util", "helpers", "misc", "common")]


@pytest.mark.parametrize("path", list(modules(*PACKAGES)), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_is_short_and_says_what_it_is_responsible_for(path: Path) -> None:
    assert docstring(path), path
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_test_modules_are_short_too() -> None:
    tests = sorted((ROOT / "tests").rglob("*.py"))
    assert not [path for path in tests if len(path.read_text(encoding="utf-8").splitlines()) > MOST_LINES]


@pytest.mark.parametrize("room", rooms(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_room_is_small_and_says_what_is_in_it(room: Path) -> None:
    said = docstring(room / "__init__.py")
    assert said is not None
    assert len(said.splitlines()) <= 4, "two lines, and an empty one between"
    held = [path for path in room.glob("*.py") if path.name not in ("__init__.py", "__main__.py")]
    assert len(held) <= MOST_MODULES


def test_tests_have_the_rooms_of_the_code() -> None:
    unit = ROOT / "tests" / "unit"
    folders = {path.parent.relative_to(unit).as_posix() for path in unit.rglob("test_*.py")}
    assert folders <= {room.relative_to(ROOT).as_posix() for room in rooms()}


def test_what_the_architecture_page_names_is_there() -> None:
    quoted = set(re.findall(r"`([^`]+)`", DOC))
    files = {name for name in quoted if name.endswith((".py", ".toml"))}
    assert len(files) > 40
    assert not [name for name in files if not (ROOT / name).is_file() and name != "__init__.py"]
    named = {name for name in quoted if re.fullmatch(rf"({'|'.join(PACKAGES)})(\.\w+)+", name)} - {"eval.tasks"}
    assert len(named) > 40
    assert not [name for name in named if not (ROOT / name.replace(".", "/")).with_suffix(".py").is_file()]


def drawing(name: str) -> ModuleType:
    """docs/draw_<name>.py, whose picture is docs/<name>.svg."""
    spec = spec_from_file_location(f"draw_{name}", ROOT / "docs" / f"draw_{name}.py")
    assert spec is not None
    assert spec.loader is not None
    draw = module_from_spec(spec)
    spec.loader.exec_module(draw)
    drawn = (ROOT / "docs" / f"{name}.svg").read_text(encoding="utf-8")
    assert drawn == draw.picture(), "run `make docs`"
    return draw


def test_the_picture_is_that_of_the_tree() -> None:
    draw = drawing("architecture")
    assert [name for floor in draw.FLOORS for name in floor] == [
        "cli",
        "benchmarks",
        "pipelines",
        *PACKAGES[1:5],
        "contract",
    ]


def test_the_picture_of_the_walk_is_that_of_the_code() -> None:
    drawing("walk")


def build(source: Path, kind: str, output: Path) -> Path:
    """What setuptools makes of `source`, as pip and `python -m build` have it made."""
    code = f"import setuptools.build_meta as backend; print(backend.build_{kind}({str(output)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return output / done.stdout.strip().splitlines()[-1]


def test_the_wheel_adds_one_name_by_way_of_a_source_archive_too(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    for name in ("fusionx", *PACKAGES):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, checkout / name, symlinks=True, ignore=ignored)
    shutil.copytree(ROOT / "configs", checkout / "configs")
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, checkout / name)
    archive = build(checkout, "sdist", tmp_path)
    with tarfile.open(archive) as tar:
        assert not [member.name for member in tar if member.issym()], "links are resolved"
        tar.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    contents = []
    for source in (checkout, unpacked):
        (tmp_path / source.name).mkdir(exist_ok=True)
        with zipfile.ZipFile(build(source, "wheel", tmp_path / source.name)) as wheel:
            contents.append(sorted(name for name in wheel.namelist() if ".dist-info/" not in name))
            beside = {name.split("/", 1)[1] for name in wheel.namelist() if ".dist-info/" in name}
            assert {"licenses/LICENSE", "licenses/NOTICE"} <= beside
            wheel.extractall(tmp_path / "installed")
    assert contents[0] == contents[1]
    assert {name.split("/")[0] for name in contents[0]} == {"fusionx"}
    shipped = [*(ROOT / "configs").rglob("*.*"), *(ROOT / "pipelines" / "cluster").iterdir(), ROOT / "constraints.txt"]
    expected = [f"fusionx/{path.relative_to(ROOT).as_posix()}" for path in (*modules(*PACKAGES), *shipped)]
    assert {
        *expected,
        "fusionx/__main__.py",
        "fusionx/py.typed",
        "fusionx/eval/report/templates/report.html.j2",
    } <= set(contents[0])
    code = "import fusionx; print(fusionx.__file__); from fusionx.cli.main import main; main(['--help'])"
    told = run_python(f"import sys; sys.path.insert(0, {str(tmp_path / 'installed')!r}); {code}")
    assert told.splitlines()[0] == str(tmp_path / "installed" / "fusionx" / "__init__.py"), (
        "as the Containerfile calls it"
    )


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def blocked(*names: str) -> str:
    return "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in names)


def imports(*names: str) -> str:
    return "".join(f"import fusionx.{name}\n" for name in names)


def test_trainer_aligner_and_inline_pipeline_import_without_ray_and_datasets() -> None:
    stages = ("train.__main__", "train.loop.trainer", "align.aligned_stage", "align.tokens_stage", "eval.evaluate")
    run_python(blocked("ray", "datasets") + imports(*stages, "pipelines.pipeline", "cli.main"))


def test_every_module_of_the_contract_and_of_align_imports_without_torch() -> None:
    light = [path for path in modules("contract", "align") if path.name != "__init__.py"]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in light]
    run_python(blocked("torch", "ray", "datasets") + imports(*names))


def test_help_imports_nothing_heavy() -> None:
    code = """
import sys
from click.testing import CliRunner
from fusionx.cli.main import main
for arguments in (["--help"], ["run", "--help"]):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
heavy = ("torch", "transformers", "tokenizers", "ray", "datasets", "pyarrow", "numpy", "numba")
print([name for name in heavy if name in sys.modules])
"""
    heavy = ast.literal_eval(run_python(code).strip().splitlines()[-1])
    assert not {"torch", "transformers", "ray", "datasets", "numba"} & set(heavy)


RUN_CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
INPUT_CONFIGS = sorted((ROOT / "configs" / "inputs").glob("*.yaml"))


def test_there_are_configs() -> None:
    assert ROOT / "configs" / "demo.yaml" in RUN_CONFIGS
    assert ROOT / "configs" / "inputs" / "demo.yaml" in INPUT_CONFIGS


@pytest.mark.parametrize("path", RUN_CONFIGS, ids=lambda path: path.name)
def test_run_configs_are_what_the_run_reads(path: Path) -> None:
    from fusionx.contract.config import load_config
    from fusionx.pipelines.config import FusionConfig

    config = load_config(FusionConfig, path)
    assert config.name == path.stem, "a report names its config by the run's name"


@pytest.mark.parametrize("path", INPUT_CONFIGS, ids=lambda path: path.name)
def test_input_configs_are_what_the_demos_read(path: Path) -> None:
    from fusionx.contract.config import load_config
    from fusionx.pipelines.demo.config import DemoInputs
    from fusionx.pipelines.real.config import RealInputs

    load_config(RealInputs if path.stem == "real" else DemoInputs, path)


OTHER_YAMLS = [
    path
    for path in sorted([*ROOT.rglob("*.yaml"), *ROOT.rglob("*.yml")])
    if not {".venv", "runs", "data", "node_modules", ".git"} & set(path.relative_to(ROOT).parts)
    and path not in RUN_CONFIGS + INPUT_CONFIGS
]


@pytest.mark.parametrize("path", OTHER_YAMLS, ids=lambda path: path.name)
def test_every_other_yaml_parses(path: Path) -> None:
    list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
