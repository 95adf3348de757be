"""Where lines can be rewritten: on a terminal and in a notebook's cell, not in a log."""

from __future__ import annotations

import io
import sys
from types import ModuleType
from typing import Any

import pytest

from fusionx.contract.progress import CellLine, bar, in_notebook


class OutStream(io.StringIO):
    """What a notebook's kernel puts in the place of stderr."""


OutStream.__module__ = "ipykernel.iostream"


class Cell(ModuleType):
    """The part of IPython.display that is used: outputs, each of which can be given another content."""

    def __init__(self) -> None:
        super().__init__("IPython.display")
        self.outputs: list[list[str]] = []

    def display(self, content: dict[str, str], raw: bool, display_id: bool) -> Any:
        assert raw
        assert display_id
        shown = [content["text/plain"]]
        self.outputs.append(shown)

        class Handle:
            def update(_, content: dict[str, str], raw: bool) -> None:  # noqa: N805
                assert raw
                shown.append(content["text/plain"])

        return Handle()


def test_a_line_of_a_cell_is_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell()
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", cell)
    assert (in_notebook(), bar(0.5)) == (False, "")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", OutStream())
        assert (in_notebook(), bar(0.5)) == (True, "##########.......... ")
        first, second = CellLine(), CellLine()
        for text in ("1 of 3", "2 of 3"):
            first.show(text)
        second.show("other")
        first.show("3 of 3")
    assert cell.outputs == [["1 of 3", "2 of 3", "3 of 3"], ["other"]]
