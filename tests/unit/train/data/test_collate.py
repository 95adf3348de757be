"""Samples to tensors: positions, labels, padding, packed rows and the document mask."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_builder import (
    random_chunk,
)
from trainings import assert_same_batch, assert_same_tensor

from fusionx.contract.shapes import FEW
from fusionx.contract.shards.fixed_share import fixed_share_weights
from fusionx.train.data.block_order import packed
from fusionx.train.data.collate import collate, collate_blocks
from fusionx.train.data.shard_stream import Sample
from fusionx.train.objective.fused_head import IGNORED

CANDIDATES = ["target", "left", "right"]


def samples_of(lengths: list[int], seed: int = 0) -> list[Sample]:
    rng = np.random.default_rng(seed)
    chunks = [random_chunk(rng, index, ["a", "b"], length) for index, length in enumerate(lengths)]
    entries = [
        [np.stack([getattr(chunk.said[name], field) for name in ("a", "b")], axis=1) for field in ("ids", "probs")]
        for chunk in chunks
    ]
    return [
        Sample(
            (chunk.doc_id, chunk.chunk),
            chunk.domain,
            chunk.input_ids,
            chunk.ends,
            *said,
            rng.random((len(chunk.input_ids), 2)).astype(np.float32),
            np.stack([chunk.said[name].status for name in ("a", "b")], axis=1),
            np.array([1.0, 2.0 + index], np.float32),
        )
        for index, (chunk, said) in enumerate(zip(chunks, entries, strict=True))
    ]


def test_who_is_trusted_is_decided_chunk_by_chunk() -> None:
    samples = samples_of([9, 1, 4, 6])
    found = collate_blocks([samples[:2], samples[2:]], 0, True, shapes=FEW, longest=64).candidates
    assert found is not None
    alone = [
        fixed_share_weights(sample.label_probs[:-1], np.array([0, len(sample.input_ids) - 1])) for sample in samples
    ]
    expected = np.concatenate(alone)
    assert not np.allclose(expected, 0.5)
    assert found.shares[: len(expected)].numpy() == pytest.approx(expected)
    assert (found.shares[len(expected) :] == 0.5).all()


@settings(max_examples=60, deadline=None)
@given(
    blocks=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), min_size=1, max_size=4),
    document_mask=st.booleans(),
)
def test_position_l_meets_the_token_after_it(blocks: list[list[int]], document_mask: bool) -> None:
    samples = samples_of([length for block in blocks for length in block])
    left = iter(range(len(samples)))
    rows = [[(chunk, at) for length in block for chunk in [next(left)] for at in range(length)] for block in blocks]
    remaining = iter(samples)
    batch = collate_blocks([[next(remaining) for _ in block] for block in blocks], 7, document_mask)
    assert batch.candidates is not None
    assert batch.input_ids.shape == (len(blocks), max(1, *map(len, rows)))
    assert batch.tokens == sum(map(len, rows))
    assert all((ids[len(places) :] == 7).all() for ids, places in zip(batch.input_ids, rows, strict=True))
    assert (batch.position_ids is not None) == document_mask
    found = []
    for row, places in enumerate(rows):
        for column, (chunk, at) in enumerate(places):
            assert batch.input_ids[row, column] == samples[chunk].input_ids[at]
            if batch.position_ids is not None:
                assert batch.position_ids[row, column] == at
            last = at == len(samples[chunk].input_ids) - 1
            assert (row * batch.input_ids.shape[1] + column in batch.positions) is not last
            found += [] if last else [(chunk, at)]
        if batch.position_ids is not None:
            padding = batch.position_ids[row, len(places) :]
            assert padding.tolist() == list(range(len(padding)))
    lengths = {len(field) for field in (batch.positions, batch.labels, batch.candidates.labels, batch.candidates.ids)}
    assert lengths == {len(found)}
    for n, (chunk, at) in enumerate(found):
        sample = samples[chunk]
        assert batch.labels[n] == batch.candidates.labels[n] == sample.input_ids[at + 1]
        np.testing.assert_array_equal(batch.candidates.ids[n], sample.ids[at])
        np.testing.assert_array_equal(batch.candidates.probs[n], sample.probs[at])
        np.testing.assert_array_equal(batch.candidates.label_probs[n], sample.label_probs[at])
        np.testing.assert_array_equal(batch.candidates.aligned[n], sample.status[at] > 0)
        assert batch.candidates.chunk_of[n] == chunk
    np.testing.assert_array_equal(batch.candidates.nll_per_byte, np.stack([s.nll_per_byte for s in samples]))
    assert batch.keys == [s.key for s in samples]
    assert batch.domains.tolist() == [sorted({s.domain for s in samples}).index(s.domain) for s in samples]


def test_samples_alone_are_rows_of_one_chunk() -> None:
    samples = samples_of([3, 9, 1])
    assert_same_batch(collate(samples, 7), collate_blocks([[sample] for sample in samples], 7))


def test_an_expert_scores_the_next_token() -> None:
    """Off by one anywhere on the road would give the expert no mass on the labels."""
    batch = collate(samples_of([8, 5, 11]), 0)
    assert batch.candidates is not None
    hit = (batch.candidates.ids == batch.labels[:, None, None]).any(-1)
    for n, row in enumerate(batch.candidates.chunk_of.tolist()):
        expert = row % 2
        assert hit[n, expert] == batch.candidates.aligned[n, expert]


def test_a_position_whose_entries_were_all_dropped_is_not_aligned() -> None:
    sample = samples_of([4])[0]
    sample.status[:] = 1
    sample.probs[1, 0], sample.ids[1, 0] = 0, -1
    batch = collate([sample], 0)
    assert batch.candidates is not None
    assert batch.candidates.aligned[:, 0].tolist() == [bool(sample.probs[at, 0].any()) for at in range(3)]
    assert not batch.candidates.aligned[1, 0]


@settings(max_examples=40, deadline=None)
@given(blocks=st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=4), min_size=1, max_size=3))
def test_few_shapes_only_fill_up(blocks: list[list[int]]) -> None:
    """What the exact batch holds comes first, and what follows has no label, no candidate and no chunk with a text."""
    remaining = iter(samples_of([length for block in blocks for length in block]))
    rows = [[next(remaining) for _ in block] for block in blocks]
    exact = collate_blocks(rows, 7, True)
    few = collate_blocks(rows, 7, True, shapes=FEW, longest=200)
    assert exact.candidates is not None
    assert few.candidates is not None
    assert few.input_ids.shape == (len(rows), FEW.length(exact.input_ids.shape[1], 200))
    assert (few.tokens, few.keys) == (exact.tokens, exact.keys)
    torch.testing.assert_close(few.input_ids[:, : exact.input_ids.shape[1]], exact.input_ids)
    n, chunks = len(exact.labels), len(exact.domains)
    texts = few.input_ids.flatten()[few.positions[:n]]
    torch.testing.assert_close(texts, exact.input_ids.flatten()[exact.positions])
    for ours, theirs in [(few.labels, exact.labels), *zip(few.candidates, exact.candidates, strict=True)]:
        assert_same_tensor(ours[: len(theirs)], theirs)
    assert (few.labels[n:] == IGNORED).all()
    assert (few.positions < few.input_ids.numel()).all()
    assert not few.candidates.aligned[n:].any()
    assert not few.candidates.probs[n:].any()
    assert (few.candidates.chunk_of[n:] == chunks).all()
    assert (few.domains[chunks:] == -1).all()
    assert len(few.domains) == len(few.candidates.nll_per_byte) > int(few.candidates.chunk_of.max())


def test_an_epoch_has_few_shapes() -> None:
    """Of texts whose lengths vary as on the web, packed and not: an accelerator makes a plan for each."""
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(5.5, 1, 4000).astype(int).clip(2, 1024)
    samples = [replace(samples_of([2])[0], input_ids=np.zeros(length, np.int32)) for length in np.unique(lengths)]
    by_length = {len(sample.input_ids): replace(sample, nll_per_byte=np.zeros(0)) for sample in samples}
    order = packed(lengths, 1024)
    blocks = [[by_length[int(lengths[row])] for row in order.row(block)] for block in rng.permutation(len(order))]
    single = [[by_length[length]] for length in lengths.tolist()]
    for rows, of_rows, of_positions in ((blocks, 1, 3), (single, 9, 12)):
        batches = [rows[start : start + 8] for start in range(0, len(rows) - 7, 8)]
        made = [collate_blocks(batch, 0, shapes=FEW, longest=1024) for batch in batches]
        assert len(made) > 100
        assert len({tuple(batch.input_ids.shape) for batch in made}) <= of_rows
        assert len({len(batch.labels) for batch in made}) <= of_positions
        assert len({len(batch.domains) for batch in made}) == 1


@pytest.mark.parametrize("document_mask", [True, False])
def test_moving_a_batch_keeps_its_fields(document_mask: bool) -> None:
    batch = collate_blocks([samples_of([3, 9])], 0, document_mask)
    assert_same_batch(batch.to(torch.device("cpu")), batch)
    whole = batch.in_one_piece()
    assert whole.buffer is not None
    moved = whole.to(torch.device("cpu"))
    assert_same_batch(moved, batch)
    assert {tensor.untyped_storage().data_ptr() for tensor in (moved.labels, *(moved.candidates or ()))} == {
        whole.buffer.untyped_storage().data_ptr()
    }


def tiny(kind: str, **changed: Any) -> torch.nn.Module:
    import transformers

    same = {"vocab_size": 300, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
    same |= {"max_position_embeddings": 64, "num_hidden_layers": 2}
    gpt = {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    neo = {"vocab_size": 300, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 64}
    options: dict[str, dict[str, Any]] = {
        "Llama": {**same, "num_key_value_heads": 1},
        "GPT2": gpt,
        "GPTNeo": {**neo, "attention_types": [[["global", "local"], 1]], "window_size": 4},
        "GPTNeoX": same,
        "Mistral": {**same, "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 4},
        "Gemma2": {**same, "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 4},
    }
    config = getattr(transformers, f"{kind}Config")(**options[kind])
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, **changed).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model.base_model


@pytest.mark.parametrize(
    ("kind", "attention"),
    [  # transformers has no sdpa for GPT-Neo and Gemma 2
        *((kind, "eager") for kind in ("Llama", "GPT2", "GPTNeo", "GPTNeoX", "Mistral", "Gemma2")),
        *((kind, "sdpa") for kind in ("Llama", "GPT2", "GPTNeoX", "Mistral")),
    ],
)
def test_under_the_document_mask_a_packed_chunk_sees_itself_only(kind: str, attention: str) -> None:
    model = tiny(kind, attn_implementation=attention)
    samples = samples_of([11, 1, 7, 9, 5, 2])
    batch = collate_blocks([samples[:4], samples[4:]], 0, document_mask=True)
    assert batch.position_ids is not None
    with torch.no_grad():
        packed = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)[0]
        alone = [model(input_ids=torch.from_numpy(s.input_ids[None]).long(), use_cache=False)[0][0] for s in samples]
    filled = torch.tensor([sum(len(s.input_ids) for s in row) for row in (samples[:4], samples[4:])])
    tokens = packed[torch.arange(packed.shape[1]) < filled[:, None]]
    torch.testing.assert_close(tokens, torch.cat(alone), rtol=1e-4, atol=1e-4)
