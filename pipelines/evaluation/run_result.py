"""What a finished run has to show: its numbers, its report and the model to take."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fusionx.contract.files.storage import join
from fusionx.eval.report.inputs import TARGET
from fusionx.eval.report.terminal import summary_text
from fusionx.pipelines.layout import Layout


@dataclass(frozen=True)
class RunResult:
    """`str()` of it is what `fusionx eval` prints.

    results: the content of `report/results.json`, see `eval.report.summary.summarize`.
    """

    results: dict[str, Any] = field(repr=False)
    layout: Layout

    @property
    def model_path(self) -> str:
        """The recommended model, an ordinary Hugging Face folder; the unchanged target where nothing was better."""
        return self.layout.model

    @property
    def report_path(self) -> str:
        return join(self.layout.report, "report.html")

    @property
    def recommendation(self) -> dict[str, Any]:
        """Which model, and by what figures: see `eval.results.recommendation.recommend`."""
        found: dict[str, Any] = self.results["recommendation"]
        return found

    def table(self) -> list[dict[str, Any]]:
        """A row per method, the original target first, each at its best step and as means over seeds.

        `validation_bits_per_byte` is what the recommended model is chosen by; `corpus_`, `absent_` and
        `all_bits_per_byte` are of the held-out text that is reported (None without such domains), `tasks` the share of
        right answers (None without tasks). Plain values: `pandas.DataFrame(result.table())`.
        """
        every = self.recommendation["all"]
        rows = []
        for method, found in self.results["methods"].items():
            at_best = found["mean"]["best"]
            groups = {
                f"{group}_bits_per_byte": figures and figures["bits_per_byte"]
                for group, figures in at_best["groups"].items()
            }
            chosen_by = every["target"] if method == TARGET else every["methods"][method]["mean"]
            rows.append(
                {
                    "method": method,
                    "seeds": len(found["seeds"]),
                    "validation_bits_per_byte": chosen_by,
                    **groups,
                    "tasks": at_best["skill_accuracy"],
                }
            )
        return rows

    def __str__(self) -> str:
        return "\n\n".join(
            [summary_text(self.results), f"The model: {self.model_path}\nThe report: {self.report_path}"]
        )
