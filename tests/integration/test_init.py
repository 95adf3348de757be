"""`fusionx init`: what it writes is read by the loader, examined, planned and run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from fusionx.cli.main import main
from fusionx.contract.config import load_config
from fusionx.pipelines.config import FusionConfig


def called(*arguments: object, answers: str | None = None) -> Result:
    result = CliRunner().invoke(main, list(map(str, arguments)), input=answers)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def options(root: Path, corpus: Path | None = None) -> list[object]:
    models = ["--target", root / "target", "--source", root / "coder", "--source", root / "writer"]
    return [*models, "--corpus", corpus or root / "corpus"]


def test_a_first_config_runs_as_it_is(world: Any, tmp_path: Path) -> None:
    file, output = tmp_path / "first.yaml", tmp_path / "out"
    assert called("init", file, *options(world.root), "--output", output, "--yes").exit_code == 0
    lines = file.read_text().splitlines()
    assert len(lines) <= 25
    assert sum("#" in line for line in lines) >= 8, "it is commented"
    # Ray takes seconds to start, and is tested elsewhere.
    here = ["--set", "executor={kind: inline}", "--set", "eval.bootstrap=100"]
    for command in (["doctor"], ["plan", "--documents", "5"], ["run"], ["status"]):
        done = called(*command, file, *here)
        assert done.exit_code == 0, done.output
    assert list(output.glob("train/fusionx/*/seed-0/best/model.safetensors"))
    assert (output / "report" / "report.html").is_file()


def test_what_it_comments_out_can_be_taken_in(world: Any, tmp_path: Path) -> None:
    file = tmp_path / "first.yaml"
    called("init", file, *options(world.root), "--yes")
    first = file.read_text()
    for key, read in (("tune", lambda config: len(config.train.tune) == 3), ("executor", lambda _: True)):
        text = first.replace(f"# {key}: ", f"{key}: ")
        assert text != first
        file.write_text(text)
        assert read(load_config(FusionConfig, file))


def test_it_asks_for_what_is_not_given(world: Any, tmp_path: Path) -> None:
    answers = f"{world.root}/target\n{world.root}/coder {world.root}/writer\n{world.root}/corpus\n\n"
    asked, given = tmp_path / "asked.yaml", tmp_path / "given.yaml"
    result = called("init", asked, answers=answers)
    assert result.exit_code == 0, result.output
    assert "runs/asked" in result.output
    assert called("init", given, *options(world.root), "--output", "runs/asked", "--yes").exit_code == 0
    assert asked.read_text() == given.read_text()
    assert load_config(FusionConfig, asked).chunk.block_size == 128, "the shortest context"


def test_what_is_there_is_not_overwritten(world: Any, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("mine")
    arguments = ["init", file, *options(world.root), "--yes"]
    refused = called(*arguments)
    assert (refused.exit_code, "--force" in refused.stderr, file.read_text()) == (2, True, "mine")
    assert called(*arguments, "--force").exit_code == 0
    assert yaml.safe_load(file.read_text())["name"] == "run"


def test_what_is_not_there_yet_is_said(world: Any, tmp_path: Path) -> None:
    sources = ["--source", "./nowhere/model", "--source", "owner/on-the-hub"]
    done = called(
        "init", tmp_path / "run.yaml", "--target", world.root / "target", *sources, "--corpus", "/no", "--yes"
    )
    assert (done.exit_code, (tmp_path / "run.yaml").is_file()) == (0, True)
    assert re.findall("note: (.+) is not there yet", done.stderr) == ["./nowhere/model", "/no"]


def test_what_makes_no_config_writes_none(world: Any, tmp_path: Path) -> None:
    file, target = tmp_path / "run.yaml", world.root / "target"
    twice = called("init", file, "--target", target, "--source", target, "--corpus", world.root / "corpus", "--yes")
    assert (twice.exit_code, "listed twice" in twice.stderr) == (2, True)
    assert called("init", file, "--target", target, "--yes").exit_code == 2
    assert not file.exists()


@pytest.mark.parametrize(
    ("files", "held_out"),
    [
        (["train", "validation", "test"], {}),
        (["train", "test"], {"validation": 0.02}),
        (["a", "b"], {"validation": 0.02, "test": 0.02}),
    ],
)
def test_splits_that_a_corpus_lacks_are_held_out_of_it(
    world: Any, tmp_path: Path, files: list[str], held_out: dict[str, float]
) -> None:
    (tmp_path / "texts").mkdir()
    for name in files:
        (tmp_path / "texts" / f"{name}.jsonl").write_text('{"text": "a"}\n')
    assert called("init", tmp_path / "run.yaml", *options(world.root, tmp_path / "texts"), "--yes").exit_code == 0
    assert load_config(FusionConfig, tmp_path / "run.yaml").corpus.holdout == held_out


def test_models_and_data_sets_of_the_hub_need_not_be_here(tmp_path: Path) -> None:
    hub = ["--target", "a/My_Model", "--source", "b/my_model", "--corpus", "owner/texts"]
    assert called("init", tmp_path / "run.yaml", *hub, "--yes").exit_code == 0
    config = load_config(FusionConfig, tmp_path / "run.yaml")
    assert [model.id for model in config.models] == ["my_model", "my_model-2"]
    assert (config.corpus.dataset, config.corpus.splits, config.chunk.block_size) == ("owner/texts", ["train"], 2048)
