"""A real Ray of several nodes on this machine, through the command line: whatever is killed, the bytes are the same."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from forked import ForkedCommand

from fusionx.contract.errors import EXIT_STOPPED

pytest.importorskip("ray")

STORE = 80 << 20
DEADLINE = 180.0


@pytest.fixture(scope="module")
def fakes(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tiny world with stand-ins for its models, which need a tokenizer and time only."""
    config = yaml.safe_load(world.config.read_text())
    config["sources"] = [source for source in config["sources"] if source["id"] == "coder"]
    for model in (config["target"], *config["sources"]):
        model["kind"] = "fake"
    config["chunk"]["part_bytes"] = 1000
    config["precompute"]["splits"] = ["train", "validation", "test"]
    root = tmp_path_factory.mktemp("fakes")
    (root / "run.yaml").write_text(yaml.safe_dump(config))
    return type(world)(root)


@pytest.fixture(scope="module")
def expected(fakes: Any, tmp_path_factory: pytest.TempPathFactory, part_hashes: Any) -> tuple[Path, dict[str, str]]:
    """The chunks, and the hashes of all shards as one process makes them without interruption."""
    output = tmp_path_factory.mktemp("expected") / "out"
    for command in ("chunk", "precompute"):
        fakes.run(output, command)
    made = part_hashes(output / "logits")
    assert len(made) > 20
    return output / "chunks", made


@dataclass
class Node:
    """One machine of a Ray, as far as Ray knows."""

    node: Any

    def workers(self) -> list[int]:
        """Processes that hold a model."""
        raylet = self.node.all_processes["raylet"][0].process.pid
        return [pid for pid in descendants(raylet) if "MapWorker" in command_line(pid)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A head with one CPU, started in a folder that is none of the driver's; lost machines are noticed soon."""
    from ray.cluster_utils import Cluster

    elsewhere = tmp_path_factory.mktemp("elsewhere")
    soon = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_failure_threshold": 3}
    made = Cluster()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(elsewhere)
            made.add_node(num_cpus=1, object_store_memory=STORE, include_dashboard=False, _system_config=soon)
        yield made
        assert not list(elsewhere.iterdir()), "a relative path was taken from the node's folder"
    finally:
        made.shutdown()


@dataclass
class Command:
    """`fusionx precompute` under way, in the folder of its output."""

    output: Path
    process: ForkedCommand

    def parts(self) -> int:
        return len(list(self.output.glob("logits/*/part-*.parquet")))

    def has_made(self, count: int) -> None:
        wait_until(lambda: self.parts() >= count or self.process.poll() is not None, f"{count} parts are there")
        assert self.process.poll() is None, self.process.communicate()[1]

    def ends(self) -> tuple[int, str]:
        _, log = self.process.communicate(timeout=DEADLINE)
        return self.process.returncode, log


@pytest.fixture
def precompute(fakes: Any, expected: tuple[Path, dict[str, str]], tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Starts the command on the given Ray; its output is a relative path."""
    shutil.copytree(expected[0], tmp_path / "out" / "chunks")
    begun: list[Command] = []

    def start(*sets: str, environment: Mapping[str, str] | None = None) -> Command:
        delays = [f"{model}.delay=0.2" for model in ("target", "sources.coder")]
        options = [*delays, "executor.kind=ray", "executor.object_store_mb=80", "precompute.workers=2", *sets]
        words = fakes.command(Path("out"), "precompute", *options)
        for name in ("fusionx", "transformers", "tokenizers"):  # a user's own, which Ray would have its workers import
            (tmp_path / f"{name}.py").write_text("raise ImportError('a file of the user was imported')")
        process = ForkedCommand(*words, folder=tmp_path, environment={"WHO_CALLS": "tests", **(environment or {})})
        begun.append(Command(tmp_path / "out", process))
        return begun[-1]

    yield start
    for command in begun:
        command.process.kill()
        command.process.wait()


@pytest.mark.slow
def test_a_worker_process_and_then_a_whole_node_are_lost(
    cluster: Any, precompute: Callable[..., Command], expected: tuple[Path, dict[str, str]], part_hashes: Any
) -> None:
    nodes = [Node(cluster.head_node), Node(cluster.add_node(num_cpus=1, object_store_memory=STORE))]
    command = precompute(f"executor.address={cluster.address}", "executor.env=[WHO_CALLS]")
    command.has_made(2)
    wait_until(lambda: any(node.workers() for node in nodes), "a worker runs")
    worker = next(pid for node in nodes for pid in node.workers())
    check_environment(worker)
    os.kill(worker, signal.SIGKILL)
    command.has_made(8)
    assert command.parts() < len(expected[1]) - 6
    cluster.remove_node(nodes[1].node, allow_graceful=False)
    code, log = command.ends()
    assert code == 0, log
    assert f"[precompute] a worker begins on {os.uname().nodename}" in log
    assert part_hashes(command.output / "logits") == expected[1]


@pytest.mark.slow
def test_the_command_is_killed_then_interrupted_then_called_again(
    cluster: Any, precompute: Callable[..., Command], expected: tuple[Path, dict[str, str]], part_hashes: Any
) -> None:
    """Begun on a cluster, gone on with on a Ray of its own, ended on the same cluster."""
    killed = precompute(f"executor.address={cluster.address}")
    killed.has_made(3)
    killed.process.kill()
    killed.process.communicate()
    made = part_hashes(killed.output / "logits", "part-*.parquet")

    interrupted = precompute("executor.num_cpus=2")
    interrupted.has_made(len(made) + 3)
    tree = descendants(interrupted.process.pid)
    assert any("raylet" in command_line(pid) for pid in tree), "it does not join the cluster that runs beside it"
    os.killpg(interrupted.process.pid, signal.SIGINT)  # as a terminal does
    code, log = interrupted.ends()
    assert code == EXIT_STOPPED, log
    assert "finished parts are kept" in log
    assert "run the same command again" in log
    assert "Traceback" not in log
    wait_until(lambda: not any(map(alive, tree)), "Ray's processes are gone")
    assert interrupted.parts() < len(expected[1]) - 6

    code, log = precompute(f"executor.address={cluster.address}").ends()
    assert code == 0, log
    found = part_hashes(killed.output / "logits")
    assert found == expected[1]
    assert made.items() <= found.items()


@pytest.mark.slow
def test_one_machine_is_announced_to_go_one_worker_crawls_and_the_object_store_is_full(
    cluster: Any, precompute: Callable[..., Command], expected: tuple[Path, dict[str, str]], part_hashes: Any
) -> None:
    leaving = Node(cluster.add_node(num_cpus=1, object_store_memory=STORE))
    staying = Node(cluster.head_node)
    with filled_store(cluster.address):
        command = precompute(f"executor.address={cluster.address}")
        command.has_made(2)
        wait_until(lambda: bool(leaving.workers() and staying.workers()), "both machines have a worker")
        with crawling(staying.workers()[0]):
            notice = (
                "--reason=DRAIN_NODE_REASON_PREEMPTION",
                "--reason-message=spot",
                "--deadline-remaining-seconds=3",
            )
            ray("drain-node", f"--address={cluster.address}", f"--node-id={leaving.node.node_id}", *notice)
            time.sleep(3)
            cluster.remove_node(leaving.node, allow_graceful=False)
            command.has_made(6)
        code, log = command.ends()
    assert code == 0, log
    assert part_hashes(command.output / "logits") == expected[1]


@pytest.mark.slow
def test_the_head_is_killed_and_the_command_is_called_again_without(
    fakes: Any, precompute: Callable[..., Command], expected: tuple[Path, dict[str, str]], part_hashes: Any
) -> None:
    """Ray's books are lost with it; what counts is on the disk."""
    from ray.cluster_utils import Cluster

    head = Cluster()
    try:
        head.add_node(num_cpus=2, object_store_memory=STORE, include_dashboard=False)
        soon = {"RAY_gcs_rpc_server_reconnect_timeout_s": "5"}
        command = precompute(f"executor.address={head.address}", environment=soon)
        command.has_made(3)
        head.remove_node(head.head_node, allow_graceful=False)
        code, log = command.ends()
    finally:
        head.shutdown()
    assert code == 1, log
    assert "GCS may have been killed" in log
    made = part_hashes(command.output / "logits", "part-*.parquet")
    assert 3 <= len(made) < len(expected[1])
    fakes.run(command.output, "precompute")
    found = part_hashes(command.output / "logits")
    assert found == expected[1]
    assert made.items() <= found.items()


def ray(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ray.scripts.scripts", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=True)


@contextmanager
def filled_store(address: str) -> Iterator[None]:
    """Another program of the cluster holds most of the shared memory of the machine that it finds itself on."""
    program = f"""
import numpy, ray
ray.init("{address}", logging_level="ERROR", log_to_driver=False)
kept = [ray.put(numpy.zeros({STORE // 20}, numpy.uint8)) for _ in range(18)]
print("filled", flush=True)
input()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as other:  # type: ignore[call-overload]
        try:
            assert other.stdout.readline() == "filled\n"
            yield
        finally:
            other.kill()


@contextmanager
def crawling(pid: int) -> Iterator[None]:
    """The process stands still for nine tenths of the time."""
    ended = threading.Event()

    def hold_up() -> None:
        with suppress(ProcessLookupError):
            while not ended.wait(0.05):
                os.kill(pid, signal.SIGSTOP)
                ended.wait(0.45)
                os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=hold_up)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def check_environment(worker: int) -> None:
    """It has the variables that the config names, and the checkout's own code."""
    environment = dict(line.split("=", 1) for line in Path(f"/proc/{worker}/environ").read_text().split("\0") if line)
    assert environment["WHO_CALLS"] == "tests"
    shipped = Path(environment["PYTHONPATH"].split(":")[0]) / "fusionx" / "precompute"
    assert (shipped / "config.py").is_file(), "the checkout is shipped"
    assert not shipped.is_symlink()


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE:g} s: {what}"
        time.sleep(0.01)


def descendants(pid: int) -> list[int]:
    """Processes below `pid`, as /proc has them."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has just ended
        children.setdefault(parent, []).append(int(entry.parent.name))
    found, todo = [], [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def alive(pid: int) -> bool:
    return command_line(pid) != ""
