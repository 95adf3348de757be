"""The whole pipeline through its command line: results, resumption, determinism, and bad input."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner
from forked import ForkedCommand

from fusionx.cli.main import main
from fusionx.contract.tokens.encoder import load_encoder

METHODS = ("ct", "fusellm", "paper", "fusionx-network", "fusionx")
DATA_STAGES = ("chunk", "precompute", "align")


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run's data stages, with its times."""
    for name in ("chunks", "logits", "aligned"):
        shutil.copytree(finished / name, tmp_path / "out" / name)
    return tmp_path / "out"


def test_a_run_makes_every_output(world: Any, finished: Path) -> None:
    parts = sorted((finished / "chunks").glob("part-*.parquet"))
    assert len(parts) >= 5
    folders = ["chunks", *(f"logits/{name}" for name in ("target", "coder", "writer")), "aligned/target/tokens"]
    folders += [f"aligned/target/{kind}/{name}" for kind in ("walk", "mined") for name in ("target", "coder")]
    for folder in folders:
        manifest = json.loads((finished / folder / "manifest.json").read_text())
        assert manifest["parts"], folder
        assert manifest["totals"]["rows"] > 0, folder
    (card,) = finished.glob("train/fusionx/*/*/best/README.md")
    assert card.read_text().count("## Evaluation") == 1
    for name in ("report/results.json", "report/report.md", "report/report.html", "model/model.safetensors"):
        assert (finished / name).stat().st_size > 500
    results = json.loads((finished / "report" / "results.json").read_text())
    assert {*METHODS, "target"} <= set(results["methods"])
    assert "tables" in json.dumps(results)
    config = json.loads((finished / "config.json").read_text())
    assert len(config["digest"]) == 16


def test_ensembles_and_models_are_scored_on_the_same_text(finished: Path) -> None:
    """The target's shards cover the very tokens and bytes that the target itself is scored on; so do all others."""
    told = json.loads((finished / "report" / "results.json").read_text())["ensembles"]
    assert (told["split"], told["report_split"]) == ("validation", "test")
    assert list(told["candidates"]) == ["target", "coder", "writer"]
    assert list(told["models"]) == ["target", "sibling", *METHODS]
    assert told["models"]["sibling"] == told["models"]["target"]
    assert set(told["teachers"]) == {name for name in METHODS if name not in ("ct", "paper")}
    (scores,) = (finished / "eval" / "ensembles").glob("validation-*.json")
    candidates = json.loads(scores.read_text())["candidates"]
    models = [*(finished / "eval" / "validation").rglob("*.json")]
    assert len(models) == 2 + len(METHODS)
    for path in models:
        for domain, figures in json.loads(path.read_text())["domains"].items():
            for candidate in candidates.values():
                shown = candidate["domains"][domain]
                assert [shown[key] for key in ("tokens", "bytes", "n_chunks", "n_docs")] == [
                    figures[key] for key in ("tokens", "bytes", "n_chunks", "n_docs")
                ]
    oracle, *others = (told["ensembles"][name]["groups"]["all"] for name in ("oracle", "uniform", "top1_ppl"))
    assert all(oracle["bits_per_byte"] < other["bits_per_byte"] for other in others)


def test_every_exported_model_is_an_ordinary_model(finished: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for method in METHODS:
        for step in ("best", "last"):
            (folder,) = (finished / "train" / method).glob(f"lr-*/seed-0/{step}")
            model = AutoModelForCausalLM.from_pretrained(folder)
            tokenizer = AutoTokenizer.from_pretrained(folder)
            logits = model(**tokenizer("def f", return_tensors="pt")).logits
            assert logits.isfinite().all()
            assert (folder / "asn.safetensors").exists() == (method in ("paper", "fusionx-network"))


def test_a_second_run_makes_nothing(world: Any, finished: Path) -> None:
    def state() -> dict[str, int]:
        files = [path for path in finished.rglob("*") if path.is_file()]
        return {str(p.relative_to(finished)): p.stat().st_mtime_ns for p in files}

    before, timings = state(), (finished / "timings.json").read_bytes()
    results = json.loads((finished / "report" / "results.json").read_text())
    done = world.here(finished, "run")
    assert " 0 parts made" in done.stderr
    for said in ("| Fusion-X ", f"The model: {finished}/model", f"The report: {finished}/report/report.html"):
        assert said in done.stdout
    after = state()
    assert set(after) == set(before)
    changed = {name for name in before if before[name] != after[name]}
    assert {name for name in changed if not name.startswith("report/")} <= {"config.json", "eval/.lock"}
    assert (finished / "timings.json").read_bytes() == timings
    assert json.loads((finished / "report" / "results.json").read_text()) == results


def test_status_says_what_is_done_and_what_is_not(world: Any, finished: Path, copied: Path) -> None:
    complete = world.here(finished, "status")
    assert complete.returncode == 0, complete.stdout
    assert "incomplete" not in complete.stdout
    assert lines_about(complete.stdout, "align/mined/coder", "validation: own ")
    (copied / "logits" / "coder" / "part-00000.parquet").unlink()
    (copied / "logits" / "writer" / "part-00000.parquet").write_bytes(b"PAR1")
    lines = {
        line.split()[0]: line for line in world.here(copied, "status", "precompute.k=4").stdout.splitlines() if line
    }
    assert "1 missing" in lines["precompute/coder"]
    assert "config.k: found 8, expected 4" in lines["precompute/coder"]
    assert "1 damaged" in lines["precompute/writer"]
    assert "complete" in lines["chunk"]
    assert world.here(copied, "status", "precompute.k=4").returncode == 1
    assert not (copied / "config.json").exists(), "looking changes nothing"


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_damage_to_what_is_finished_is_found_before_it_is_used(world: Any, finished: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(finished, tmp_path / "out"))
    (training,) = (output / "train" / "ct").glob("*/seed-0")
    for name, command in (("best/model.safetensors", "eval"), ("log.jsonl", "train"), ("result.json", "train")):
        flip(training / name)
        refused = world.here(output, command)
        assert refused.returncode == 1, refused.stderr
        assert str(training / name) in refused.stderr
        flip(training / name)
    flip(training / "log.jsonl")
    assert "1 damaged" in lines_about(world.here(output, "status").stdout, "train  ")[0]
    flip(training / "log.jsonl")
    evaluation = output / "eval" / "ct" / "seed-0" / "best.json"
    before = json.loads(evaluation.read_text())
    flip(evaluation)
    world.run(output, "eval")
    changed = {"seconds": 0, "checksum": "", "model": str(training / "best")}
    assert json.loads(evaluation.read_text()) | changed == before | changed


def lines_about(text: str, *words: str) -> list[str]:
    return [line for line in text.splitlines() if all(word in line for word in words)]


@pytest.mark.parametrize(
    ("change", "stale", "kept"),
    [
        ("chunk.block_size=64", ["chunk", "precompute/coder", "align/tokens", "align/walk/coder", "train", "eval"], []),
        ("precompute.k=4", ["precompute/target", "align/mined/coder", "train", "eval"], ["chunk", "align/tokens"]),
        (
            "sources.coder.dtype=bfloat16",
            ["precompute/coder", "align/walk/coder", "train", "eval"],
            ["chunk", "precompute/target", "align/tokens", "align/walk/target", "align/walk/writer"],
        ),
    ],
)
def test_what_is_made_from_something_stale_is_stale(
    world: Any, finished: Path, change: str, stale: list[str], kept: list[str]
) -> None:
    lines = {line.split()[0]: line for line in world.here(finished, "status", change).stdout.splitlines() if line}
    for name in stale:
        assert " stale" in lines[name], lines[name]
        assert " incomplete " in lines[name]
    for name in kept:
        assert " complete " in lines[name], lines[name]
    assert "which is stale" not in lines[stale[0]]
    assert all(re.search(r"made from \S+, which is stale", lines[name]) for name in stale[1:])
    if "coder.dtype" in change:
        assert " 1 done" in lines["train"], "ct reads no source"


def test_a_map_is_explained_for_a_text_and_as_a_whole(world: Any, tmp_path: Path) -> None:
    command = world.command(tmp_path, "explain --source coder --map mined")
    said = CliRunner().invoke(main, [*command, "x+1"]).stdout
    assert lines_about(said, "target positions take a source position")
    assert lines_about(world.here(tmp_path, "explain --source coder --map exact").stdout, "map exact", "source ids")
    tokens = json.loads(CliRunner().invoke(main, [*command, "x+1", "--json"]).stdout)["tokens"]
    assert all(token["why"] in said and token["source"] in said for token in tokens)
    counted = json.loads(CliRunner().invoke(main, [*command, "--json"]).stdout)
    assert sum(counted["kinds"].values()) == counted["tokens"] > 0
    assert not (tmp_path / "config.json").exists()
    assert world.here(tmp_path, "explain --source coder --map nearest").returncode == 2


def test_a_walk_is_explained_for_a_text_without_any_shards(world: Any, tmp_path: Path) -> None:
    command = world.command(tmp_path, "explain --source coder")
    plain, coloured = (CliRunner().invoke(main, [*command, "def f_1(x):"], color=color) for color in (False, True))
    head, *blocks = plain.stdout.rstrip().split("\n\n")
    positions = len(load_encoder(str(world.root / "target")).encode(["def f_1(x):"])[0].ids) - 1
    assert " ".join(blocks[0].split()).startswith("# text so far next token coder target alignment")
    assert len(blocks) == positions
    assert len(lines_about(plain.stdout, "the text itself: ")) == positions - 1, "coder has no token before the first"
    assert "how probable coder makes it" in head
    assert coloured.stdout != plain.stdout == click.unstyle(coloured.stdout)
    told = json.loads(CliRunner().invoke(main, [*command, "def f_1(x):", "--json"]).stdout)
    assert (told["source"], told["target"], len(told["positions"])) == ("coder", "target", positions)
    assert told["positions"][0]["status"] == "not_aligned"
    assert told["positions"][0]["probability"] is None
    assert all(f"{one['probability']:.1%}" in plain.stdout for one in told["positions"][1:])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--source", "coder"], "TEXT is missing"),
        (["--source", "nobody", "a text"], "target, coder, writer"),
        (["--source", "coder", ""], "2 to 96, as in a chunk"),
        (["--source", "coder", "x+1 " * 200], "2 to 96, as in a chunk"),
        (["--source", "coder", "\udcff"], "no valid UTF-8"),
        (["--source", "coder", "--map", "exact", "\udcff"], "no valid UTF-8"),
    ],
)
def test_what_cannot_be_explained_is_refused(world: Any, tmp_path: Path, arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(main, [*world.command(tmp_path, "explain"), *arguments])
    assert (result.exit_code, said in result.stderr) == (2, True), result.stderr


def without(world: Any, tmp_path: Path, *names: str) -> Any:
    """The same world whose config leaves some sources out."""
    config = yaml.safe_load(world.config.read_text())
    config["sources"] = [source for source in config["sources"] if source["id"] not in names]
    (tmp_path / "fewer").mkdir()
    (tmp_path / "fewer" / "run.yaml").write_text(yaml.safe_dump(config))
    return type(world)(tmp_path / "fewer")


def test_adding_a_source_leaves_the_others_untouched(world: Any, tmp_path: Path, part_hashes: Any) -> None:
    output = tmp_path / "out"
    fewer = without(world, tmp_path, "writer")
    for stage in DATA_STAGES:
        fewer.run(output, stage)
    before = part_hashes(output)
    times = {name: (output / name).stat().st_mtime_ns for name in before}
    for stage in DATA_STAGES:
        world.run(output, stage)
    after = part_hashes(output)
    assert {name: after[name] for name in before} == before
    assert {name: (output / name).stat().st_mtime_ns for name in before} == times
    assert {name.split("/")[-2] for name in set(after) - set(before)} == {"writer"}


def test_a_source_whose_chunks_do_not_fit_is_said_at_once_and_only_those_are_cut_again(
    world: Any, tmp_path: Path, part_hashes: Any
) -> None:
    output = tmp_path / "out"
    fewer = without(world, tmp_path, "coder")
    fewer.run(output, "chunk")
    fewer.run(output, "precompute")
    before, times = part_hashes(output), {path: path.stat().st_mtime_ns for path in output.rglob("part-*")}
    for command in ("chunk", "run", "precompute --source coder"):
        done = world.here(output, command)
        assert done.returncode == 1, command
        for word in ("coder", "tokens", "at most 96", "--overwrite"):
            assert word in done.stderr, command
    assert before.items() <= part_hashes(output).items()
    assert "complete" in world.here(output, "status").stdout.splitlines()[0], "looking counts no tokens"
    world.run(output, "chunk --overwrite")
    world.run(output, "precompute --overwrite")
    chunks = sorted((output / "chunks").glob("part-*"))
    kept = [path.name for path in chunks if path.stat().st_mtime_ns == times[path]]
    assert 0 < len(kept) < len(chunks), "some fitted, some did not"
    for name in ("target", "writer"):
        parts = sorted((output / "logits" / name).glob("part-*"))
        assert [p.name in kept for p in parts] == [p.stat().st_mtime_ns == times[p] for p in parts]
    assert " 0 parts made" in world.run(output, "chunk")


@pytest.mark.parametrize(
    ("command", "sets", "code", "said"),
    [
        ("chunk", ["precompute.kk=3"], 2, ["run.yaml", "precompute.kk", "did you mean 'k'"]),
        ("chunk", ["target.path=/no/such/model"], 2, ["'target'", "/no/such/model"]),
        ("chunk", ["sources.coder.id=writer"], 2, ["listed twice", "writer"]),
        ("precompute", ["precompute.k=301"], 2, ["precompute.k", "301", "'coder'", "at most 300"]),
        ("chunk", ["corpus.path=/no/such/corpus"], 2, ["corpus.path", "/no/such/corpus"]),
        ("chunk", ["chunk.block_size=129"], 2, ["chunk.block_size", "at most 128"]),
        ("precompute --source nobody", [], 2, ["--source", "nobody", "target, coder, writer"]),
        ("chunk", ["corpus.domain=meta"], 2, ["meta", "train.parquet"]),
        ("chunk", ["chunk.block_size=64"], 1, ["config.block_size: found 96, expected 64", "--overwrite"]),
        ("precompute", ["precompute.k=4"], 1, ["config.k: found 8, expected 4", "part-00000.parquet"]),
        ("eval", ["eval.tasks=[/no/such/task]"], 2, ["tasks", "/no/such/task"]),
        ("nonsense", [], 2, ["No such command"]),
    ],
)
def test_bad_input_is_named_and_loses_nothing(
    world: Any, copied: Path, part_hashes: Any, command: str, sets: list[str], code: int, said: list[str]
) -> None:
    before = part_hashes(copied)
    done = world.here(copied, command, *sets)
    assert done.returncode == code, done.stderr
    for word in said:
        assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert part_hashes(copied) == before


def test_an_empty_corpus_is_named(world: Any, tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "train.jsonl").write_text("")
    done = world.here(tmp_path / "out", "chunk", f"corpus.path={tmp_path / 'corpus'}")
    assert (done.returncode, "corpus is empty" in done.stderr) == (1, True), done.stderr


def test_a_tokenizer_that_changed_since_precompute_is_refused(
    world: Any, copied: Path, tmp_path: Path, part_hashes: Any
) -> None:
    before = part_hashes(copied)
    changed = tmp_path / "coder"
    shutil.copytree(world.root / "coder", changed)
    tokenizer = json.loads((changed / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-1]
    (changed / "tokenizer.json").write_text(json.dumps(tokenizer))
    done = world.here(copied, "align", f"sources.coder.path={changed}")
    assert done.returncode == 1, done.stderr
    for word in ("tokenizer changed", "'coder'", str(changed), "--overwrite"):
        assert word in done.stderr
    assert part_hashes(copied) == before


def test_a_part_cut_short_is_made_again_and_the_next_stage_refuses_it_until_then(
    world: Any, copied: Path, part_hashes: Any
) -> None:
    before = part_hashes(copied)
    part = copied / "logits" / "coder" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-100])
    shutil.rmtree(copied / "aligned" / "target" / "mined" / "coder")
    done = world.here(copied, "align")
    assert done.returncode == 1, done.stderr
    for word in (str(part), "cut short", "align/mined/coder"):
        assert word in done.stderr
    log = world.run(copied, "precompute")
    assert "[precompute/coder] complete: 1 parts made" in log
    world.run(copied, "align")
    assert part_hashes(copied) == before


def test_killed_after_the_first_part_and_run_again_it_is_the_same(
    world: Any, finished: Path, tmp_path: Path, part_hashes: Any
) -> None:
    output = tmp_path / "out"
    shutil.copytree(finished / "chunks", output / "chunks")
    command = world.command(output, "precompute")
    process = ForkedCommand(*command, folder=tmp_path)
    try:
        deadline = time.monotonic() + 60
        while not list(output.glob("logits/*/part-*.parquet")) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    made = part_hashes(output / "logits", "part-*.parquet")
    expected = part_hashes(finished / "logits")
    assert 0 < len(made) < len(expected)
    assert made.items() <= expected.items()
    world.run(output, "precompute")
    assert part_hashes(output / "logits") == expected
    assert not list(output.rglob("*.tmp"))
