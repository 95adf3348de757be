"""How a unit goes through a model: what its plan says, in few shapes too, and that nobody waits for the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operations import Operations
from source_models import ARCHITECTURES, TEXTS, VOCAB, save_model, stage_of

from fusionx.contract.shapes import EXACT, FEW, Shapes
from fusionx.contract.tokens.encoding import Encoding
from fusionx.precompute.logits.batches import Plan, UnitTokens, batches_of, windows_of
from fusionx.precompute.logits.source_model import split_model


def unit_of(lengths: list[int], seed: int = 0) -> UnitTokens:
    rng = np.random.default_rng(seed)
    return UnitTokens.of([Encoding(rng.integers(1, 90, n).astype(np.int32), np.zeros(n, np.int32)) for n in lengths])


@given(
    st.lists(st.integers(0, 40), max_size=12),
    st.one_of(st.none(), st.integers(3, 20)),
    st.booleans(),
    st.sampled_from([EXACT, FEW]),
    st.sampled_from([1, 30, 500]),
)
@settings(max_examples=60, deadline=None)
def test_a_plan_has_every_position_once_with_what_precedes_it(
    lengths: list[int], context: int | None, add_bos: bool, shapes: Shapes, batch_tokens: int
) -> None:
    tokens, bos = unit_of(lengths), 99
    windows = list(windows_of(lengths, context, 1, add_bos))
    plan = Plan.of(tokens, batches_of(windows, batch_tokens, shapes, context), bos if add_bos else None)
    assert sorted(plan.places.tolist()) == list(range(sum(lengths)))
    assert torch.equal(plan.labels, tokens.labels[plan.places])
    start = 0
    for (ids, positions), (rows, length) in zip(plan.batches(), plan.shapes, strict=True):
        assert ids.shape == (rows, length)
        assert context is None or length <= context
        for position in positions.tolist():
            place = int(plan.places[start])
            start += 1
            row, column = divmod(position, length)
            seen = ids[row, : column + 1].tolist()
            text = int(np.searchsorted(tokens.offsets, place, side="right")) - 1
            before = tokens.ids[int(tokens.offsets[text]) : place + 1].tolist()
            led = seen[0] == bos
            assert seen[led:] == before[len(before) - len(seen) + led :]
            assert led or len(seen) == len(before) or not add_bos


def test_windows_within_and_beyond_a_rotary_switch_never_share_a_batch_nor_are_padded_over_it() -> None:
    lengths = [70, 75, 20, 90, 120]
    for shapes in (EXACT, FEW):
        batches = list(batches_of(list(windows_of(lengths, None, None)), 1000, shapes, 125, 75))
        for batch in batches:
            longest = max(window.length for window in batch.windows)
            assert (longest > 75) == (batch.shape[1] > 75)
            assert batch.shape[1] <= 125


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Any) -> Any:
    root: Path = tmp_path_factory.mktemp("batches")
    make_tokenizer(root / "plain", VOCAB)
    return stage_of(root, save_model(root / "llama", root / "plain", "llama")).worker()


def test_few_shapes_give_what_exact_ones_do(worker: Any) -> None:
    tokens = UnitTokens.of(worker.encoder.encode(TEXTS * 3))
    exact = worker._run(tokens)
    few = replace(worker, source=replace(worker.source, shapes=FEW))
    assert {length for _, length in few.plan(tokens).shapes} == {64, 80}
    assert torch.equal(few._run(tokens).ids, exact.ids)
    for found, expected in zip(few._run(tokens)[1:], exact[1:], strict=True):
        assert torch.allclose(found, expected, atol=1e-5)


def launches(work: Callable[[], object]) -> int:
    with torch.inference_mode(), Operations() as counted:
        work()
    return len(counted.launched)


@pytest.mark.parametrize("shapes", [EXACT, FEW])
def test_a_unit_waits_for_nothing_and_launches_little_beside_the_model(worker: Any, shapes: Shapes) -> None:
    """From the plan to the results in one piece; a mode refuses whatever would make the host ask the device."""
    source = worker.source
    worker = replace(worker, source=replace(source, shapes=shapes))
    plan = worker.plan(UnitTokens.of(worker.encoder.encode(TEXTS * 40)))
    assert len(plan.shapes) > 20
    model = sum(launches(lambda ids=ids: source.trunk(ids)) for ids, _ in plan.batches())
    blocks = -(-len(plan.places) // ((1 << 20) // source.head_size))
    model += blocks * launches(lambda: source.head(torch.zeros(5, 32)))
    ours = launches(lambda: worker._results(plan)) - model
    assert ours <= 5 * len(plan.shapes) + 60 * blocks, "per batch the choice of positions, per block the statistics"


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt_neox", "gpt2", "qwen3", "bloom"])
def test_forward_passes_wait_for_nothing(name: str) -> None:
    """transformers would ask the device in every one, to know whether a row holds several texts."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, sizes = ARCHITECTURES[name]
    config = AutoConfig.for_model(kind, vocab_size=VOCAB, bos_token_id=0, eos_token_id=0, **sizes)
    source = split_model(name, AutoModelForCausalLM.from_config(config).eval(), VOCAB)
    with torch.inference_mode(), Operations() as counted:
        list(source.logits([(torch.ones(3, 9, dtype=torch.long), torch.arange(20))]))
    assert counted.launched
