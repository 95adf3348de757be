"""What one finished training says in its log: validation figures by step, and what its selection did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionx.eval.report.summary import geometric_mean
from fusionx.train.config import TrainJob
from fusionx.train.state.result import finished_result, read_log


@dataclass(frozen=True)
class Point:
    """One validation.

    corpus, absent: bits per byte, mean over the domains that the training text has, or lacks (None: there is none).
    perplexity: per token, geometric mean over the corpus's domains. worse: share of all domains whose bits per byte are
    above those before the first step.
    """

    step: int
    tokens: float
    corpus: float
    absent: float | None
    perplexity: float
    worse: float


@dataclass(frozen=True)
class TrainingCourse:
    """One training. best: the point with the lowest `corpus`. chosen: how many candidates the selection takes at a
    position, the mean over the training. weights: (step, candidate -> mean fusion weight); both None and empty where
    nothing is selected.
    """

    curve: list[Point]
    best: Point
    chosen: float | None
    weights: list[tuple[int, dict[str, float]]]

    @property
    def start(self) -> Point:
        return self.curve[0]

    @property
    def last(self) -> Point:
        return self.curve[-1]

    def reached(self, perplexity: float) -> tuple[float, float] | None:
        """Steps and tokens after which the validation perplexity is that low; None: never.

        Straight lines between the validations stand for what was not measured.
        """
        before = None
        for point in self.curve:
            if point.perplexity <= perplexity:
                if before is None:
                    return float(point.step), point.tokens
                share = (before.perplexity - perplexity) / (before.perplexity - point.perplexity)
                return (
                    before.step + share * (point.step - before.step),
                    before.tokens + share * (point.tokens - before.tokens),
                )
            before = point
        return None


def read_outcome(job: TrainJob, corpus_domains: list[str]) -> TrainingCourse | None:
    """None where the training has no result."""
    result = finished_result(job)
    if result is None:
        return None
    log = read_log(Path(job.output))
    curve = list(_points(log, corpus_domains, result["tokens"] / result["steps"]))
    steps = [record for record in log if record["event"] == "step" and record.get("weight")]
    chosen = [sum(record["selected"].values()) for record in steps]
    return TrainingCourse(
        curve,
        next(point for point in curve if point.step == result["best_step"]),
        sum(chosen) / len(chosen) if chosen else None,
        [(record["step"], record["weight"]) for record in steps],
    )


def _points(log: list[dict[str, Any]], corpus_domains: list[str], tokens_per_step: float) -> Iterator[Point]:
    start: Mapping[str, Any] = {}
    for record in log:
        if record["event"] != "validation":
            continue
        domains = record["domains"]
        start = start or domains
        # The trainer's own rule: without a domain of the corpus in the validation text, all domains count.
        corpus = [found for name, found in domains.items() if name in corpus_domains] or list(domains.values())
        absent = [found["bits_per_byte"] for name, found in domains.items() if name not in corpus_domains]
        worse = [found["bits_per_byte"] > start[name]["bits_per_byte"] for name, found in domains.items()]
        yield Point(
            record["step"],
            record["step"] * tokens_per_step,
            record["trained_bits_per_byte"],
            sum(absent) / len(absent) if absent else None,
            geometric_mean([found["perplexity"] for found in corpus]) or float("nan"),
            sum(worse) / len(worse),
        )
