"""The evaluation in a trained model's card: this very model's figures, and one section however often it is written."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fusionx.eval.report.card_section import HEADING, evaluation_section, with_evaluation
from fusionx.eval.report.inputs import STEPS, Step
from fusionx.eval.report.pages import ReportInputs
from fusionx.eval.report.summary import summarize
from fusionx.eval.results.statistics import wilson_interval

CARD = "---\ntags: [a]\n---\n\n# A model\n\n## Training\n\nSteps.\n"


@pytest.mark.parametrize("step", STEPS)
def test_it_tells_this_models_own_figures(make_inputs: Callable[..., ReportInputs], step: Step) -> None:
    results = summarize(make_inputs())
    method = results["methods"]["fusionx"]
    seed = method["seeds"][-1]
    section = evaluation_section(results, "fusionx", seed, step)
    own, start = method["per_seed"][str(seed)][step], results["methods"]["target"]["mean"][step]
    lines = section.splitlines()
    assert lines[0] == HEADING
    for name, figures in own["domains"].items():
        (row,) = [line for line in lines if line.startswith(f"| {name} |")]
        assert f"| {start['domains'][name]['bits_per_byte']:.4f} | {figures['bits_per_byte']:.4f} (" in row
    for name, score in own["tasks"].items():
        (row,) = [line for line in lines if line.startswith(f"| {name} |")]
        n, before = results["tasks"]["tasks"][name]["n"], start["tasks"][name]
        was, now = (
            " to ".join(f"{100 * limit:.1f}" for limit in wilson_interval(share, n, 0.95)) for share in (before, score)
        )
        assert f"| {100 * before:.1f} % ({was}) | {100 * score:.1f} % (" in row
        assert row.endswith(f"; {now}) |")
    counts = results["interference"]["fusionx"][step]["per_seed"][str(seed)]
    assert f"{counts['degraded']} of {counts['units']} domains and tasks" in section
    assert f"{own['groups']['corpus']['bits_per_byte']:.4f}" in section


def test_the_largest_loss_comes_first(make_inputs: Callable[..., ReportInputs]) -> None:
    results = summarize(make_inputs())
    seed = results["methods"]["ct"]["seeds"][0]
    own = results["methods"]["ct"]["per_seed"][str(seed)]["best"]
    start = results["methods"]["target"]["mean"]["best"]
    losses = {name: own["domains"][name]["bits_per_byte"] / start["domains"][name]["bits_per_byte"] - 1
              for name in own["domains"]}  # fmt: skip
    losses |= {name: start["tasks"][name] - own["tasks"][name] for name in own["tasks"]}
    section = evaluation_section(results, "ct", seed, "best")
    order = [name for line in section.splitlines() if (name := line[2:].split(" |")[0]) in losses]
    assert [losses[name] for name in order] == sorted(losses.values(), reverse=True)


def test_a_card_has_one_evaluation(make_inputs: Callable[..., ReportInputs]) -> None:
    results = summarize(make_inputs())
    seed = results["methods"]["fusionx"]["seeds"][0]
    first, second = (evaluation_section(results, "fusionx", seed, step) for step in STEPS)
    assert first != second
    once = with_evaluation(CARD, first)
    assert once == f"{CARD}\n{first}"
    assert with_evaluation(once, first) == once
    assert with_evaluation(once, second) == f"{CARD}\n{second}"
    followed = once + "\n## Licence\n\nOurs.\n"
    assert with_evaluation(followed, second) == f"{CARD}\n{second}\n## Licence\n\nOurs.\n"
