"""What a benchmark's name stands for: a suite of ours, or any task, group, tag or file of lm-evaluation-harness.

The harness finds its 14,000 names by reading every one of its files, which takes ten seconds; so a suite reads its own
folders only, a user's folder is looked at first, and the whole is read once per process and only where it is needed.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from fusionx.contract.errors import ConfigError
from fusionx.contract.extras import import_extra
from fusionx.eval.config import HarnessConfig

EXTRA = ("harness", "eval.benchmarks")


@dataclass(frozen=True)
class Suite:
    """One benchmark.

    Attributes:
        folders: where the harness keeps its task files; reading only these takes milliseconds, reading all ten seconds.
        few_shot: worked examples in front of every question.
        prefix: what the harness puts before the benchmark's own task names.
        tasks: the harness' names; all of the folders' where empty.
    """

    folders: tuple[str, ...]
    few_shot: int
    prefix: str = ""
    tasks: tuple[str, ...] = ()


SUITES: dict[str, Suite] = {
    "cs": Suite(
        folders=("arc", "super_glue/boolq", "hellaswag", "openbookqa", "winogrande"),
        few_shot=0,
        tasks=("arc_easy", "arc_challenge", "boolq", "hellaswag", "openbookqa", "winogrande"),
    ),
    "bbh": Suite(folders=("bbh/cot_fewshot",), few_shot=3, prefix="bbh_cot_fewshot_"),
    "mmlu": Suite(folders=("mmlu/default",), few_shot=5, prefix="mmlu_"),
}


@dataclass(frozen=True)
class Found:
    """One task by its name, or several that only the harness can take apart.

    Attributes:
        spec: what the harness loads it by: a name or a file.
        manager: the harness' own, which knows the spec.
        definition: of the one task of that name; None for a file, and for a group that defines tasks of its own.
        local_name: what the task's local data are called: its name, but for that of its group before it.
        hub_data: ids of the data sets that its tasks have from the hub, as far as their definitions say.
        few_shot: the suite's number; None: as the task says.
    """

    spec: str
    manager: Any
    definition: Mapping[str, Any] | None
    local_name: str
    hub_data: frozenset[str] = frozenset()
    few_shot: int | None = None


def find_tasks(benchmark: str, config: HarnessConfig) -> list[Found]:
    """What `benchmark` stands for, in the harness' order.

    Raises:
        ConfigError: lm-evaluation-harness is not installed, or there is nothing of that name.
    """
    import_extra("lm_eval.tasks", *EXTRA)
    own = None if config.include_path is None else _include_manager(config.include_path)
    if own is not None and (found := _taken_apart(own, benchmark, whole_groups=False)):
        return _in_group(found, benchmark)
    if benchmark in SUITES:
        suite = SUITES[benchmark]
        manager = _suite_manager(suite.folders)
        names = suite.tasks or manager.all_subtasks
        return [_one(manager, name, name.removeprefix(suite.prefix), suite.few_shot) for name in names]
    if is_task_file(benchmark):
        return [_of_file(Path(benchmark), config)]
    manager = _whole_manager(config.include_path)
    if found := _taken_apart(manager, benchmark, whole_groups=True):
        return _in_group(found, benchmark)
    near = difflib.get_close_matches(benchmark, sorted({*SUITES, "me", *manager.all_tasks}), n=3)
    raise ConfigError(
        "There is no such benchmark.",
        field="eval.benchmarks",
        found=benchmark,
        expected=f"perhaps {', '.join(near)}" if near else "cs, bbh, mmlu, me, or a name of lm-evaluation-harness",
        remedy="`lm-eval ls tasks` lists the harness' names; eval.harness.include_path adds a folder of your own",
    )


def is_task_file(benchmark: str) -> bool:
    return benchmark.endswith((".yaml", ".yml"))


def _taken_apart(manager: Any, name: str, whole_groups: bool) -> list[Found] | None:
    """The tasks behind a name, or None where a name is not the manager's.

    `whole_groups`: a group with definitions of its own is left whole, instead of being none of the manager's.
    """
    entry = manager.task_index.get(name)
    if entry is None:
        return None
    match entry.kind.name:
        case "GROUP":
            members = entry.cfg["task"]
            if not _is_list_of_names(entry.cfg):
                return [Found(name, manager, None, name, hub_data(entry.cfg, manager))] if whole_groups else None
        case "TAG":
            members = sorted(entry.tags)
        case _:
            return [_one(manager, name, name)]
    apart = [_taken_apart(manager, member, whole_groups) for member in members]
    return None if None in apart else [one for found in apart if found for one in found]


def _in_group(found: Sequence[Found], group: str) -> list[Found]:
    return [replace(one, local_name=one.local_name.removeprefix(f"{group}_")) for one in found]


def _is_list_of_names(group: Mapping[str, Any]) -> bool:
    """Whether a group only names its members: whatever else it says would have to be told to each of them."""
    known = {field.name for field in fields(import_extra("lm_eval.config.group", *EXTRA).GroupConfig)}
    members = group["task"]
    return set(group) <= {*known, "tag"} and isinstance(members, list) and all(isinstance(m, str) for m in members)


def _one(manager: Any, name: str, local_name: str, few_shot: int | None = None) -> Found:
    definition = manager.task_index[name].cfg
    return Found(name, manager, definition, local_name, hub_data(definition, manager), few_shot)


def hub_data(definition: Mapping[str, Any], manager: Any) -> frozenset[str]:
    """Ids of the data sets that a task, or the tasks of a group, have from the hub.

    None of a task that says itself which files it reads, and of one that is a class: what that reads is not known.
    """
    members = definition.get("task")
    if isinstance(members, list):
        return frozenset().union(*(_hub_data_of_member(member, manager) for member in members))
    own = definition.get("dataset_kwargs") or {}
    place = definition.get("dataset_path")
    local = place is None or "data_files" in own or "data_dir" in own or Path(str(place)).is_dir()
    return frozenset() if local else frozenset({str(place)})


def _hub_data_of_member(member: str | Mapping[str, Any], manager: Any) -> frozenset[str]:
    """A member of a group is a name, or a name with changes to what it stands for, or a definition."""
    changes = {"task": member} if isinstance(member, str) else member
    known = manager.task_index.get(changes.get("group", changes.get("task")))
    if known is None:
        return hub_data(changes, manager)
    if known.kind.name == "TAG":
        return hub_data({"task": sorted(known.tags)}, manager)
    changed = {key: value for key, value in changes.items() if key not in ("group", "task")}
    return hub_data({**known.cfg, **changed}, manager)


def _of_file(path: Path, config: HarnessConfig) -> Found:
    if not path.is_file():
        raise ConfigError("There is no such task file.", field="eval.benchmarks", file=path)
    index = import_extra("lm_eval.tasks._index", *EXTRA).TaskIndex
    try:
        entry = index.entry_from_path(path)
        definition = import_extra("lm_eval.tasks._yaml_loader", *EXTRA).load_yaml(path, resolve_func=False)
    except Exception as error:  # yaml's and the harness' own are of many kinds
        raise _no_task(path, f"{type(error).__name__}: {' '.join(str(error).split()):.200}") from None
    if entry is None:
        raise _no_task(path, "neither 'task' nor 'group'")
    # A group may name any task.
    manager = _whole_manager(config.include_path) if entry.kind.name == "GROUP" else _include_manager(None)
    return Found(str(path), manager, None, entry.name, hub_data(definition, manager))


def _no_task(path: Path, found: str) -> ConfigError:
    return ConfigError(
        "A task file defines no task.",
        field="eval.benchmarks",
        file=path,
        found=found,
        expected="lm-evaluation-harness' YAML, with 'task' or 'group'",
    )


@lru_cache(maxsize=4)
def _suite_manager(folders: tuple[str, ...]) -> Any:
    tasks = import_extra("lm_eval.tasks", *EXTRA)
    root = Path(tasks.__file__).parent
    return tasks.TaskManager(include_path=[root / folder for folder in folders], include_defaults=False)


def _include_manager(include_path: str | None) -> Any:
    if include_path is not None and not Path(include_path).is_dir():
        raise ConfigError("There is no such folder.", field="eval.harness.include_path", file=include_path)
    return import_extra("lm_eval.tasks", *EXTRA).TaskManager(include_path=include_path, include_defaults=False)


@lru_cache(maxsize=1)
def _whole_manager(include_path: str | None) -> Any:
    return import_extra("lm_eval.tasks", *EXTRA).TaskManager(include_path=include_path)
