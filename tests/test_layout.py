"""The house rules: who may import whom, what stays light, and that every shipped YAML is what its reader takes."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("contract", "precompute", "align", "train", "eval", "pipelines", "benchmarks")
STAGES = ("precompute", "align", "train", "eval")


def modules(*packages: str) -> Iterator[Path]:
    for package in packages:
        yield from sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Dotted names of everything that a file imports, at any depth, under TYPE_CHECKING too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


def tops(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", list(modules("contract")), ids=str)
def test_contract_imports_no_project_code_no_torch_no_ray(path: Path) -> None:
    assert not tops(path) & ({*PACKAGES} - {"contract"} | {"torch", "ray", "datasets"})


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_only_the_contract(stage: str) -> None:
    allowed = {"contract", stage}
    for path in modules(stage):
        assert not (tops(path) & {*PACKAGES}) - allowed, path


def test_ray_is_imported_in_one_file_only() -> None:
    assert [path.name for path in modules(*PACKAGES) if "ray" in tops(path)] == ["ray_executor.py"]


@pytest.mark.parametrize("stage", ["train", "align", "eval"])
def test_stages_of_other_machines_import_neither_ray_nor_datasets(stage: str) -> None:
    for path in modules(stage):
        assert not tops(path) & {"ray", "datasets"}, path


def test_eval_is_never_imported_by_its_bare_name() -> None:
    for path in [*modules(*PACKAGES), *sorted((ROOT / "tests").rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                # It would hide the builtin of the same name.
                assert not [alias for alias in node.names if alias.name == "eval" and alias.asname is None], path
            elif isinstance(node, ast.ImportFrom):
                assert node.module != "eval", path


def test_there_is_no_utils_file() -> None:
    assert not [path for path in modules(*PACKAGES) if path.stem in ("utils", "util", "helpers", "misc", "common")]


@pytest.mark.parametrize("path", [p for p in modules(*PACKAGES) if p.read_text(encoding="utf-8").strip()], ids=str)
def test_every_module_says_what_it_is_responsible_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_every_package_has_a_docstring() -> None:
    folders = {path.parent for path in modules(*PACKAGES)}
    for folder in folders:
        init = folder / "__init__.py"
        assert init.is_file(), folder
        assert ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))), init


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def blocked(*names: str) -> str:
    return "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in names)


def test_trainer_aligner_and_inline_road_import_without_ray_and_datasets() -> None:
    wanted = "train.config train.loop align.aligned_stage align.tokens_stage pipelines.road pipelines.cli eval.evaluate"
    run_python(blocked("ray", "datasets") + "".join(f"import {name}\n" for name in wanted.split()))


def test_every_module_of_the_contract_and_of_align_imports_without_torch() -> None:
    light = [path for path in modules("contract", "align") if path.name != "__init__.py"]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in light]
    run_python(blocked("torch", "ray", "datasets") + "".join(f"import {name}\n" for name in names))


def test_help_imports_nothing_heavy() -> None:
    code = """
import sys
from click.testing import CliRunner
from pipelines.cli import main
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
def test_input_configs_are_what_the_demo_reads(path: Path) -> None:
    from fusionx.contract.config import load_config
    from fusionx.pipelines.demo.config import DemoInputs

    load_config(DemoInputs, path)


OTHER_YAMLS = [
    path
    for path in sorted([*ROOT.rglob("*.yaml"), *ROOT.rglob("*.yml")])
    if not {".venv", "runs", "data", "node_modules", ".git"} & set(path.relative_to(ROOT).parts)
    and path not in RUN_CONFIGS + INPUT_CONFIGS
]


@pytest.mark.parametrize("path", OTHER_YAMLS, ids=lambda path: path.name)
def test_every_other_yaml_parses(path: Path) -> None:
    list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
