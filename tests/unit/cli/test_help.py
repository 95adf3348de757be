"""What every command says of itself, the version, and completion."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import click
import pytest
from click.shell_completion import get_completion_class
from click.testing import CliRunner

from fusionx.cli.main import main


def commands(group: click.Command = main, *names: str) -> Iterator[tuple[str, ...]]:
    yield names
    if isinstance(group, click.Group):
        for name, command in group.commands.items():
            yield from commands(command, *names, name)


def parsed(arguments: list[str]) -> tuple[list[str], dict[str, Any]]:
    """The command that a line calls, and what it is called with; click's own error where the line is wrong."""
    command: click.Command = main
    context, names = click.Context(main), []
    while isinstance(command, click.Group):
        name, found, arguments = command.resolve_command(context, arguments)
        assert found is not None
        command, names = found, [*names, str(name)]
        if isinstance(command, click.Group) and not arguments:
            break
    return names, command.make_context(names[-1], list(arguments)).params


@pytest.mark.parametrize("names", list(commands()), ids=" ".join)
def test_every_help_ends_with_examples_that_the_command_takes(names: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, [*names, "--help"])
    assert result.exit_code == 0, result.output
    _, _, shown = result.output.partition("Examples:\n")
    lines = re.findall(r"^ +fusionx (.+?)(?: > .*)?$", shown, re.MULTILINE)
    assert lines, result.output
    for line in lines:
        called, _ = parsed(shlex.split(line))
        assert called[: len(names)] == list(names)


def test_an_example_with_an_unknown_option_would_be_noticed() -> None:
    with pytest.raises(click.NoSuchOption):
        parsed(["plan", "run.yaml", "--gpu", "H100"])


def test_the_version_is_that_of_the_package() -> None:
    result = CliRunner().invoke(main, ["--version"])
    assert (result.exit_code, result.output) == (0, f"fusionx {version('fusionx')}\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_asks_the_command_itself(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    result = CliRunner().invoke(main, ["completion", shell])
    assert result.exit_code == 0, result.output
    assert "_FUSIONX_COMPLETE" in result.stdout
    assert f"{shell}_complete" in result.stdout
    monkeypatch.setenv("COMP_WORDS", "fusionx pre")
    monkeypatch.setenv("COMP_CWORD", "pre" if shell == "fish" else "1")
    found = get_completion_class(shell)
    assert found is not None
    assert "precompute" in found(main, {}, "fusionx", "_FUSIONX_COMPLETE").complete()


def test_a_log_has_no_bars_of_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    assert CliRunner().invoke(main, ["schema"]).exit_code == 0  # whose output is no terminal
    assert os.environ["TQDM_DISABLE"] == "1"
    monkeypatch.setenv("TQDM_DISABLE", "0")
    CliRunner().invoke(main, ["schema"])
    assert os.environ["TQDM_DISABLE"] == "0", "what the user set stays"
