"""The scripts for Slurm, run as they are; what they ask of a cluster, stand-ins for its commands do on this machine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml
from training_process import free_port

from fusionx.contract.errors import EXIT_STOPPED

SCRIPTS = Path(__file__).resolve().parent.parent.parent / "pipelines" / "cluster"
PYTHONS = Path(sys.executable).parent
DEADLINE = 600.0  # a script of several commands, beside other tests on few cores

# A step's tasks, their variables, and how srun ends them and what it returns, as the manual and Slurm's source say.
# Every node is this machine. Each task leads a process group, which stands for Slurm's container of its processes.
SRUN = f"""#!{sys.executable}
import argparse, os, signal, subprocess, sys
from pathlib import Path

job = os.environ
nodes = job["SLURM_JOB_NODELIST"].split(",")
parser = argparse.ArgumentParser("srun", allow_abbrev=False)
parser.add_argument("-N", "--nodes", type=int, default=len(nodes))
parser.add_argument("-n", "--ntasks", type=int)
parser.add_argument("--ntasks-per-node", type=int, default=int(job.get("SLURM_NTASKS_PER_NODE", 1)))
parser.add_argument("-w", "--nodelist", default="")
parser.add_argument("-x", "--exclude", default="")
parser.add_argument("-c", "--cpus-per-task", type=int, default=1)
parser.add_argument("-K", "--kill-on-bad-exit", type=int, nargs="?", const=1, default=0)
parser.add_argument("-W", "--wait", type=int, default=0)
parser.add_argument("command", nargs=argparse.REMAINDER)
options = parser.parse_args()

wanted = options.nodelist.split(",") if options.nodelist else nodes
taken = [node for node in nodes if node in wanted and node not in options.exclude.split(",")][: options.nodes]
each = options.ntasks // len(taken) if options.ntasks else options.ntasks_per_node
if len(taken) < options.nodes or each * options.cpus_per_task > int(job["SLURM_CPUS_ON_NODE"]):
    sys.exit("srun: error: Unable to create step: Requested node configuration is not available")
with (Path(sys.argv[0]).parent / "calls").open("a") as calls:
    print("srun", ",".join(taken), *options.command, file=calls)

size = str(len(taken) * each)
tasks = {{}}
for rank in range(int(size)):
    place = {{"SLURM_PROCID": rank, "SLURM_LOCALID": rank % each, "SLURM_NODEID": rank // each}}
    place |= {{"SLURM_NTASKS": size, "SLURM_NPROCS": size, "SLURM_STEP_NUM_TASKS": size}}
    place |= {{"SLURM_STEP_NUM_NODES": len(taken), "SLURMD_NODENAME": taken[rank // each]}}
    environment = {{**job, **{{name: str(value) for name, value in place.items()}}}}
    process = subprocess.Popen(options.command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
    tasks[process.pid] = process

def end(number):
    for pid in tasks:
        os.killpg(pid, number)

signal.signal(signal.SIGALRM, lambda *_: end(signal.SIGKILL))
second = float(job.get("STAND_IN_SECOND", 1))
worst_code = worst_signal = 0
first = True
while tasks:
    pid, status = os.wait()
    del tasks[pid]
    code = os.waitstatus_to_exitcode(status)
    bad_before = worst_code or worst_signal
    worst_code, worst_signal = max(worst_code, code), max(worst_signal, -code)
    if code and not bad_before and options.kill_on_bad_exit:
        end(signal.SIGTERM)
        signal.setitimer(signal.ITIMER_REAL, 30 * second)  # KillWait
    elif first and options.wait:
        signal.setitimer(signal.ITIMER_REAL, options.wait * second)
    first = False
sys.exit(128 + worst_signal if worst_signal else worst_code)
"""

SCONTROL = """#!/usr/bin/env bash
case "$1 $2" in
    "show hostnames") tr , '\\n' <<<"$3" ;;
    requeue*) echo "requeue $2" >>"${0%/*}/calls" ;;
    *) exit 1 ;;
esac
"""


class Cluster:
    """Slurm, as far as the scripts see it. Jobs are submitted in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "slurm.out"
        self._bin = folder / "slurm"
        self._bin.mkdir(parents=True)
        program(self._bin / "srun", SRUN)
        program(self._bin / "scontrol", SCONTROL)
        own = folder / ".venv" / "bin"
        own.mkdir(parents=True)
        (own / "activate").write_text(f'PATH="{own}:{PYTHONS}:$PATH"\n')

    def calls(self) -> list[str]:
        """What was asked of it, in order; of an srun its nodes and its command."""
        file = self._bin / "calls"
        return file.read_text().splitlines() if file.exists() else []

    @contextmanager
    def job(self, script: str, *arguments: str, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
        """A batch script that runs on the job's first node; at the end of the context all that it started is killed.

        Only its own commands, and what the folder's `.venv` brings, are found.
        """
        words = ["bash", str(SCRIPTS / script), *arguments]
        slurm = {"SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_ON_NODE": "2"}
        slurm |= {"SLURM_SUBMIT_DIR": str(self.folder), "PATH": f"{self._bin}:{os.defpath}", **variables}
        with self.log.open("a") as log:
            process = subprocess.Popen(
                words, cwd="/", env={**os.environ, **slurm}, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            yield process
        finally:
            while left := self.processes():
                for pid in left:
                    kill(pid, signal.SIGKILL)
                process.poll()  # it would stay in /proc until somebody asked how it ended
                time.sleep(0.01)
            process.wait()

    def end_of(self, job: subprocess.Popen[bytes]) -> int:
        """The script's exit code."""
        wait_until(lambda: job.poll() is not None, "the script ends", self.log)
        return int(job.returncode)

    def run(self, script: str, *arguments: str, **variables: str) -> int:
        with self.job(script, *arguments, **variables) as job:
            return self.end_of(job)

    def processes(self, *names: str) -> dict[int, dict[str, str]]:
        """The variables of those that the job started and that have all of `names`, by process."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*/environ"):
            try:
                lines = entry.read_text(errors="replace").split("\0")
            except OSError:
                continue  # it has just ended, or is another user's
            variables = dict(line.split("=", 1) for line in lines if "=" in line)
            if variables.get("SLURM_SUBMIT_DIR") == str(self.folder) and variables.keys() >= {*names}:
                found[int(entry.parent.name)] = variables
        return found


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def kill(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def wait_until(condition: Callable[[], bool], what: str, log: Path) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE:g} s: {what}\n{log.read_text()}"
        time.sleep(0.1)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path / "submitted")


@pytest.fixture
def config(world: Any, cluster: Cluster) -> dict[str, Any]:
    """That of the tiny world, as users write it: the output is a relative path, and Ray the executor."""
    made = yaml.safe_load(world.config.read_text())
    made["output"] = "out"
    made["sources"] = [source for source in made["sources"] if source["id"] == "coder"]
    made["align"] = {"methods": ["walk"]}
    made["train"] = {
        "methods": ["fusionx"],
        "optimizer": {"learning_rate": 1e-3, "batch_size": 4, "epochs": 6},
        "run": {"device": "cpu", "threads": 1, "checkpoint_every": 2, "validate_every": 1000},
    }
    made["eval"] |= {"sources": False, "rivals": {}}
    del made["executor"]
    return made


def write(config: dict[str, Any], cluster: Cluster) -> None:
    (cluster.folder / "run.yaml").write_text(yaml.safe_dump(config))


@pytest.mark.slow
def test_the_data_stages_on_two_nodes(
    world: Any, config: dict[str, Any], cluster: Cluster, part_hashes: Any, tmp_path: Path
) -> None:
    """The same bytes as of one process."""
    pytest.importorskip("ray")
    write(config, cluster)
    port = free_port()
    home = cluster.folder / "home"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text("of an earlier Ray of this user")
    two = {"SLURM_JOB_NODELIST": "localhost,second", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_ON_NODE": "1"}
    two |= {"SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_ID": job_with(port), "HOME": str(home)}
    with (
        TemporaryDirectory(prefix="ray-") as own,  # a short path: Ray's sockets lie there
        cluster.job("ray.sbatch", "run.yaml", "--set", "chunk.part_bytes=3000", RAY_TMPDIR=own, **two) as job,
    ):
        assert cluster.end_of(job) == 0, cluster.log.read_text()
        (inside, *_) = cluster.processes("SLURM_PROCID").values()
        wait_until(lambda: nodes_of(port, inside) == 2, "both nodes are in the Ray", cluster.log)
    asked = [call.split(" --")[0] for call in cluster.calls()]
    assert asked == ["srun localhost hostname", "srun localhost ray start", "srun second ray start"]
    made = cluster.folder / "out"
    for folder in ("chunks", "logits/target", "logits/coder", "aligned/target/tokens", "aligned/target/walk/coder"):
        assert json.loads((made / folder / "manifest.json").read_text())["parts"], folder
    (tmp_path / "run.yaml").write_text((cluster.folder / "run.yaml").read_text())
    inline = ("executor.kind=inline", "chunk.part_bytes=3000")
    for stage in ("chunk", "precompute", "align"):
        type(world)(tmp_path).run(tmp_path / "expected", stage, *inline)
    for folder in ("chunks", "logits", "aligned"):
        assert part_hashes(made / folder) == part_hashes(tmp_path / "expected" / folder)


def job_with(port: int) -> str:
    """The number of a job whose scripts choose this port."""
    return str(1_000_000 + port - 20_000)


def nodes_of(port: int, variables: dict[str, str]) -> int:
    """Machines that are alive in the Ray whose head is at this port, asked with the variables of one of its job."""
    command = [str(PYTHONS / "ray"), "status", "--address", f"127.0.0.1:{port}"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, env=variables)
    active = said.stdout.partition("Active:")[2].partition("Pending:")[0]
    return len(re.findall(r"^ *\d+ node_", active, re.MULTILINE))


@pytest.mark.slow
def test_a_training_of_two_tasks_is_stopped_queued_again_and_evaluated(
    world: Any, config: dict[str, Any], cluster: Cluster
) -> None:
    write(config, cluster)
    for stage in ("chunk", "precompute", "align"):
        type(world)(cluster.folder).run(cluster.folder / "out", stage, "executor.kind=inline")
    identity = job_with(free_port())
    slurm = {"SLURM_JOB_ID": identity, "SLURM_GPUS_ON_NODE": "2"}
    words = ("run.yaml", "--set", "train.seeds=[3]")
    output = cluster.folder / "out"
    (number,) = re.findall(r"^#SBATCH --signal=(\w+)@", (SCRIPTS / "train.sbatch").read_text(), re.MULTILINE)
    with cluster.job("train.sbatch", *words, **slurm) as job:
        wait_until(
            lambda: any(output.glob("train/*/*/*/checkpoints/step-*/state.json")) or job.poll() is not None,
            "a checkpoint is there",
            cluster.log,
        )
        assert job.poll() is None, cluster.log.read_text()
        trainings = [*cluster.processes("SLURM_PROCID", "FUSIONX_MEETING").values()]
        assert sorted(variables["SLURM_PROCID"] for variables in trainings) == ["0", "1"]
        for pid in cluster.processes("SLURM_PROCID"):  # to all of a step's processes, not to the script's own
            kill(pid, signal.Signals[f"SIG{number}"])
        assert cluster.end_of(job) == 0, cluster.log.read_text()
    step = "srun localhost fusionx train run.yaml --set executor.kind=inline --set train.seeds=[3]"
    assert cluster.calls() == [step, f"requeue {identity}"]
    assert not [*output.glob("train/*/*/*/result.json"), *output.glob("report/*")]

    assert cluster.run("train.sbatch", *words, **slurm) == 0, cluster.log.read_text()
    assert "resumed at step" in cluster.log.read_text()
    assert cluster.calls() == [step, f"requeue {identity}", step]
    (result,) = output.glob("train/fusionx/*/seed-3/result.json")
    assert {variables["FUSIONX_MEETING"] for variables in trainings} == {json.loads(result.read_text())["job"]}
    assert (output / "report" / "report.html").stat().st_size > 500


STOPS_LATER = f"until [[ -e left ]]; do sleep 0.05; done; sleep 1; exit {EXIT_STOPPED}"


@pytest.mark.parametrize(
    ("first", "second", "code", "after"),
    [
        pytest.param("exit 0", "exit 0", 0, ["fusionx eval"], id="done"),
        pytest.param(STOPS_LATER, f"touch left; exit {EXIT_STOPPED}", 0, ["requeue 7"], id="stopped one by one"),
        pytest.param("exit 1", "exit 3", 3, [], id="failed"),
        pytest.param("sleep 1000", "exit 3", 128 + signal.SIGKILL, [], id="one failed and the other waits for it"),
    ],
)
def test_what_follows_a_training(first: str, second: str, code: int, after: list[str], cluster: Cluster) -> None:
    """Two tasks that end in certain ways stand in for it."""
    train = f"((SLURM_PROCID)) || {{ {first}; }}\n{second}"
    told = 'echo "fusionx eval" >>slurm/calls'
    fusionx = f"#!/usr/bin/env bash\nif [[ $1 == eval ]]; then {told}; exit; fi\n{train}\n"
    program(cluster.folder / ".venv" / "bin" / "fusionx", fusionx)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "2", "STAND_IN_SECOND": "0.01"}
    assert cluster.run("train.sbatch", "run.yaml", **slurm) == code, cluster.log.read_text()
    assert cluster.calls()[1:] == after
