"""What a run's trainings, and the sources' forward passes, take on a card: from measured rates, or assumed ones.

`benchmarks/results/gpu.jsonl` holds what `fusionx bench gpu` measured: rows of bench, case ("train 1B, packed"),
metric, value, card, versions, date. A rate is the share of the card's peak that a case of a like size reached (`mfu`),
and work is counted as 2 N FLOPs per token of a forward pass and 6 N of a training step (4 N with frozen weights), N all
parameters.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fusionx.contract.errors import ConfigError
from fusionx.pipelines.config import FusionConfig
from fusionx.pipelines.model_description import describe_model
from fusionx.pipelines.planning.plan import Plan
from fusionx.train.config import TrainConfig

_RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "gpu.jsonl"
_ASSUMED_MFU = {"precompute": 0.25, "train": 0.3}
_LINKS = {"GH200": 450e9, "H200": 450e9, "H100": 450e9, "B200": 900e9, "A100": 300e9}
_PCIE = 25e9
"""Bytes per second and direction between the cards of one host: NVLink from the data sheets, else PCIe 4."""


@dataclass(frozen=True)
class CardRate:
    """FLOP/s of useful work of one card, and where the figure comes from."""

    flops_per_s: float
    source: str


def card_rate(card: str, bench: Literal["precompute", "train"], parameters: int) -> CardRate:
    """Of the measured case on this card whose size is nearest, by ratio; else an assumed share of the card's peak.

    Raises:
        ConfigError: nobody knows this card's peak.
    """
    from fusionx.train.loop.throughput import peak_flops

    peak = peak_flops(card)
    if peak is None:
        raise ConfigError(
            "The peak of this card is not known.",
            field="--card",
            found=card,
            expected="a name like H100, H200, A100, L40S, 4090",
            remedy="name a card that is known, or add its peak to train/loop/throughput.py",
        )
    mfus = [row for row in _rows() if row["metric"] == "mfu" and row["case"].startswith(f"{bench} ")]
    measured = [row for row in reversed(mfus) if _same(row["card"], card)]  # the last one counts
    sized = [(abs(math.log(size / parameters)), row) for row in measured if (size := _size(row["case"])) is not None]
    if not sized:
        share = _ASSUMED_MFU[bench]
        return CardRate(share * peak, f"assumed: {share:.0%} of the peak; {bench} was not measured on {card}")
    _, row = min(sized, key=lambda pair: pair[0])
    said = f"measured on {row['card']}, {row['case']}: {row['value']:.0%} of the peak ({row['date']})"
    return CardRate(row["value"] * peak, said)


def exchanged_bytes(
    parameters: int, cards: int, shards: Literal["none", "fsdp"], micro_batches: int = 1, trained: int | None = None
) -> float:
    """What each card sends in a step, in bytes, with ring collectives.

    `none` (DDP): one all-reduce of fp32 gradients, 2 (n - 1) / n x 4 T. `fsdp`: bf16 weights gathered for the forward
    and the backward pass of every micro-batch, fp32 gradients scattered once: (n - 1) / n x (2 m x 2 N + 4 T). N counts
    parameters, T those that are trained (all, if not said), n cards, m micro-batches.
    """
    trained = parameters if trained is None else trained
    share = (cards - 1) / cards
    if shards == "none":
        return share * 2 * 4 * trained
    return share * (2 * micro_batches * 2 * parameters + 4 * trained)


def efficiency(step_seconds: float, sent_bytes: float, bytes_per_s: float) -> float:
    """Tokens/s of n cards over n times those of one, expected from one card's measured step.

    Exchange runs beside the backward pass, two thirds of a step; what exceeds it is waited for:
    t / (t + max(0, bytes / rate - 2 t / 3)).
    """
    waited = max(0.0, sent_bytes / bytes_per_s - 2 * step_seconds / 3)
    return step_seconds / (step_seconds + waited)


def link_bytes_per_s(card: str) -> float:
    """Between the cards of one host, per direction."""
    return next((rate for name, rate in _LINKS.items() if _same(name, card)), _PCIE)


@dataclass(frozen=True)
class TrainingPlan:
    """The trainings of a run, one after the other, each on all `cards`. `rate`: where the speed comes from.

    tokens, steps: of all of them. step_seconds: of one card's share of a batch, without exchange. sent_bytes: of each
    card in a step. hours: without validation and exports.
    """

    trainings: int
    tokens: int
    steps: int
    card: str
    cards: int
    rate: str
    tokens_per_s: float
    step_seconds: float
    sent_bytes: float
    efficiency: float
    hours: float

    def lines(self) -> list[str]:
        """For a person."""
        return [
            f"{self.trainings} trainings, together {self.tokens:,} tokens in {self.steps:,} steps, "
            f"on {self.cards} x {self.card}: {self.hours:,.3g} h, {self.hours * self.cards:,.3g} GPU h",
            f"  {self.tokens_per_s:,.0f} tokens/s ({self.rate})",
            f"  each card sends {self.sent_bytes / 1e9:,.3g} GB per step of {self.step_seconds:,.3g} s: "
            f"expected efficiency {self.efficiency:.0%}",
        ]


def plan_trainings(
    config: TrainConfig, tokens: int, chunks: int, parameters: int, card: str, cards: int
) -> TrainingPlan:
    """
    Args:
        tokens, chunks: of the training split, in the target's tokens. parameters: the target's. card: its name.
    """
    optimizer, run = config.optimizer, config.run
    trained = {name: len(config.seeds) for name in config.methods}
    trained |= {name: trained.get(name, 0) + len(config.tune) for name in config.searched()}
    rate = card_rate(card, "train", parameters)
    flops = (4 if optimizer.lora else 6) * parameters
    block = min(optimizer.pack, tokens) if optimizer.pack else tokens / max(1, chunks)
    step_tokens = optimizer.batch_size * block
    passes = sum(times * config.optimizer_of(name).epochs for name, times in trained.items())
    seen = round(passes * optimizer.data_share * tokens)
    step_seconds = step_tokens * flops / rate.flops_per_s / cards
    share = max(1, optimizer.batch_size // cards)
    micro_batches = -(-share // (run.micro_batch or share))
    sent = exchanged_bytes(parameters, cards, run.shards, micro_batches, 0 if optimizer.lora else None)
    reached = efficiency(step_seconds, sent, link_bytes_per_s(card))
    speed = cards * rate.flops_per_s / flops * reached
    steps = max(1, round(seen / step_tokens))
    hours = seen / speed / 3600
    count = sum(trained.values())
    return TrainingPlan(count, seen, steps, card, cards, rate.source, speed, step_seconds, sent, reached, hours)


def lines_on_card(config: FusionConfig, plan: Plan, card: str, cards: int) -> list[str]:
    """For a person: the candidates' forward passes on one card each, then the trainings on all `cards`.

    Raises:
        ConfigError: a model cannot be described, the card is not known, or there is none.
    """
    if cards < 1:
        raise ConfigError("There is no card.", field="--cards", found=cards, expected="at least 1")
    sizes = {
        model.id: describe_model(model.path, model.revision).parameters
        for model in config.models
        if model.kind != "fake"
    }
    stages = {stage.stage: stage for stage in plan.stages}
    lines = [
        forward_line(f"precompute/{name}", stages[f"precompute/{name}"].tokens, size, card)
        for name, size in sizes.items()
        if size
    ]
    target, text = sizes.get(config.target.id), stages["align/tokens"]
    if target:
        trained = plan_trainings(config.train, text.tokens_of["train"], text.chunks_of["train"], target, card, cards)
        lines += trained.lines()
    return lines


def forward_line(name: str, tokens: int, parameters: int, card: str) -> str:
    """What one candidate's forward passes take on one card."""
    rate = card_rate(card, "precompute", parameters)
    speed = rate.flops_per_s / (2 * parameters)
    return f"{name} on one {card}: {tokens / speed / 3600:,.3g} h, {speed:,.0f} tokens/s ({rate.source})"


def _rows() -> Sequence[dict[str, Any]]:
    try:
        return [json.loads(line) for line in _RESULTS.read_text().splitlines() if line.strip()]
    except FileNotFoundError:
        return []


def _same(left: str, right: str) -> bool:
    """Whether two names, as CUDA or a person writes them, share the word that tells cards apart ("NVIDIA H200")."""
    return bool(_words(left) & _words(right))


def _words(name: str) -> set[str]:
    words = re.split(r"[^0-9A-Za-z]+", name)
    return {word for word in words if re.search(r"\d", word) and not re.search("GB|SXM|HBM", word)}


def _size(case: str) -> float | None:
    """Parameters by a case's name, like "135M, packed" or "1B"."""
    found = re.search(r"(\d+(?:\.\d+)?)\s*([MB])\b", case)
    return None if found is None else float(found[1]) * {"M": 1e6, "B": 1e9}[found[2]]
