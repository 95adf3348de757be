"""What the manifests of aligned shards say of the alignment, as the report and `fusionx status` show it."""

from __future__ import annotations

from fusionx.align.fidelity import Fidelity, summary


def fidelity_figures(by_domain: Fidelity) -> dict[str, dict[str, float]]:
    """Of all domains together under "", and of each of which something is judged; nothing where nothing is."""
    judged = {domain: sums for domain, sums in by_domain.items() if sums["gold_bytes"] > 0 and sums["own_bytes"] > 0}
    if not judged:
        return {}
    return {"": summary(judged)} | {domain: summary({domain: sums}) for domain, sums in judged.items()}
