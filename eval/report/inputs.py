"""What a report is made of. Filled by whoever ran the stages; nothing here knows where files lie."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from fusionx.eval.results.evaluation import Evaluation

Step = Literal["best", "last"]
STEPS: tuple[Step, ...] = ("best", "last")

TARGET = "target"
METHOD_ORDER = (TARGET, "ct", "fusellm", "fusellm-avgce", "paper", "fusionx-network", "fusionx")
METHOD_LABELS = {
    TARGET: "Original target",
    "ct": "Continual training",
    "fusellm": "FuseLLM",
    "fusellm-avgce": "FuseLLM AvgCE",
    "paper": "Paper preset",
    "fusionx-network": "Fusion-X, network",
    "fusionx": "Fusion-X",
}


def method_label(method: str) -> str:
    """The method's name for readers; methods without one (ablations) keep their own."""
    return METHOD_LABELS.get(method, method)


@dataclass(frozen=True)
class MethodRun:
    """One training run of one method.

    Attributes:
        method: `ct`, `fusellm`, `paper`, `fusionx`, or the name of an ablation.
        last, best: evaluations of the model at the last step, and at the step with the best validation.
        log: the trainer's records, in order: events `step`, `validation` and `selection`.
    """

    method: str
    seed: int
    last: Evaluation
    best: Evaluation
    best_step: int
    steps: int
    log: list[dict[str, Any]]
    learning_rate: float

    def at(self, step: Step) -> Evaluation:
        """The evaluation at the best or the last step."""
        return self.best if step == "best" else self.last

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log's records of one kind, in order of their step."""
        return sorted((record for record in self.log if record.get("event") == name), key=lambda item: item["step"])


@dataclass(frozen=True)
class SourceFigures:
    """One source of the run; `evaluation` is of the source itself, over the same held-out text."""

    id: str
    architecture: str
    parameters: int | None
    vocab_size: int | None
    evaluation: Evaluation | None = None


@dataclass(frozen=True)
class Ensembles:
    """Ensembles of the sources, and the models to compare them with on the same held-out split.

    Attributes:
        split: the held-out split of all of them. report_split: the one of the report's other tables.
        alignment: the method that the sources were aligned by.
        scores: of candidates and ensembles, see `eval.text.ensembles.evaluate_ensembles`.
        models: one evaluation of the original target (`target`) and of every other model, and one per seed of every
            method, at its best step.
        teachers: what the teacher that each method learns from gives the split, per domain, one per seed.
    """

    split: str
    report_split: str
    alignment: str
    scores: dict[str, Any]
    models: dict[str, list[Evaluation]]
    teachers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


@dataclass(frozen=True)
class ReportInputs:
    """Everything a report says.

    Attributes:
        config: the resolved config of the run, plain values.
        provenance: config digest, package versions and the like, plain values.
        original: the target before any training. target: its id, which it has among the aligned sources, too.
        runs: every method and seed; methods may be missing.
        tuning: the learning-rate search: {method, learning_rate, best_bits_per_byte, last_bits_per_byte, best_step}
            each.
        train_domains, absent_domains: domains that the continual corpus has and has not.
        stages: stage -> {seconds, parts, rows, tokens, bytes}, each optional.
        alignment_split: the split that `alignment`, `fidelity` and `calibration` are of.
        alignment: method (`walk`, `mined`, `exact`) -> source -> {status: share of positions}.
        fidelity: method -> source -> domain ("" for all together) -> {own_bits_per_byte, aligned_bits_per_byte,
            filled_bits_per_byte, cost, hits}: how well the aligned distributions predict the target's next tokens.
            `filled`: with what the target itself fills in; `cost`: aligned less own; `hits`: the share of positions
            whose most probable token is the next one. A domain of which nothing is judged is left out.
        calibration: method -> source -> {"aligned": [...], "own": [...]}: the mass that tokens of 1, 2, ... 9, 10 and
            more bytes are given over how often they come next, of the target's tokens under the aligned distributions
            and of the source's own under its own; None for a length that never comes.
        ensembles: None where no held-out split was aligned.
        bootstrap: resamples behind "beyond noise"; `confidence` is its level.
        recommendation: `eval.results.recommendation.recommend`, the `folder` where that model lies, and the group of
            domains (`claim`) that it is judged on; None: nothing is recommended.
        command: what made the run, a line per command.
    """

    title: str
    config: dict[str, Any]
    provenance: dict[str, Any]
    original: Evaluation
    runs: list[MethodRun]
    target: str = TARGET
    tuning: list[dict[str, Any]] = field(default_factory=list)
    train_domains: list[str] = field(default_factory=list)
    absent_domains: list[str] = field(default_factory=list)
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    alignment_split: str = "validation"
    alignment: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    fidelity: dict[str, dict[str, dict[str, dict[str, float]]]] = field(default_factory=dict)
    calibration: dict[str, dict[str, dict[str, list[float | None]]]] = field(default_factory=dict)
    sources: list[SourceFigures] = field(default_factory=list)
    ensembles: Ensembles | None = None
    bootstrap: int = 2000
    confidence: float = 0.95
    recommendation: dict[str, Any] | None = None
    command: str = "fusionx run CONFIG.yaml"

    def runs_of(self, method: str) -> dict[int, MethodRun]:
        """Seed -> run, by seed."""
        return {run.seed: run for run in sorted(self.runs, key=lambda run: run.seed) if run.method == method}

    def methods(self) -> list[str]:
        """Methods that were trained, baselines first and `fusionx` last of the known ones."""
        present = {run.method for run in self.runs}
        known = [method for method in METHOD_ORDER if method in present]
        return known + sorted(present - set(known))
