"""The report's tables, as plain cells, from the summary's numbers; how they look is the renderers' matter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fusionx.eval.report.tables.alignment import alignment
from fusionx.eval.report.tables.alternatives import alternatives
from fusionx.eval.report.tables.cells import Section
from fusionx.eval.report.tables.continuations import continuations
from fusionx.eval.report.tables.costs import stages, tuning
from fusionx.eval.report.tables.losses import losses
from fusionx.eval.report.tables.methods import interference, overview, selection
from fusionx.eval.report.tables.sources import ensembles, sources
from fusionx.eval.report.tables.units import per_domain, skills


def sections(results: Mapping[str, Any]) -> list[Section]:
    """Every section that has something to show, in reading order."""
    makers = (
        alternatives, losses, continuations, overview, alignment, selection,
        per_domain, skills, interference, sources, ensembles, tuning, stages,
    )  # fmt: skip
    return [section for maker in makers if (section := maker(results)) is not None]
