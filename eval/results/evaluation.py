"""The result of evaluating one model, as read back from its JSON file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from fusionx.contract.errors import DamageError
from fusionx.contract.files.sealed import read_sealed

T = TypeVar("T")
Number = int | float
"""What JSON has. `float` alone would turn every whole number that is read into 1.0, and the file's bytes with it."""
_REMEDY = "delete it and run `fusionx eval` again"


def read_json(cls: type[T], path: str | Path, otherwise: str) -> T:
    """A sealed file of `eval` as a dataclass; every value must have the type that its field says.

    Raises:
        DataError: the file is missing; DamageError: it is damaged, or something else, which `otherwise` says.
    """
    content = read_sealed(path, _REMEDY)
    try:
        return TypeAdapter(cls).validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        problem, *_ = error.errors(include_url=False)
        raise DamageError(
            otherwise,
            file=path,
            field=".".join(map(str, problem["loc"])) or None,
            found=problem["msg"],
            remedy=_REMEDY,
        ) from None


@dataclass(frozen=True)
class Evaluation:
    """One model over the held-out text and the tasks; see `eval.evaluate.evaluate_model` for the fields."""

    model: str
    weights_digest: str
    config_digest: str
    data_digest: str
    domains: dict[str, dict[str, Number]]
    overall: dict[str, Any]
    documents: dict[str, list[list[Number]]]
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    items: dict[str, list[Number]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    settings_digest: str = ""
    continuations: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Evaluation:
        """From the dictionary that `evaluate_model` returns."""
        return cls(**content)

    @classmethod
    def load(cls, path: str | Path) -> Evaluation:
        """Reads an evaluation's JSON file.

        Raises:
            DataError: the file is missing, cut short or something else.
        """
        return read_json(cls, path, "The file is not an evaluation.")

    def is_share(self, task: str) -> bool:
        """Whether a task's score is a share of right answers: the mean of items from 0 to 1, and more is better."""
        items = self.items.get(task, [])
        return bool(items) and self.higher_is_better(task) and all(0 <= item <= 1 for item in items)

    def higher_is_better(self, task: str) -> bool:
        return bool(self.tasks[task].get("higher_is_better", True))

    @property
    def skill_accuracy(self) -> float | None:
        """Mean share of right answers over tasks, every task counting the same; None without such tasks."""
        shares = [task["score"] for name, task in self.tasks.items() if self.is_share(name)]
        return sum(shares) / len(shares) if shares else None
