"""How far a training is: one line that changes on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time

from fusionx.contract.progress import bar, clock

_LOG_SECONDS = 30
_TERMINAL_SECONDS = 0.1


class ProgressLine:
    """Prints to stderr. `loss` and `tokens_per_s` are what was last logged; they are set from outside.

    Args:
        name: stands before every line. step: where the run starts. is_main: whether this process prints.
    """

    def __init__(self, name: str, steps: int, step: int = 0, is_main: bool = True) -> None:
        self._name = name
        self._steps = steps
        self._is_main = is_main
        self._first = step + 1
        """The first step of this process takes longer (kernels are chosen, code is compiled) and is not counted."""
        self._started = self._shown = time.monotonic()
        self.loss: float | None = None
        self.tokens_per_s: float | None = None

    def show(self, step: int) -> None:
        """After each step; prints if it is time to."""
        now = time.monotonic()
        if step == self._first:
            self._started = now
        terminal = sys.stderr.isatty()
        due = now - self._shown >= (_TERMINAL_SECONDS if terminal else _LOG_SECONDS)
        if not self._is_main or not (due or step == self._steps):
            return
        self._shown = now
        if terminal:
            print(f"\r{self._line(step)}\x1b[K", end="\n" if step == self._steps else "", file=sys.stderr, flush=True)
        else:
            print(self._line(step), file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A line of its own, which does not stand behind a progress line that was not finished."""
        if self._is_main:
            clear = "\r\x1b[K" if sys.stderr.isatty() else ""
            print(f"{clear}[{self._name}] {text}", file=sys.stderr, flush=True)

    def _line(self, step: int) -> str:
        facts = [f"{bar(step / self._steps)}{step:,} of {self._steps:,} steps"]
        if self.loss is not None:
            facts.append(f"loss {self.loss:.4f}")
        if self.tokens_per_s is not None:
            facts.append(f"{self.tokens_per_s:,.0f} tokens/s")
        if self._first < step < self._steps:
            seconds = time.monotonic() - self._started
            facts.append(f"{clock((self._steps - step) * seconds / (step - self._first))} left")
        return f"[{self._name}] " + ", ".join(facts)
