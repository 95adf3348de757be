"""The pages: their site builds strictly, and the commands, configs, code and messages on them are the project's own."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import textwrap
import tomllib
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args, get_origin

import click
import pytest
import yaml
from pydantic import BaseModel, TypeAdapter
from shard_builder import random_parts, write_logits

from fusionx.cli.main import main
from fusionx.pipelines.config import FusionConfig

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
PACKAGES = ("contract", "precompute", "align", "train", "eval", "pipelines", "benchmarks", "cli")
FOREIGN = {".", "aws", "cd", "do", "done", "exit", "pip", "python", "ray", "test", "until"}
"""What stands on the pages' command lines beside the project's own commands."""

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return [textwrap.dedent(block) for block in re.findall(rf"^ *```{language}\n(.*?)^ *```", text, re.M | re.S)]


def inline_code(page: Path) -> set[str]:
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return {" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)}


# The site


def test_the_site_builds_strictly(tmp_path: Path) -> None:
    """Broken links and anchors, pages that the navigation lacks or has too many, fail it."""
    pytest.importorskip("material", reason="the extra `docs` is not installed")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True))
    first = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert 'href="concepts.html"' in first, "README.md's link to docs/concepts.md"
    assert (tmp_path / "repository/configs/real.yaml").read_bytes() == (ROOT / "configs/real.yaml").read_bytes()
    assert not re.findall(r'(?:src|href)="https?://[^"]+\.(?:js|css)', first), "it fetches nothing from elsewhere"


# Commands


def commands(block: str) -> Iterator[list[str]]:
    """The simple commands of a shell script."""
    for line in block.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if not re.fullmatch(r"[;&|]+", word):
                words.append(word)
            elif words:
                yield words
                words = []


def parse(arguments: Sequence[str]) -> None:
    """As the command line does, but for carrying it out.

    Raises:
        click.UsageError: there is no such command or option, or an argument is missing.
    """
    command: click.Command | None = main
    context, name = click.Context(main, info_name="fusionx"), "fusionx"
    rest = list(arguments)
    while isinstance(command, click.Group):
        found, command, rest = command.resolve_command(context, rest)
        name = found or name
    assert command is not None
    parsed = command.make_context(name, rest, parent=context)
    for override in parsed.params.get("overrides", ()):
        key, _, _ = override.partition("=")
        if "inputs" not in name:
            assert annotation_at(FusionConfig, key.split(".")) is not None, f"--set {override}: no such key"


def check(words: list[str], extras: set[str], targets: set[str]) -> None:
    while words and words[0] in ("until", "do"):
        words = words[1:]
    program, arguments = words[0], words[1:]
    if program == "torchrun":
        module = arguments.index("-m") + 1
        assert arguments[module] == "fusionx", words
        parse(arguments[module + 1 :])
    elif program == "fusionx":
        parse(arguments)
    elif program == "make":
        assert {word for word in arguments if "=" not in word} <= targets, words
    elif program == "sbatch":
        script = next(word for word in arguments if not word.startswith("-"))
        assert (ROOT / script).is_file(), words
    elif program == "pip":
        named = {extra for word in arguments for group in re.findall(r"\[(.+)\]", word) for extra in group.split(",")}
        assert named <= extras, words
    else:
        assert program in FOREIGN, words
    for word in arguments:
        assert not re.fullmatch(r"(configs|pipelines)/\S+", word) or (ROOT / word).is_file(), f"{word}: no such file"


@cache
def project() -> tuple[set[str], set[str]]:
    """The extras, and the Makefile's targets."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    targets = re.search(r"^\.PHONY:(.*)", (ROOT / "Makefile").read_text(), re.M)
    assert targets
    return set(extras), set(targets[1].split())


@every_page
def test_commands_are_such_as_can_be_called(page: Path) -> None:
    for block in blocks(page, "bash"):
        for words in commands(block):
            check(words, *project())


def test_the_quickstart_lists_what_can_be_installed_besides() -> None:
    table = re.search(r"^\| extra \|.*?\n\n", (DOCS / "quickstart.md").read_text(encoding="utf-8"), re.M | re.S)
    assert table
    internal = {"dev", "tests", "browser"}
    assert set(re.findall(r"`([a-z]+)`(?=[^|]*\|[^|]*\|$)", table[0], re.M)) == project()[0] - internal


@every_page
def test_commands_within_the_text_exist_with_their_options(page: Path) -> None:
    for span in inline_code(page):
        if not re.match(r"fusionx [a-z]", span):
            continue
        command: click.Command | None = main
        words = shlex.split(span.replace("[", "").replace("]", ""))[1:]
        while isinstance(command, click.Group) and words:
            command = command.get_command(click.Context(command), words[0])
            words = words[1:]
        assert command is not None, span
        options = {name for option in command.params for name in option.opts}
        assert {word.split("=")[0] for word in words if word.startswith("--")} <= options, span


# Configs


def annotation_at(annotation: Any, path: Sequence[str]) -> Any:
    """What type the value behind a dotted key has; None where there is no such key. Items of lists have any name."""
    if not path:
        return annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get(path[0])
        return None if field is None else annotation_at(field.annotation, path[1:])
    if get_origin(annotation) in (list, dict):
        return annotation_at(get_args(annotation)[-1], path[1:])
    inner = [annotation_at(part, path) for part in get_args(annotation) if part is not type(None)]
    found = [part for part in inner if part is not None]
    return found[0] if found else (object if annotation is object else None)


def validated(key: str, value: Any) -> None:
    annotation = annotation_at(FusionConfig, key.split("."))
    assert annotation is not None, f"{key}: no such key"
    TypeAdapter(annotation).validate_python(value)


@every_page
def test_configs_are_such_as_the_loader_takes(page: Path) -> None:
    for block in blocks(page, "yaml"):
        raw = yaml.safe_load(block)
        if {"name", "output", "target", "corpus"} <= set(raw):
            FusionConfig.model_validate(raw)
        for key, value in raw.items():
            validated(key, value)


def is_module(name: str) -> bool:
    """Whether a dotted name is a room or module of the code, or something in one: `train.state`."""
    parts = name.split(".")
    places = [ROOT.joinpath(*parts[:count]) for count in range(2, len(parts) + 1)]
    return ROOT.joinpath(*parts).is_dir() or any(place.with_suffix(".py").is_file() for place in places)


@every_page
def test_keys_within_the_text_exist_and_take_the_value_that_is_shown(page: Path) -> None:
    sections = "|".join(FusionConfig.model_fields)
    for span in inline_code(page):
        match = re.fullmatch(rf"((?:{sections})(?:\.\w+)*)(?:: (.+))?", span)
        if match is None or span in FusionConfig.model_fields:
            continue
        key, value = match.groups()
        if value is None and is_module(key):
            continue
        if value is None:
            assert annotation_at(FusionConfig, key.split(".")) is not None, f"{page.name}: {span}"
        else:
            validated(key, yaml.safe_load(value))


# Python


@every_page
def test_code_imports_what_there_is(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Import):
                assert all(find_spec(alias.name) for alias in node.names), block
            elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("fusionx."):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names), block
            elif isinstance(node, ast.ImportFrom):
                assert find_spec(str(node.module).split(".")[0]), block
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "fusionx":
                assert node.attr in importlib.import_module("fusionx").__all__, block


def test_parts_are_read_as_the_data_contract_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_logits(tmp_path / "runs/demo/logits/coder", random_parts([5, 4], ["coder"]), "coder")
    (code,) = (block for block in blocks(DOCS / "data-contract.md", "python") if "read_part" in block)
    names: dict[str, Any] = {}
    exec(code, names)
    count = int(names["input_ids"].offsets[-1])
    assert names["ids"].shape == names["probs"].shape == (count, names["ids"].shape[1])
    assert names["token_nll"].shape == (count,)
    assert len(names["first"].tail) == len(names["input_ids"].row(0))


@every_page
def test_files_within_the_text_exist(page: Path) -> None:
    named = {
        span for span in inline_code(page) if re.fullmatch(rf"(?:{'|'.join(PACKAGES)}|tests|configs)/[\w/.-]+", span)
    }
    missing = {name for name in named if not (ROOT / name).exists()}
    assert not {name for name in missing if Path(name).suffix in (".py", ".yaml")}


# Messages


@cache
def strings_of_the_code() -> frozenset[str]:
    """Every text that the code holds; what is formatted into one is shown as `…`."""
    found = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            for node in ast.walk(ast.parse(text)) if "Error" in text else ():
                found.add(_with_gaps(node) or "")
    return frozenset(found)


def test_every_message_of_the_troubleshooting_page_is_one_of_the_code() -> None:
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| `(.+?)` \|", page, re.M)
    assert len(messages) > 100
    assert len(set(messages)) == len(messages), "one is explained twice"
    code = strings_of_the_code()
    assert not [message for message in messages if not any(message in text for text in code)]


ERRORS = ("FusionXError", "ConfigError", "DataError", "DamageError", "IncompleteError", "StoppedError")


def messages_of_the_code() -> Iterator[str]:
    """What the project's errors begin with, but those that only the benchmarks raise, or that are made of others."""
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py") if package != "benchmarks" else ():
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS:
                    text = _with_gaps(node.args[0])
                    if text is not None and len(re.findall(r"[a-z]{2,}", text)) > 2:
                        yield text


def _with_gaps(node: ast.AST) -> str | None:
    """A text of the code with `…` for what is formatted into it; None for what is no text there."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def test_every_message_of_the_code_is_on_the_troubleshooting_page() -> None:
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    shown = [re.escape(message).replace("…", ".+") for message in re.findall(r"^\| `(.+?)` \|", page, re.M)]
    found = set(messages_of_the_code())
    assert len(found) > 200
    assert not sorted(text for text in found if not any(re.search(message, text) for message in shown))


def test_the_results_are_those_of_the_file() -> None:
    """The demo's comparison stands on the page as docs/results.json has it, for programs."""
    page, found = (DOCS / "results.md").read_text(), json.loads((DOCS / "results.json").read_text())
    assert set(found) == {"demo", "demo_gpu", "real"}
    for bed in filter(None, found.values()):
        assert {"of", "seeds", "hardware", "distance_closed", "domains_worse_than_start"} <= set(bed["comparison"])
    comparison = found["demo"]["comparison"]
    for other in ("ct", "fusellm", "fusellm_walk"):
        for figure in (comparison[f"{name}_vs_{other}"] for name in ("bpb", "perplexity")):
            low, high = figure["ci95"]
            assert f"{100 * figure['mean']:.1f} % ({100 * low:.1f} to {100 * high:.1f})" in page
    for method in found["demo"]["methods"].values():
        low, high = method["test"]["corpus"]["ci95"]
        assert f"{method['test']['corpus']['mean']:.4f} ± {(high - low) / 2:.4f}" in page
