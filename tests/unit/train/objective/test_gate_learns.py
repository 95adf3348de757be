"""The selection network learns: it finds each domain's expert, and L_feed evens out what it gives the candidates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from shard_builder import random_parts, write_set

from fusionx.train.config import PRESETS, MethodConfig, SelectionConfig
from fusionx.train.data.collate import Batch
from fusionx.train.data.loader import StepBatches
from fusionx.train.data.shard_stream import ShardSet
from fusionx.train.objective.losses import Totals, feed_value, local_totals, selection_loss
from fusionx.train.objective.selection_network import SelectionNetwork
from fusionx.train.objective.teacher import select

CANDIDATES = ["first", "second", "third"]
VOCAB = 300


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> list[Batch]:
    """Chunks of three domains; in each another candidate gives the next token most of its mass."""
    folder = tmp_path_factory.mktemp("shards")
    tokens, aligned = write_set(folder, random_parts([24, 24], CANDIDATES), CANDIDATES)
    shards = ShardSet(tokens, aligned, "train")
    steps = StepBatches(shards, shards.order(seed=0), batch_size=8, pad_id=0)
    return [batch for step in range(90) for batch in steps[step]]


@pytest.fixture(scope="module")
def of_one_domain(tmp_path_factory: pytest.TempPathFactory) -> list[Batch]:
    """Text on which one candidate is the expert throughout."""
    parts = [
        (split, [chunk for chunk in chunks if chunk.domain == "domain-0"])
        for split, chunks in random_parts([72, 72], CANDIDATES)
    ]
    tokens, aligned = write_set(tmp_path_factory.mktemp("one-domain"), parts, CANDIDATES)
    shards = ShardSet(tokens, aligned, "train")
    steps = StepBatches(shards, shards.order(seed=0), batch_size=8, pad_id=0)
    return [batch for step in range(90) for batch in steps[step]]


def learn(method: MethodConfig, batches: list[Batch]) -> SelectionNetwork:
    """Trains the network alone, by the losses that do not need the target."""
    torch.manual_seed(0)
    asn = SelectionNetwork(len(CANDIDATES), method.selection)
    optimizer = torch.optim.AdamW(asn.parameters(), lr=1e-2)
    for batch in batches:
        assert batch.candidates is not None
        selection = select(method, asn, batch.candidates, VOCAB)
        totals = local_totals([batch.labels], [selection], len(CANDIDATES))
        optimizer.zero_grad()
        selection_loss(method, selection, totals).backward()
        optimizer.step()
    return asn.eval()


def weights_by_domain(method: MethodConfig, asn: SelectionNetwork, batches: list[Batch]) -> dict[int, torch.Tensor]:
    """Mean fusion weights [M] on each domain's positions."""
    sums: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        for batch in batches:
            assert batch.candidates is not None
            selection = select(method, asn, batch.candidates, VOCAB)
            for chunk, domain in enumerate(batch.domains.tolist()):
                rows = selection.weights[batch.candidates.chunk_of == chunk]
                sums[domain] = sums.get(domain, torch.zeros(len(CANDIDATES))) + rows.sum(0)
    return {domain: total / total.sum() for domain, total in sums.items()}


@pytest.mark.parametrize(
    "selection", [{}, {"granularity": "sequence"}, {"layers": "linear1"}, {"features": ["nll_per_byte"]}]
)
def test_it_finds_each_domains_expert(selection: dict[str, Any], batches: list[Batch]) -> None:
    method = PRESETS["fusionx-network"].model_copy(update={"selection": SelectionConfig(**selection)})
    untrained = weights_by_domain(method, learn(method, []), batches)
    found = weights_by_domain(method, learn(method, batches), batches)
    for expert, domain in enumerate(sorted(found)):
        assert found[domain].argmax() == expert, (domain, found[domain])
        assert found[domain][expert] > max(0.6, untrained[domain][expert] + 0.1)


def test_without_the_text_it_does_not(batches: list[Batch]) -> None:
    """What L_feed alone teaches is to treat all alike: no domain has an expert."""
    method = PRESETS["fusionx-network"].model_copy(update={"lambda_select": 0.0, "lambda_feed": 1.0})
    found = weights_by_domain(method, learn(method, batches), batches)
    assert max(float(weights.max()) for weights in found.values()) < 0.5


@pytest.mark.parametrize("feed_over", ["weights", "gate", "place"])
def test_feed_evens_out_the_importances(feed_over: str, of_one_domain: list[Batch]) -> None:
    """On text of one domain, whose expert would else have everything."""
    spread = {}
    for weight in (0.0, 20.0):
        selection = SelectionConfig(feed_over=feed_over, tau=0.05)  # type: ignore[arg-type]
        method = PRESETS["fusionx-network"].model_copy(update={"lambda_feed": weight, "selection": selection})
        asn = learn(method, of_one_domain)
        spread[weight] = _spread(method, asn, of_one_domain)
    assert spread[20.0] < 0.5 * spread[0.0]


def _spread(method: MethodConfig, asn: SelectionNetwork, batches: list[Batch]) -> float:
    """L_feed over all batches together."""
    vectors, variation = [], torch.zeros(())
    with torch.no_grad():
        for batch in batches:
            assert batch.candidates is not None
            selection = select(method, asn, batch.candidates, VOCAB)
            vectors.append(local_totals([batch.labels], [selection], len(CANDIDATES)).vector())
            variation = variation + selection.variation
    return float(feed_value(method, variation, Totals.from_vector(torch.stack(vectors).sum(0))))
