"""`inspect shard` against the parts themselves, read row by row, and the selection network asked in plain loops."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusionx.contract.shards.rows import read_shards

CANDIDATES = ("target", "coder", "writer")


def shown(world: Any, output: Path, *options: str) -> dict[str, Any]:
    done = world.here(output, "inspect shard --json " + " ".join(options))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def refused(world: Any, output: Path, options: str, code: int) -> str:
    done = world.here(output, f"inspect shard {options}")
    assert done.returncode == code, done.stderr
    return done.stderr


def row_of(folder: Path, doc_id: int, chunk: int) -> dict[str, Any]:
    (row,) = [row for row in read_shards(str(folder)) if (row["doc_id"], row["chunk"]) == (doc_id, chunk)]
    return row


@pytest.fixture(scope="module")
def found(world: Any, finished: Path) -> dict[str, Any]:
    return shown(world, finished, "--part 0 --row 1 --positions : --top 100 --method fusionx-network")


def test_what_is_shown_is_what_the_parts_hold(found: dict[str, Any], finished: Path) -> None:
    key = found["doc_id"], found["chunk"]
    tokens = row_of(finished / "aligned" / "target" / "tokens", *key)
    assert found["text"] == row_of(finished / "chunks", *key)["text"]
    assert found["domain"] == tokens["domain"]
    assert (found["alignment"], found["part"], found["row"]) == ("walk", "part-00000.parquet", 1)
    assert [place["index"] for place in found["positions"]] == list(range(len(tokens["input_ids"]) - 1))
    assert "".join(place["text"] for place in found["positions"][0:]) == found["text"], "BOS stands before it"
    for name in CANDIDATES:
        own = row_of(finished / "logits" / name, *key)
        aligned = row_of(finished / "aligned" / "target" / "walk" / name, *key)
        for place in found["positions"]:
            index = place["index"]
            (one,) = [opinion for opinion in place["opinions"] if opinion["candidate"] == name]
            assert place["label_id"] == tokens["input_ids"][index + 1]
            check_own(one, own, tokens["ends"][index])
            check_aligned(one, aligned, index, place["label_id"])


def check_own(one: dict[str, Any], own: dict[str, Any], end: int) -> None:
    before = [step for step, own_end in enumerate(own["ends"]) if own_end <= end]
    if not before:
        assert one["said"] is one["read"] is one["own_next"] is None
        return
    step = before[-1]
    assert one["agrees"] == (own["ends"][step] == end)
    check_said(one["said"], own, step)
    if step + 1 < len(own["input_ids"]):
        assert one["own_next"]["id"] == own["input_ids"][step + 1]
        assert one["own_next"]["probability"] == pytest.approx(math.exp(-own["token_nll"][step]), rel=1e-5)


def check_aligned(one: dict[str, Any], aligned: dict[str, Any], index: int, label: int) -> None:
    if not aligned["status"][index]:
        assert one["status"] == "not_aligned"
        assert one["aligned"] is one["label"] is None
        return
    check_said(one["aligned"], aligned, index)
    probs = {entry["id"]: entry["probability"] for entry in one["aligned"]["entries"]}
    assert one["label"] == probs[label], "the walk stores the text's own token always"


def check_said(said: dict[str, Any], row: dict[str, Any], index: int) -> None:
    ids, logprobs = row["ids"][index], row["logprobs"][index]
    stored = [(int(token), math.exp(logprob)) for token, logprob in zip(ids, logprobs, strict=True) if token >= 0]
    assert [entry["id"] for entry in said["entries"]] == [token for token, _ in stored]
    scale = (1 - row["tail"][index]) / sum(prob for _, prob in stored) if stored else 0
    assert [entry["probability"] for entry in said["entries"]] == pytest.approx(
        [scale * prob for _, prob in stored], rel=1e-3
    )
    assert said["more"] == 0
    assert said["tail"] == pytest.approx(row["tail"][index])
    assert sum(entry["probability"] for entry in said["entries"]) + said["tail"] == pytest.approx(1, abs=2e-3)


def test_the_weights_are_those_of_the_trained_network(found: dict[str, Any], finished: Path) -> None:
    import torch

    from fusionx.train.state.export import load_asn

    assert (found["method"], found["seed"], found["note"]) == ("fusionx-network", 0, "")
    (training,) = (finished / "train" / "fusionx-network").glob("lr-*/seed-0")
    asn, candidates = load_asn(training / "best")
    assert sorted(candidates) == sorted(CANDIDATES)
    key = found["doc_id"], found["chunk"]
    rows = {name: row_of(finished / "aligned" / "target" / found["alignment"] / name, *key) for name in candidates}
    per_byte = [rows[name]["nll"] / rows[name]["nll_bytes"] for name in candidates]
    assert asn.config.features == ["logprobs", "entropy", "tail", "aligned", "nll_per_byte"]
    for place in found["positions"]:
        features, available = [], []
        for name, of_chunk in zip(candidates, per_byte, strict=True):
            said = next(one for one in place["opinions"] if one["candidate"] == name)
            entries = [entry["probability"] for entry in (said["aligned"] or {"entries": []})["entries"]]
            available.append(bool(entries))
            logs = [max(math.log(prob), -12.0) for prob in entries] + [-12.0] * 8
            tail = max(1 - sum(entries), 0)
            entropy = -sum(prob * math.log(prob) for prob in [*entries, tail] if prob > 0)
            here = float(bool(entries))
            top = [0.25 * log * here for log in logs[:8]]
            features.append([*top, entropy * here, tail * here, here, 4 * (of_chunk - np.mean(per_byte))])
        with torch.no_grad():
            logits = asn.eval()(torch.tensor(features, dtype=torch.float32)[None])[0].tolist()
        raised = [math.exp(logit) if there else 0.0 for logit, there in zip(logits, available, strict=True)]
        p = [value / sum(raised) for value in raised] if sum(raised) else raised
        kept = [value if value > asn.config.tau else 0.0 for value in p]
        if not any(kept):
            kept = [value if value == max(p) else 0.0 for value in p]
        expected = [value / sum(kept) if sum(kept) else 0.0 for value in kept]
        weights = {one["candidate"]: one["weight"] for one in place["opinions"]}
        assert [weights[name] for name in candidates] == pytest.approx(expected, abs=2e-3)


def test_the_weights_of_a_rule_are_those_of_the_rule(world: Any, finished: Path) -> None:
    """Fixed share, step by step: trust grows with the probability that a candidate gave each token before."""
    found = shown(world, finished, "--part 0 --row 1 --positions : --top 100 --method fusionx")
    assert (found["method"], found["seed"], found["note"]) == ("fusionx", 0, "")
    trust = dict.fromkeys(CANDIDATES, 1 / len(CANDIDATES))
    for place in found["positions"]:
        of = {one["candidate"]: one for one in place["opinions"]}
        there = {name: share for name, share in trust.items() if (of[name]["aligned"] or {"entries": []})["entries"]}
        expected = {name: there.get(name, 0) / sum(there.values()) if there else 0 for name in CANDIDATES}
        assert {name: one["weight"] for name, one in of.items()} == pytest.approx(expected, abs=2e-3), place["index"]
        labels = {name: one["label"] for name, one in of.items()}
        known = [label for label in labels.values() if label is not None]
        for name, label in labels.items():
            said = sum(known) / max(len(known), 1) if label is None else label
            trust[name] *= max(said, 1e-6) ** 0.25
        whole = sum(trust.values())
        trust = {name: 0.98 * share / whole + 0.02 / len(trust) for name, share in trust.items()}


def test_a_chunk_is_found_by_its_numbers_and_one_source_is_enough(
    found: dict[str, Any], world: Any, finished: Path
) -> None:
    chosen = (
        f"--chunk {found['doc_id']}:{found['chunk']} --source coder --positions 2:4 --top 100 --method fusionx-network"
    )
    again = shown(world, finished, chosen)
    assert (again["part"], again["row"], again["method"]) == (found["part"], 1, "fusionx-network")
    assert [place["index"] for place in again["positions"]] == [2, 3]
    for place in again["positions"]:
        (one,) = place["opinions"]
        of_all = found["positions"][place["index"]]["opinions"][1]
        assert {**one, "weight": None} == {**of_all, "weight": None}
    mined = shown(world, finished, "--alignment mined --positions 2:3")
    assert (mined["alignment"], mined["method"]) == ("mined", "fusellm")
    bare = shown(world, finished, "--positions 2:3 --set train.methods=[ct]")
    assert (bare["alignment"], bare["method"]) == ("walk", None)
    assert bare["note"] == "no method of the run has a teacher"


def test_a_terminal_has_colours_and_a_pipe_has_none(world: Any, finished: Path) -> None:
    from click.testing import CliRunner

    from fusionx.cli.main import main

    command = world.command(finished, "inspect shard")
    plain, coloured = (CliRunner().invoke(main, command, color=color).output for color in (False, True))
    assert "\x1b[" not in plain
    assert "\x1b[32m" in coloured
    assert "Positions 0 to 15 of 0 to" in plain


def test_the_page_is_written_whole(world: Any, finished: Path, tmp_path: Path) -> None:
    page = tmp_path / "made" / "chunk.html"
    done = world.here(finished, f"inspect shard --html {page}")
    assert done.stdout == f"{page}\n"
    assert page.read_text(encoding="utf-8").count('<section class="place"') == 16


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ("--part 9999", 2, "The run has no such part."),
        ("--part 0 --row 9999", 2, "The part has no such row."),
        ("--chunk 9999:0", 2, "There is no such chunk."),
        ("--chunk 1", 2, "not of the form DOC:CHUNK"),
        ("--positions 5", 2, "not of the form A:B"),
        ("--chunk 0:0 --part 0", 2, "--chunk names the chunk"),
        ("--json --html page.html", 2, "not both"),
        ("--source nobody", 2, "There is no such source."),
        ("--method ct", 2, "no such method with a teacher"),
        ("--method fusionx --alignment mined", 2, "that reads the alignment 'mined'"),
        ("--alignment exact", 2, "The run makes no such alignment."),
    ],
)
def test_what_is_not_there_is_said(options: str, code: int, said: str, world: Any, finished: Path) -> None:
    assert said in refused(world, finished, options, code)


def test_missing_and_damaged_files_are_named(world: Any, finished: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    for name in ("chunks", "logits", "aligned"):
        shutil.copytree(finished / name, output / name)
    assert "no weights of a teacher" in shown(world, output, "--positions 0:1")["note"]
    assert "A training has no result." in refused(world, output, "--method fusionx", 1)
    for folder in ("logits/coder", "aligned/target/walk/coder", "aligned/target/tokens", "chunks"):
        part = output / folder / "part-00000.parquet"
        whole = part.read_bytes()
        part.write_bytes(whole[:-200])
        assert str(part) in refused(world, output, "--part 0", 1)
        part.unlink()
        assert str(part) in refused(world, output, "--part 0", 1)
        part.write_bytes(whole)
    shutil.rmtree(output / "logits" / "coder")
    assert "run `fusionx precompute` first" in refused(world, output, "", 1)
    shown(world, output, "--source writer")
    shutil.rmtree(output / "aligned")
    assert "run `fusionx align` first" in refused(world, output, "", 1)
