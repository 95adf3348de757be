"""The named studies: which trainings each is made of, and what each training is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal

from fusionx.contract.errors import ConfigError
from fusionx.pipelines.config import FusionConfig
from fusionx.train.config import PRESETS

Labels = tuple[str, ...]
Figure = Literal["dots", "grid", "thresholds", "sources", "efficiency", "selection", "data"]

_OF_THE_NETWORK = {
    "table1": "paper",
    **dict.fromkeys(("lambda", "tau", "selector"), "fusionx-network"),
}
"""Studies of a method with a selection network, and which that is unless another is named."""
FUSE_WEIGHTS = (0.1, 0.5, 1.0, 3.0, 10.0)
"""Values of lambda_fuse; the first is the paper's and FuseLLM's."""
FEWER_ENTRIES = 10
"""What FuseLLM and the paper's code store per position."""


@dataclass(frozen=True)
class Cell:
    """One point of a grid: a method of the run's config with some fields changed, trained with every seed.

    labels: its values in the study's columns; no two cells have the same. changes: of the method, as in
    `train.overrides`. optimizer, run: of the config's parts of that name. candidates: how many of the run's models take
    part, the target first; None: all. against: the labels of the cell that it is compared with.
    """

    labels: Labels
    method: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)
    candidates: int | None = None
    against: Labels | None = None


@dataclass(frozen=True)
class Study:
    """A grid of cells. columns: what the cells' labels are called. figure: which figure shows it."""

    name: str
    columns: Labels
    cells: list[Cell]
    figure: Figure


def make_study(name: str, config: FusionConfig, method: str | None = None) -> Study:
    """The study `name` of this run.

    Args:
        name: one of `pipelines.study.STUDIES`. method: whose fields the study changes; None: the study's own choice.

    Raises:
        ConfigError: the method has no teacher, or no selection network where the study is of that; the study changes no
            method, or the run has no source.
    """
    if name in OF_METHODS and method is None:
        return OF_METHODS[name](config)
    if name not in OF_ONE_METHOD:
        raise ConfigError(
            "This study compares methods and changes none.", field="--method", found=method, expected="no --method"
        )
    method = method or _OF_THE_NETWORK.get(name, "fusionx")
    of_the_network = name in _OF_THE_NETWORK
    teachers = {known: config.train.method(known).teacher for known in (*PRESETS, *config.train.overrides)}
    fit = [known for known, teacher in teachers.items() if (teacher == "asn" if of_the_network else teacher != "none")]
    if method not in fit:
        raise ConfigError(
            f"Only a method with a {'selection network' if of_the_network else 'teacher'} can be studied so.",
            field="--method",
            found=method,
            expected=", ".join(fit),
        )
    return OF_ONE_METHOD[name](config, method)


def table1(_: FusionConfig, method: str) -> Study:
    """The design choices of the paper's Table 1, each changed alone."""
    rows: list[tuple[str, str, dict[str, Any]]] = [
        ("Selection count", "top-2", _selection(choice="top_n", n=2)),
        ("Selection count", "adaptive", _selection(choice="adaptive")),
        ("Selection count", "all", _selection(choice="all")),
        *(("Selection metric", metric, _selection(metric=metric)) for metric in ("softmax", "gumbel", "noise")),
        *(("Layers", layers, _selection(layers=layers)) for layers in ("conv", "linear1", "linear3")),
        *(("Fusion", fusion, _selection(fusion=fusion)) for fusion in ("average", "maximum", "unweighted", "weighted")),
        *(("Threshold", f"{tau:g}", _selection(tau=tau)) for tau in (0.2, 0.15, 0.12)),
        ("Feedback loss", "without", {"lambda_feed": 0}),
        ("Feedback loss", "with", {}),
    ]
    whole = ("Feedback loss", "with")
    cells = [Cell((category, choice), method, changes, against=whole) for category, choice, changes in rows]
    return Study("table1", ("Choice", "Setting"), cells, "dots")


def loss_weights(_: FusionConfig, method: str) -> Study:
    """Fig. 5: the weights of the fusion and the feedback loss."""
    cells = [
        Cell((f"{fuse:g}", f"{feed:g}"), method, {"lambda_fuse": fuse, "lambda_feed": feed})
        for fuse, feed in product(FUSE_WEIGHTS, (0.05, 0.5, 1))
    ]
    return Study("lambda", ("lambda_fuse", "lambda_feed"), cells, "grid")


def thresholds(_: FusionConfig, method: str) -> Study:
    """The threshold of the adaptive selection (eq. 5)."""
    cells = [
        Cell((f"{tau:g}",), method, _selection(choice="adaptive", tau=tau), against=("0.15",))
        for tau in (0.05, 0.1, 0.15, 0.2, 0.25)
    ]
    return Study("tau", ("tau",), cells, "thresholds")


def selectors(_: FusionConfig, method: str) -> Study:
    """What the selection network is trained by, at every granularity.

    `element` has no weight per candidate, so no selector loss and no bucket; it is compared with the others under the
    tail that it can have.
    """
    cells = []
    for granularity, tail in (
        ("token", "bucket"), ("sequence", "bucket"), ("token", "renormalise"), ("sequence", "renormalise"),
        ("element", "renormalise"),
    ):  # fmt: skip
        for objective, weights in {
            "L_select": {"lambda_select": 0.5, "lambda_feed": 0.05},
            "L_fuse": {"lambda_select": 0, "lambda_feed": 0.05},
            "L_fuse, stronger L_feed": {"lambda_select": 0, "lambda_feed": 0.5},
        }.items():
            if granularity == "element" and weights["lambda_select"]:
                continue
            changes = {**weights, **_selection(granularity=granularity), "tail": tail}
            against = ("token", "bucket", "L_select")
            cells.append(Cell((granularity, tail, objective), method, changes, against=against))
    columns = ("Granularity", "Tail", "Trained by")
    return Study("selector", columns, cells, "dots")


def alignments(config: FusionConfig, method: str) -> Study:
    """How sources are aligned, what becomes of the tail, and how many entries of each distribution are used."""
    stored = config.align.k or config.precompute.k
    fewer = FEWER_ENTRIES if stored > FEWER_ENTRIES else max(1, stored // 2)
    cells = [
        Cell((alignment, tail, str(k)), method, {"alignment": alignment, "tail": tail, "k": None if k == stored else k},
             against=("walk", "bucket", str(stored)))
        for alignment, tail, k in product(
            ("walk", "mined", "exact"), ("bucket", "renormalise", "raw"), dict.fromkeys((stored, fewer))
        )
    ]  # fmt: skip
    return Study("align", ("Alignment", "Tail", "k"), cells, "dots")


def efficiency(config: FusionConfig) -> Study:
    """Fig. 4: the run's methods, and how soon each has the perplexity that `ct` and `fusellm` end with."""
    methods = dict.fromkeys(["ct", "fusellm", *config.train.methods])
    cells = [Cell((method,), method, against=_unless(method, "ct")) for method in methods]
    return Study("efficiency", ("Method",), cells, "efficiency")


def selection(config: FusionConfig) -> Study:
    """Fig. 6: the weight of every candidate while the run's methods with a selection network train."""
    gated = [name for name in config.train.methods if config.train.method(name).teacher == "asn"]
    methods = gated or ["fusionx-network"]
    cells = [Cell((method,), method) for method in methods]
    return Study("selection", ("Method",), cells, "selection")


def sources(config: FusionConfig) -> Study:
    """Fig. 1: two candidates and more, in the config's order; the target is one of them."""
    _at_least_one_source("sources", config)
    cells = [Cell(("1", "ct"), "ct")]
    for count, method in product(range(2, len(config.models) + 1), ("fusellm", "fusionx")):
        cells.append(Cell((str(count), method), method, candidates=count, against=("1", "ct")))
    return Study("sources", ("Candidates", "Method"), cells, "sources")


def amounts(config: FusionConfig, method: str) -> Study:
    """The gains of `fusellm` and the method over `ct` against the amount of unique text and the passes over it.

    All stop early.

    Every training is validated equally often, so that all can stop equally near their best step.
    """
    cells = []
    for share, factor in product((0.125, 0.25, 0.5, 1.0), (0.5, 1.0, 2.0)):
        optimizer = {"data_share": share, "epochs": factor * config.train.optimizer.epochs}
        run = {"validate_every": max(1, round(share * factor * config.train.run.validate_every))}
        place = (f"{100 * share:g} %", f"{optimizer['epochs']:g}")
        cells += [
            Cell((*place, name), name, optimizer=optimizer, run=run, against=_unless(name, "ct", place))
            for name in ("ct", "fusellm", method)
        ]
    return Study("data", ("Text", "Epochs", "Method"), cells, "data")


def _selection(**changes: Any) -> dict[str, Any]:
    return {"selection": changes}


def _unless(method: str, baseline: str, place: Labels = ()) -> Labels | None:
    """The baseline's labels at that place; None for the baseline itself."""
    return None if method == baseline else (*place, baseline)


def _at_least_one_source(name: str, config: FusionConfig) -> None:
    if len(config.models) < 2:
        raise ConfigError(
            f"The study '{name}' compares numbers of sources, and the run has none.",
            field="sources",
            found=0,
            expected="1 or more",
        )


OF_ONE_METHOD: dict[str, Callable[[FusionConfig, str], Study]] = {
    "table1": table1,
    "lambda": loss_weights,
    "tau": thresholds,
    "align": alignments,
    "selector": selectors,
    "data": amounts,
}
OF_METHODS: dict[str, Callable[[FusionConfig], Study]] = {
    "sources": sources,
    "efficiency": efficiency,
    "selection": selection,
}
