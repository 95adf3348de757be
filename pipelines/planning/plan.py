"""What a run will take, and the table that says it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from fusionx.eval.report.tables.cells import bytes_text
from fusionx.pipelines.preflight.finding import Finding


@dataclass(frozen=True)
class StagePlan:
    """One stage over the whole corpus, or all trainings of one method, or all evaluations.

    `tokens_per_s` is that of one worker on this machine (0 for `chunk`, which has no tokenizer of its own; see
    `mb_per_s`, millions of text bytes per second). `hours` is the work divided among the configured workers;
    `cpu_hours` and `gpu_hours` are these hours times what all workers hold. `chunks_of` and `tokens_of`: by split.
    `memory`: bytes that all workers on one machine need for weights and what goes with them, 0 where there are none.
    `scaled_from`: what was measured in its place, empty where the stage itself was.
    """

    stage: str
    chunks: int
    tokens: int
    bytes: int
    tokens_per_s: float
    mb_per_s: float
    workers: int
    hours: float
    cpu_hours: float
    gpu_hours: float
    chunks_of: dict[str, int] = field(default_factory=dict)
    tokens_of: dict[str, int] = field(default_factory=dict)
    memory: int = 0
    scaled_from: str = ""


@dataclass(frozen=True)
class Plan:
    """All stages, and what they were judged by. `exact`: the whole corpus was read. `findings`: what will not fit."""

    name: str
    documents: int
    text_bytes: int
    exact: bool
    sample_documents: int
    sample_bytes: int
    device: str
    stages: list[StagePlan]
    findings: list[Finding] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        return all(finding.level != "problem" for finding in self.findings)

    def total(self) -> dict[str, float]:
        """Sums over the stages, which run one after the other."""
        return {
            name: sum(getattr(stage, name) for stage in self.stages)
            for name in ("bytes", "hours", "cpu_hours", "gpu_hours")
        }

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "total": self.total()}, indent=1)

    def table(self) -> str:
        about = "" if self.exact else "about "
        lines = [
            f"{self.name}: {about}{self.documents:,} documents, {about}{self.text_bytes / 1e6:,.1f} MB of text",
            f"measured here, one worker, device {self.device}, on up to {self.sample_documents:,} documents "
            f"({self.sample_bytes / 1e6:,.2f} MB)",
            "",
            _row(
                "stage", "chunks", "tokens", "tokens/s", "text MB/s", "output", "memory", "workers", "time", "CPU h",
                "GPU h",
            ),
        ]  # fmt: skip
        for stage in self.stages:
            lines.append(
                _row(
                    stage.stage + (" *" if stage.scaled_from else ""),
                    f"{stage.chunks:,}" if stage.chunks else "",
                    f"{stage.tokens:,}" if stage.tokens else "",
                    f"{stage.tokens_per_s:,.0f}" if stage.tokens else "",
                    f"{stage.mb_per_s:,.3g}" if stage.mb_per_s else "",
                    bytes_text(stage.bytes) if stage.bytes else "",
                    bytes_text(stage.memory) if stage.memory else "",
                    str(stage.workers),
                    _time(stage.hours),
                    f"{stage.cpu_hours:,.3g}",
                    f"{stage.gpu_hours:,.3g}",
                )
            )
        total = self.total()
        held = (f"{total[name]:,.3g}" for name in ("cpu_hours", "gpu_hours"))
        lines.append(_row("total", "", "", "", "", bytes_text(total["bytes"]), "", "", _time(total["hours"]), *held))
        return "\n".join([*lines, *self._notes()])

    def _notes(self) -> Sequence[str]:
        by_origin: dict[str, list[str]] = {}
        for stage in self.stages:
            if stage.scaled_from:
                by_origin.setdefault(stage.scaled_from, []).append(stage.stage)
        notes = [f"* {', '.join(stages)}: {origin}" for origin, stages in by_origin.items()]
        notes.append(
            "memory: weights and what goes with them; activations come on top. Trainings without what passes between "
            "processes; eval: the held-out text, without tasks and benchmarks."
        )
        return ["", *notes, *(finding.line() for finding in self.findings if finding.level != "ok")]


def say(line: str) -> None:
    """While it is made, to stderr."""
    print(f"[plan] {line}", file=sys.stderr, flush=True)


def _row(stage: str, *cells: str) -> str:
    widths = (14, 16, 11, 10, 9, 9, 8, 9, 9, 9)
    return f"{stage:<30}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def _time(hours: float) -> str:
    if hours < 1 / 60:
        return f"{hours * 3600:.3g} s"
    return f"{hours * 60:.3g} min" if hours < 1 else f"{hours:,.3g} h"
