"""Ensembles against dense distributions and loops over positions; the shards come from the project's own writer."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_builder import VOCAB, Chunk, Parts, Said, distributions_of, random_chunk, with_text, write_aligned, write_set

import fusionx.eval.text.ensembles as ensembles_module
from fusionx.contract.errors import DataError
from fusionx.contract.shards.codec import probabilities
from fusionx.contract.shards.fixed_share import ALPHA, ETA
from fusionx.eval.text.ensembles import AlignedSplit, evaluate_ensembles, prompt_log_perplexity

NAMES = ["target", "coder", "writer"]
ENSEMBLES = ["uniform", "top1_ppl", "packllm_sim", "fixed_share", "oracle"]
FLOOR = 2.0**-24 / VOCAB


def split_of(parts: Parts, folder: Path) -> AlignedSplit:
    tokens, aligned = write_set(folder, parts, NAMES)
    return AlignedSplit("validation", tokens, aligned, VOCAB)


def validation(seed: int, rows: int = 4) -> Parts:
    """A training part that must not count, and two of validation: a long chunk of every domain, then of any length."""
    rng = np.random.default_rng(seed)
    long = [random_chunk(rng, doc, NAMES, 12) for doc in range(3)]
    others = [random_chunk(rng, 3 + doc, NAMES, int(rng.integers(0, 9))) for doc in range(rows)]
    return [
        ("train", [random_chunk(rng, 90, NAMES)]),
        ("validation", long),
        ("validation", others),
    ]


def silenced(parts: Parts, name: str) -> Parts:
    """The same parts with one candidate nowhere aligned."""

    def silence(said: Said) -> Said:
        return replace(said, ids=said.ids * 0 - 1, probs=said.probs * 0, status=said.status * 0)

    return [
        (split, [replace(row, said=row.said | {name: silence(row.said[name])}) for row in rows])
        for split, rows in parts
    ]


def dense(chunk: Chunk, name: str) -> list[np.ndarray | None]:
    """A candidate's whole distribution at every position as stored, the tail spread evenly; None where not aligned."""
    stored = distributions_of(chunk.said[name])
    ids, logprobs = stored.padded(max(1, stored.k))
    probs = probabilities(logprobs, stored.tail, np.float64)
    found: list[np.ndarray | None] = []
    for at in range(len(chunk.input_ids)):
        count = int(stored.counts[at])
        if not chunk.said[name].status[at] or not count:
            found.append(None)
            continue
        whole = np.full(VOCAB, float(stored.tail[at]) / (VOCAB - count))
        whole[ids[at, :count]] = probs[at, :count]
        found.append(np.maximum(whole, FLOOR))
    return found


def naive(chunk: Chunk) -> dict[str, float]:
    """Nats of the chunk under every candidate and ensemble: one position after the other, over the whole vocabulary."""
    said = {name: dense(chunk, name) for name in NAMES}
    total = dict.fromkeys(["unaligned", *NAMES, *ENSEMBLES], 0.0)
    history = dict.fromkeys(NAMES, 0.0)
    trust = dict.fromkeys(NAMES, 1 / len(NAMES))
    for at in range(len(chunk.input_ids) - 1):
        gold = int(chunk.input_ids[at + 1])
        aligned = {name: p for name in NAMES if (p := said[name][at]) is not None}
        target = said["target"][at]
        target = np.full(VOCAB, 1 / VOCAB) if target is None else target
        total["unaligned"] += not aligned
        aligned = aligned or {"target": target}
        perplexity = {name: math.exp(history[name] / max(at, 1)) for name in NAMES}
        best = min(aligned, key=lambda name: perplexity[name])
        weights = {name: 1 / perplexity[name] for name in aligned}
        pack = sum(weights[name] * p for name, p in aligned.items()) / sum(weights.values())
        uniform = sum(aligned.values()) / len(aligned)
        shared = sum(trust[name] * p for name, p in aligned.items()) / sum(trust[name] for name in aligned)
        mixtures = {"uniform": uniform, "packllm_sim": pack, "top1_ppl": aligned[best], "fixed_share": shared}
        for name, mixture in mixtures.items():
            assert mixture.sum() == pytest.approx(1, abs=1e-3)
            total[name] -= math.log(mixture[gold])
        mean = sum(p[gold] for p in aligned.values()) / len(aligned)
        gained = {
            name: trust[name] * max(aligned[name][gold] if name in aligned else mean, 1e-6) ** ETA for name in NAMES
        }
        trust = {name: (1 - ALPHA) * gained[name] / sum(gained.values()) + ALPHA / len(NAMES) for name in NAMES}
        total["oracle"] -= math.log(max(p[gold] for p in aligned.values()))
        for name in NAMES:
            nats = -math.log(aligned.get(name, target)[gold])
            total[name] += nats
            history[name] += nats
    return total


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_equals_dense_mixtures_position_by_position(
    tmp_path_factory: pytest.TempPathFactory, seed: int, silent: bool
) -> None:
    """Also where a candidate says nothing in any part."""
    parts = silenced(validation(seed), "coder") if silent else validation(seed)
    result = evaluate_ensembles(split_of(parts, tmp_path_factory.mktemp("shards")))
    chunks = [chunk for split, rows in parts if split == "validation" for chunk in rows]
    expected = [(chunk, naive(chunk)) for chunk in chunks]
    assert result["positions"] == sum(max(len(chunk.input_ids) - 1, 0) for chunk in chunks)
    assert result["unaligned"] == sum(sums["unaligned"] for _, sums in expected)
    assert [*result["candidates"], *result["ensembles"]] == [*NAMES, *ENSEMBLES]
    for name, found in (result["candidates"] | result["ensembles"]).items():
        for domain, figures in found["domains"].items():
            mine = [(chunk, sums) for chunk, sums in expected if chunk.domain == domain]
            tokens = sum(max(len(chunk.input_ids) - 1, 0) for chunk, _ in mine)
            covered = sum(int(chunk.ends[-1] - chunk.ends[0]) for chunk, _ in mine if len(chunk.ends))
            nll = sum(sums[name] for _, sums in mine)
            assert (figures["tokens"], figures["bytes"], figures["n_chunks"]) == (tokens, covered, len(mine))
            assert figures["nll"] == pytest.approx(nll, rel=1e-6)
            assert figures["bits_per_byte"] == pytest.approx(nll / covered / math.log(2), rel=1e-6)
            assert figures["perplexity"] == pytest.approx(math.exp(nll / tokens), rel=1e-5)


def overall_bits(result: dict[str, Any], kind: str) -> dict[str, float]:
    return {name: found["overall"]["bits_per_byte"] for name, found in result[kind].items()}


def test_the_oracle_is_the_ceiling_and_the_past_finds_the_expert(tmp_path: Path) -> None:
    """Every domain has its own expert; one chunk of text is enough to tell."""
    rng = np.random.default_rng(1)
    rows = [random_chunk(rng, doc, NAMES, 120) for doc in range(6)]
    result = evaluate_ensembles(split_of([("validation", rows)], tmp_path))
    bits, alone = overall_bits(result, "ensembles"), overall_bits(result, "candidates")
    assert bits["oracle"] < bits["packllm_sim"] < bits["uniform"]
    assert bits["oracle"] < bits["fixed_share"] < min(alone.values())
    assert bits["oracle"] < bits["top1_ppl"] < min(alone.values())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=5), st.integers(0, 10_000), st.data())
def test_weights_come_from_the_text_before(lengths: list[int], seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    offsets = np.append(0, np.cumsum(lengths))
    nll = rng.random((offsets[-1], 2)) * 9
    found = prompt_log_perplexity(nll, offsets)
    for start, end in pairwise(offsets):
        for at in range(start, end):
            expected = nll[start:at].mean(axis=0) if at > start else np.zeros(2)
            np.testing.assert_allclose(found[at], expected)
    if len(nll):
        at = data.draw(st.integers(0, len(nll) - 1))
        changed = nll.copy()
        changed[at:] += 1
        np.testing.assert_array_equal(prompt_log_perplexity(changed, offsets)[: at + 1], found[: at + 1])


def test_a_chunk_is_scored_alike_whatever_stands_beside_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    rows = [random_chunk(rng, doc, NAMES, 30) for doc in range(9)]
    together = evaluate_ensembles(split_of([("validation", rows)], tmp_path / "one"))
    apart = evaluate_ensembles(split_of([("validation", [row]) for row in rows], tmp_path / "many"))
    for kind in ("candidates", "ensembles"):
        assert together[kind] == apart[kind]


def test_a_result_is_kept_until_its_shards_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = validation(4)
    shards, output = split_of(parts, tmp_path / "shards"), str(tmp_path / "out" / "ensembles.json")
    result = evaluate_ensembles(shards, output)
    monkeypatch.setattr(ensembles_module, "_read", None)  # a second call must not get as far as reading
    assert evaluate_ensembles(shards, output) == result
    turned = replace(shards, aligned={name: shards.aligned[name] for name in reversed(NAMES)})
    for changed in (replace(shards, vocab_size=VOCAB + 1), turned):
        with pytest.raises(TypeError):
            evaluate_ensembles(changed, output)
    Path(output).write_text(Path(output).read_text()[:50])
    with pytest.raises(TypeError):
        evaluate_ensembles(shards, output)


def test_shards_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    parts = validation(5)
    shards = split_of(parts, tmp_path / "shards")
    short = write_aligned(tmp_path / "short", parts, "coder", skip_part=2)
    with pytest.raises(DataError, match="'coder' do not cover") as error:
        evaluate_ensembles(replace(shards, aligned=shards.aligned | {"coder": short}))
    assert "part-00002" in str(error.value)
    other = write_aligned(tmp_path / "other", with_text(parts, 1, "another text"), "coder")
    with pytest.raises(DataError, match="different texts"):
        evaluate_ensembles(replace(shards, aligned=shards.aligned | {"coder": other}))
