"""What a training's teacher gives held-out text, against ensembles of the same weights over the same shards."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from shard_builder import VOCAB, Chunk, Parts, make_job, random_parts, write_set

from fusionx.eval.text.ensembles import AlignedSplit, evaluate_ensembles
from fusionx.pipelines.evaluation.teachers import teacher_figures
from fusionx.train.config import PRESETS, MethodConfig, TrainJob
from fusionx.train.objective.selection_network import SelectionNetwork
from fusionx.train.state.export import ASN_CONFIG, ASN_WEIGHTS

NAMES = ["target", "coder", "writer"]


@pytest.fixture
def parts() -> Parts:
    return random_parts([3], NAMES, seed=5, validation_rows=70)


def job_of(folder: Path, parts: Parts, method: MethodConfig) -> TrainJob:
    tokens, aligned = write_set(folder, parts, NAMES)
    return make_job(folder / "model", tokens, aligned, folder / "out", method)


def test_a_gate_that_knows_nothing_is_the_uniform_ensemble(tmp_path: Path, parts: Parts) -> None:
    """So the network is read from the export, and its candidates stand in the training's order."""
    method = PRESETS["fusionx-network"]
    job = job_of(tmp_path, parts, method)
    asn = SelectionNetwork(len(NAMES), method.selection)
    torch.nn.init.zeros_(asn.layers[-1].weight)  # type: ignore[arg-type]
    best = Path(job.output) / "best"
    best.mkdir(parents=True)
    save_file(asn.state_dict(), best / ASN_WEIGHTS)
    content = {"candidates": sorted(NAMES), "selection": method.selection.model_dump(mode="json")}
    (best / ASN_CONFIG).write_text(json.dumps(content))
    found = teacher_figures(job, VOCAB, "validation")
    expected = evaluate_ensembles(AlignedSplit("validation", job.tokens, job.aligned, VOCAB))["ensembles"]["uniform"]
    for name, figures in expected["domains"].items():
        assert found["domains"][name] == pytest.approx(figures, rel=1e-5)


def test_min_ce_is_each_chunks_best_candidate_where_it_is_aligned(tmp_path: Path, parts: Parts) -> None:
    job = job_of(tmp_path, parts, PRESETS["fusellm"])
    found = teacher_figures(job, VOCAB, "validation")
    single = {}
    for name in NAMES:  # what its ensemble with the target's stand-in says, alone
        of_one = {"target": job.aligned["target"], name: job.aligned[name]}
        single[name] = evaluate_ensembles(AlignedSplit("validation", job.tokens, of_one, VOCAB))["candidates"][name]
    # Every candidate is the expert of one domain, and has the lowest NLL per byte in all of that domain's chunks.
    for place, name in enumerate(NAMES):
        assert found["domains"][f"domain-{place}"] == pytest.approx(
            single[name]["domains"][f"domain-{place}"], rel=1e-5
        )


def test_fixed_share_is_the_ensemble_of_that_name_where_labels_are_kept(tmp_path: Path, parts: Parts) -> None:
    """As the walk keeps them; where one is not stored, the two fill it in differently."""
    method = PRESETS["fusionx"]
    kept = [(split, [_with_labels(chunk) for chunk in rows]) for split, rows in parts]
    job = job_of(tmp_path, kept, method)
    found = teacher_figures(job, VOCAB, "validation")
    shards = AlignedSplit("validation", job.tokens, job.aligned, VOCAB)
    expected = evaluate_ensembles(shards)["ensembles"]["fixed_share"]
    for name, figures in expected["domains"].items():
        assert found["domains"][name] == pytest.approx(figures, rel=1e-4)


def test_what_no_candidate_leaves_anything_for_has_the_least_probability(tmp_path: Path, parts: Parts) -> None:
    """Of real models: one that is sure of another token, and whose stored probabilities sum to 1 in fp16."""
    sure = [(split, [_sure_of_another_token(chunk) for chunk in rows]) for split, rows in parts]
    method = PRESETS["fusellm"]
    job = job_of(tmp_path, sure, method)
    found = teacher_figures(job, VOCAB, "validation")
    expected = evaluate_ensembles(AlignedSplit("validation", job.tokens, job.aligned, VOCAB))["candidates"]
    assert found["overall"]["bits_per_byte"] > 10
    for name, figures in found["domains"].items():
        of_any = [one["domains"][name]["bits_per_byte"] for one in expected.values()]
        assert figures["bits_per_byte"] == pytest.approx(of_any[0], rel=1e-5), of_any


def _sure_of_another_token(chunk: Chunk) -> Chunk:
    said = {}
    for name, one in chunk.said.items():
        ids, probs = np.full_like(one.ids, -1), np.zeros_like(one.probs)
        for at, label in enumerate([*chunk.input_ids[1:], 0]):
            ids[at, 0], probs[at, 0] = (label + 1) % VOCAB, 1.0
        said[name] = replace(one, ids=ids, probs=probs, status=np.ones_like(one.status))
    return replace(chunk, said=said)


def _with_labels(chunk: Chunk) -> Chunk:
    """The same with every next token among the entries of whoever is aligned before it."""
    said = {}
    for name, one in chunk.said.items():
        ids, probs = one.ids.copy(), np.where(one.status[:, None] > 0, np.maximum(one.probs, 1e-3), 0)
        for at, label in enumerate(chunk.input_ids[1:]):
            if one.status[at] and label not in ids[at]:
                ids[at, -1] = label
        free = np.setdiff1d(np.arange(VOCAB), [*ids.ravel(), *chunk.input_ids])
        ids = np.where((ids < 0) & (probs > 0), free[: ids.size].reshape(ids.shape), ids)
        said[name] = replace(one, ids=ids.astype(np.int32), probs=probs.astype(np.float32))
    return replace(chunk, said=said)
