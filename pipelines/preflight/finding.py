"""One thing that was looked at, and what was found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fusionx.contract.errors import FusionXError

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """`subject`: what was looked at. `remedy`: what helps, where something is to be done."""

    level: Level
    subject: str
    said: str
    remedy: str = ""

    @classmethod
    def of(cls, subject: str, error: FusionXError) -> Finding:
        """An error as a problem, on one line."""
        details = [f"{name} {error.details[name]}" for name in ("found", "expected") if name in error.details]
        said = " ".join([error.problem.rstrip("."), *([f"({'; '.join(details)})"] if details else [])])
        return cls("problem", subject, " ".join(said.split()), error.details.get("remedy", ""))

    def line(self) -> str:
        remedy = f"\n{'':<9}remedy: {self.remedy}" if self.remedy else ""
        return f"{self.level:<8} {self.subject:<16} {self.said}{remedy}"
