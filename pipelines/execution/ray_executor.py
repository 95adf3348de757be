"""The executor `ray`: Ray Data's actor pool, on this machine or a cluster. The only file that imports ray.

Ray is imported where it is used, and started when the first job is there: a run that finds everything done needs none.
How often a unit may be tried is said by `pipelines.execution.job_queue`, what a worker does with it by
`pipelines.execution.worker_host`.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from itertools import chain, count, islice, takewhile
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

import fusionx
from fusionx.contract.errors import ConfigError, FusionXError, IncompleteError
from fusionx.contract.shards.parts import PartEntry
from fusionx.contract.stage import Resources, Stage, Unit, Worker
from fusionx.pipelines.config import ExecutorConfig
from fusionx.pipelines.execution.job_queue import Asker, Dealt, JobQueue, Refusal, unit_name
from fusionx.pipelines.execution.watchdog import Watchdog
from fusionx.pipelines.execution.worker_host import Hands, Job, JobOutcome, WorkerHost, attempt, load_worker

_AHEAD = 4
"""Jobs that Ray knows per place in the pool: bounds what is held of a corpus that is read as it is needed."""
_PATIENCE = 0.5
"""Seconds that a replica keeps a source's model for units that another of its threads has just taken."""
_NO_JOB = -1
"""In the place of a job's number: a ticket that nothing was left for."""
_RAY_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""No calls home; and a worker that reserves no GPU still sees the machine's, as it would in this process."""


class RayExecutor:
    """Ray Data's actor pool; hand-out, back-pressure, restarts and repeats are Ray's.

    What Ray Data maps is a stream of tickets, numbers that cost nothing; who has one and is free fetches a job for it
    from a `JobQueue` on the driver's machine. So the jobs may come from a generator of unknown length, no more than a
    bounded number of them exist at once, and each is counted however often Ray repeats it.
    """

    def __init__(self, config: ExecutorConfig) -> None:
        self._config = config
        self._started = False

    def map(self, stages: Sequence[Stage], jobs: Iterable[Job]) -> Iterator[JobOutcome]:
        jobs = iter(jobs)
        needs = stages[0].resources
        first = list(islice(jobs, needs.workers))
        if not first:
            return
        self._start()
        import ray

        self._check_room(stages[0].name, needs)
        queue = self._queue(len(first), needs.concurrency)
        feed = _Feed(queue, chain(first, jobs), room=_AHEAD * len(first) * needs.concurrency)
        try:
            for batch in self._outcomes(stages, queue, len(first)):
                for number, packed in zip(batch["job"], batch["outcome"], strict=True):
                    if number != _NO_JOB:
                        yield feed.finished(int(number)), pickle.loads(packed)
        except (ray.exceptions.RayError, RuntimeError) as error:
            cause = (str(error).strip() or type(error).__name__).splitlines()[-1]
            feed.close()
            for job in feed.under_way():
                yield job, IncompleteError(f"Ray ended before this unit was done: {cause}")
        finally:
            feed.close()
        feed.reraise()

    def _queue(self, workers: int, at_once: int) -> Any:
        """On the driver's machine: if that is lost, so is the run; any other may go."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(JobQueue).options(num_cpus=0, scheduling_strategy=here)
        return actor.remote(self._config.retries, workers, at_once)

    def _outcomes(self, stages: Sequence[Stage], queue: Any, workers: int) -> Iterable[dict[str, Any]]:
        import ray

        needs = stages[0].resources
        pool = ray.data.ActorPoolStrategy(
            size=workers,
            max_tasks_in_flight_per_actor=needs.concurrency,  # none waits for a slow worker while another is idle
            max_concurrent_calls_per_actor=needs.concurrency,
            enable_true_multi_threading=needs.concurrency > 1,
        )
        tickets = ray.data.from_items([0]).map_batches(partial(_tickets, queue=queue), num_cpus=0)
        results = tickets.map_batches(
            _StageActor,
            fn_constructor_args=(list(stages), queue, os.getcwd(), self._config),
            batch_size=1,
            compute=pool,
            num_cpus=needs.num_cpus,
            num_gpus=needs.num_gpus or None,
            resources=needs.custom or None,
        )
        return results.iter_batches(batch_size=None, prefetch_batches=0)

    def _check_room(self, name: str, needs: Resources) -> None:
        """A local Ray would wait forever for a worker that no machine can hold; a cluster may grow."""
        import ray

        wanted = {"CPU": needs.num_cpus, "GPU": needs.num_gpus, **needs.custom}
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if any(all(machine.get(key, 0) >= need for key, need in wanted.items()) for machine in machines):
            return
        asked = ", ".join(f"{need:g} {key}" for key, need in wanted.items() if need)
        if self._config.address is not None:
            print(f"[{name}] waiting: no machine of the cluster has {asked} yet", file=sys.stderr, flush=True)
            return
        there = ray.cluster_resources()
        raise ConfigError(
            f"One worker of {name} needs more than this machine's Ray has.",
            field="threads, num_gpus or resources of the stage",
            found=asked,
            expected="at most " + ", ".join(f"{there.get(key, 0):g} {key}" for key, need in wanted.items() if need),
            remedy="lower it, raise executor.num_cpus, or join a cluster with executor.address",
        )

    def _start(self) -> None:
        if self._started:
            return
        _require_ray()
        import ray

        for name, value in _RAY_SETTINGS.items():
            os.environ.setdefault(name, value)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        if not ray.is_initialized():
            with _own_signals(), _neutral_folder():
                _connect(self._init_arguments())
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.target_max_block_size = 1  # a ticket, and an outcome, goes on as soon as it is there
        context.execution_no_progress_timeout_s = -1  # how long a unit may take is said per unit
        self._started = True

    def _init_arguments(self) -> dict[str, Any]:
        quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": True}
        if self._config.address is not None:
            environment = {key: value for key, value in os.environ.items() if self._is_passed_on(key)}
            shipped = {
                "py_modules": [str(Path(fusionx.__file__).parent)],  # its links arrive as folders
                "excludes": ["**/__pycache__"],
                "env_vars": {**_RAY_SETTINGS, **environment},
            }
            return {**quiet, "address": self._config.address, "runtime_env": shipped}
        return {
            **quiet,
            "address": "local",  # without it, Ray joins whatever cluster it finds on this machine
            "num_cpus": self._config.num_cpus,
            "object_store_memory": self._config.object_store_mb << 20,
            "include_dashboard": False,
        }

    def _is_passed_on(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self._config.env)

    def close(self) -> None:
        if self._started:
            import ray

            ray.shutdown()
            self._started = False


def _require_ray() -> None:
    try:
        import ray.data  # noqa: F401
    except ImportError:
        raise ConfigError(
            "The executor 'ray' needs the package ray[data].",
            field="executor.kind",
            found="ray",
            expected="an installed ray, or 'inline'",
            remedy="pip install 'ray[data]', or --set executor.kind=inline",
        ) from None


def _connect(arguments: dict[str, Any]) -> None:
    import ray

    try:
        ray.init(**arguments)
    except ConnectionError as error:
        raise ConfigError(
            "There is no Ray cluster to join.",
            field="executor.address",
            found=f"{arguments.get('address')} ({str(error).splitlines()[0]})",
            expected="the address of a running head: 'auto' on its machines, or host:port",
            remedy="start one with `ray start --head`, or leave executor.address out for a local Ray",
        ) from None


@contextmanager
def _neutral_folder() -> Iterator[None]:
    """Ray puts the folder that it is started in first on its workers' import path; a user's own torch.py is not ours.

    Workers go back to the command's folder themselves, see `_StageActor`.
    """
    folder = os.getcwd()
    os.chdir("/")
    try:
        yield
    finally:
        os.chdir(folder)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray puts handlers of its own in place, which end the process with a stack trace; ours stay."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Feed:
    """Hands jobs to the queue from a thread of the driver, `room` of them ahead of their outcomes at most."""

    def __init__(self, queue: Any, jobs: Iterator[Job], room: int) -> None:
        self._queue = queue
        self._room = threading.Semaphore(room)
        self._under_way: dict[int, Job] = {}
        self._closed = False
        self._error: Exception | None = None
        threading.Thread(target=self._run, args=(jobs,), daemon=True).start()

    def _run(self, jobs: Iterator[Job]) -> None:
        try:
            for number, job in enumerate(jobs):
                self._room.acquire()
                if self._closed:
                    return
                self._under_way[number] = job
                _answer(self._queue.add.remote(pickle.dumps(job)))
        except Exception as error:  # of reading the corpus or checking a part; raised again in the driver's own thread
            self._error = error
        finally:
            if not self._closed:
                self._queue.close.remote()

    def finished(self, number: int) -> Job:
        """The job whose outcome is here."""
        self._queue.forget.remote(number)
        self._room.release()
        return self._under_way.pop(number)

    def under_way(self) -> list[Job]:
        """What has no outcome yet."""
        return list(self._under_way.values())

    def close(self) -> None:
        self._closed = True
        self._room.release()

    def reraise(self) -> None:
        """The error that ended the jobs early, once all that had begun is done."""
        if self._error is not None:
            raise self._error


def _tickets(_: dict[str, np.ndarray], queue: Any) -> Iterator[dict[str, np.ndarray]]:
    """Counts the queue's tickets as its jobs come. Ray may start it anew at any time; it says the same again."""
    for ticket in takewhile(lambda ticket: _answer(queue.has.remote(ticket)), count()):
        yield {"ticket": np.array([ticket])}


def _answer(call: Any) -> Any:
    """What the queue says to a call; until then the thread waits."""
    import ray

    return ray.get(call)


class _StageActor:
    """One replica: holds one model at a time, and makes parts."""

    def __init__(self, stages: list[Stage], queue: Any, folder: str, config: ExecutorConfig) -> None:
        if os.path.isdir(folder):  # relative paths mean what they mean to the driver, wherever Ray starts its workers
            os.chdir(folder)
        self._stages = stages
        self._queue = queue
        self._watchdog = Watchdog(config.deadline)
        self._name = uuid4().hex
        self._hands = Hands()
        self._host = WorkerHost(self._load, _PATIENCE if stages[0].resources.concurrency > 1 else 0.0)
        if config.address is not None:  # which Ray shows on the driver, with the address of the machine
            devices = os.environ.get("CUDA_VISIBLE_DEVICES")
            place = os.uname().nodename + (f", GPU {devices}" if devices else "")
            print(f"[{stages[0].name.split('/')[0]}] a worker begins on {place}", file=sys.stderr, flush=True)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        outcomes = [self._outcome(int(ticket)) for ticket in batch["ticket"]]
        return {
            "job": [number for number, _ in outcomes],
            "outcome": [pickle.dumps(outcome) for _, outcome in outcomes],
        }

    def _outcome(self, ticket: int) -> tuple[int, PartEntry | FusionXError | None]:
        with self._hands.holding(partial(self._take, ticket)) as dealt:
            if isinstance(dealt, Refusal):
                return _NO_JOB, None
            stage, unit = pickle.loads(dealt.job)
            # A unit that lost its worker goes alone the next time, so that no neighbour dies of it twice.
            with self._host.hold(stage, alone=dealt.lost > 0) as worker:
                return dealt.number, self._attempt(worker, unit, unit_name(dealt.number))

    def _take(self, ticket: int, in_hand: int, done: int) -> Dealt | Refusal:
        asker = Asker(self._name, in_hand, done, self._host.units_needed)
        answer: Dealt | Refusal = _answer(self._queue.take.remote(ticket, asker))
        return answer

    def _attempt(self, worker: Worker | FusionXError, unit: Unit, name: str) -> PartEntry | FusionXError:
        if isinstance(worker, FusionXError):
            return worker
        refused = self._begin(name, False, "The worker was lost while making this unit")
        if refused is not None:
            return refused
        with self._watchdog.watching():
            outcome = attempt(worker, unit)
        self._queue.end.remote(name)
        return outcome

    def _load(self, number: int) -> Worker | FusionXError:
        stage = self._stages[number]
        name = f"loading {number}"
        refused = self._begin(name, True, f"The workers of {stage.name} were lost while loading")
        if refused is not None:
            return refused
        with self._watchdog.watching():
            worker = load_worker(stage)
        self._queue.end.remote(name)
        return worker

    def _begin(self, name: str, at_once: bool, problem: str) -> IncompleteError | None:
        lost = _answer(self._queue.begin.remote(name, at_once))
        if lost is None:
            return None
        return IncompleteError(
            f"{problem}, {lost} times.",
            found="a process that was killed, ran out of memory, crashed or was past executor.deadline (see Ray's log)",
            remedy="give workers more memory or fewer at once, or more time, then run the same command again",
        )
