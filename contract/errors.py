"""The errors a user can meet, each with the exit code that a command ends with.

A message names what a person needs to act: the file, the field, what was found, what was expected, and the remedy.
Mistakes of ours are `assert`s and ordinary exceptions; they keep their traceback.
"""

from __future__ import annotations

EXIT_COMPLETE = 0
EXIT_INCOMPLETE = 1
EXIT_USAGE = 2
EXIT_STOPPED = 75
"""EX_TEMPFAIL of sysexits.h: stopped by a signal; everything is saved, and the same command goes on."""


class FusionXError(Exception):
    """Base of every error that is reported without a traceback."""

    exit_code = EXIT_INCOMPLETE

    def __init__(
        self,
        problem: str,
        *,
        file: object = None,
        field: str | None = None,
        found: object = None,
        expected: object = None,
        remedy: str | None = None,
    ) -> None:
        self.problem = problem
        details = {"file": file, "field": field, "found": found, "expected": expected, "remedy": remedy}
        self.details = {name: str(value) for name, value in details.items() if value is not None}
        super().__init__(problem)

    def __str__(self) -> str:
        return "\n".join([self.problem, *(f"  {name + ':':<10}{value}" for name, value in self.details.items())])

    def __reduce__(self) -> tuple:
        # Errors cross process borders (Ray, process pools); the default reduction would drop the keyword details.
        return (_rebuild, (type(self), self.problem, self.details))


def _rebuild(cls: type[FusionXError], problem: str, details: dict[str, str]) -> FusionXError:
    return cls(problem, **details)


class ConfigError(FusionXError):
    """The command line or the config is wrong; nothing was started. Exit code 2."""

    exit_code = EXIT_USAGE


class DataError(FusionXError):
    """Something on disk is missing, cut short, or not what the config says it is. Exit code 1."""


class DamageError(DataError):
    """Something on disk is not what was written: it was changed or cut short, or carries no hash. Exit code 1."""


class IncompleteError(FusionXError):
    """Some units failed; the others were finished and kept. Exit code 1."""


class StoppedError(FusionXError):
    """A signal asked the command to stop, and it saved its work first. Exit code 75."""

    exit_code = EXIT_STOPPED
