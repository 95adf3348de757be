"""The simulated cluster where its outcome can be said beforehand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fusionx.benchmarks.measuring.cluster_simulation import Cluster, Outcome, Trouble, UnitTimes, simulate

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


def test_slow_hosts_get_fewer_units_and_all_end_together() -> None:
    cluster = Cluster(hosts=8, gpus=2, cores=8, units_at_once=6)
    found = simulate(UNIT, cluster, 2000, Trouble(slow=0.25, slowness=4.0))
    assert found.efficiency == pytest.approx(1.0, abs=0.12)
    assert found.tokens_per_s == pytest.approx(100 * (12 + 4 / 4), rel=0.12), "twelve whole GPUs, four quarters of one"
    assert found.lost == 0


def test_what_a_lost_host_had_in_its_hands_is_made_again() -> None:
    cluster, often = Cluster(hosts=4, gpus=2, cores=8, units_at_once=6), Trouble(losses=20.0, away=60.0, seed=3)
    found = simulate(UNIT, cluster, 4000, often)
    whole = simulate(UNIT, cluster, 4000)
    assert found.lost > 20
    assert found.tokens_per_s < 0.9 * whole.tokens_per_s
    # What a loss costs is what was in hand, at most six units per GPU, and the wait for it at the end.
    seconds = 4000 * 100 / found.tokens_per_s
    assert whole.efficiency - found.efficiency < found.lost * UNIT.device / (8 * seconds) + 0.03
    assert simulate(UNIT, cluster, 4000, often) == found
