"""The simulated cluster where its outcome can be said beforehand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fusionx.benchmarks.measuring.cluster_simulation import Cluster, Outcome, UnitTimes, simulate

UNIT = UnitTimes(dispatch=0.0, prepare=0.5, device=1.0, finish=1.5, tokens=100, bytes=10)


def efficiency(unit: UnitTimes, cluster: Cluster, per_gpu: int = 300) -> float:
    return simulate(unit, cluster, per_gpu * cluster.hosts * cluster.gpus).efficiency


def test_one_unit_takes_its_steps_one_after_the_other() -> None:
    assert simulate(replace(UNIT, dispatch=1.0), Cluster(1, 1, 1, 3), 1) == Outcome(1 / 4, 100 / 4, 10 / 4)


@pytest.mark.parametrize(
    ("cluster", "expected"),
    [
        (Cluster(1, 1, 8, 6), 1.0),  # the rest happens beside the device
        (Cluster(1, 1, 8, 1), 1 / 3),  # nothing does
        (Cluster(1, 1, 1, 6), 1 / 2),  # two seconds of one core for every second of the device
        (Cluster(1, 8, 16, 6), 1.0),
        (Cluster(1, 8, 4, 6), 1 / 4),
        (Cluster(4, 2, 4, 6), 1.0),
    ],
)
def test_what_is_scarcest_decides(cluster: Cluster, expected: float) -> None:
    assert efficiency(UNIT, cluster) == pytest.approx(expected, rel=0.03)


def test_one_driver_dispatches_for_all() -> None:
    slow = replace(UNIT, dispatch=0.1)
    assert efficiency(slow, Cluster(1, 8, 32, 6)) == pytest.approx(1.0, rel=0.03)
    assert efficiency(slow, Cluster(32, 8, 32, 6), 20) == pytest.approx(10 / 256, rel=0.03), "ten units a second"
