"""Typed, strict configs: YAML plus `--set a.b=value`, every problem reported at once, and a digest.

The digest covers what decides an output's content. Fields that only say how or where the work is done (worker counts,
paths of outputs, log intervals) are annotated `Operational` and stay out of it, so that changing them never makes
finished work stale.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from fusionx.contract.errors import ConfigError

_OPERATIONAL = "operational: not part of the digest"
_ADDED = "added later: part of the digest unless it is the default"

T = TypeVar("T")
Operational = Annotated[T, _OPERATIONAL]
"""Marks a config field that decides how the work is done, never what comes out."""
Added = Annotated[T, _ADDED]
"""Marks a field that a class got after work was done with it. Its default is what was done before; at its default it is
no part of the digest, so that the new field makes no finished work stale."""


def is_operational(field: FieldInfo) -> bool:
    """Whether a field of a config stays out of its digest."""
    return _OPERATIONAL in field.metadata


class Config(BaseModel):
    """Base of every config: unknown keys are errors, values are immutable, a field's docstring describes it."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        protected_namespaces=(),
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )

    def content(self) -> dict[str, Any]:
        """The fields that decide an output's content, as plain JSON values."""
        return {
            name: _plain(getattr(self, name))
            for name, field in type(self).model_fields.items()
            if not is_operational(field) and not (_ADDED in field.metadata and getattr(self, name) == field.default)
        }

    def digest(self) -> str:
        """SHA-256 (first 16 hex digits) of `content()`."""
        return digest_of(self.content())


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return value.content()
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def digest_of(value: Any) -> str:
    """SHA-256 (first 16 hex digits) of the canonical JSON of `value`."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def changed_fields(found: Any, expected: Any) -> list[str]:
    """Every field in which two plain values differ, as `a.b: found X, expected Y`; absent ones are named, too."""
    flat_found, flat_expected = _flatten(found), _flatten(expected)
    return [
        f"{key}: found {flat_found.get(key, '(absent)')}, expected {flat_expected.get(key, '(absent)')}"
        for key in sorted(flat_found.keys() | flat_expected.keys())
        if flat_found.get(key, "(absent)") != flat_expected.get(key, "(absent)")
    ]


def _flatten(value: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(value, dict):
        return {key: leaf for name, item in value.items() for key, leaf in _flatten(item, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): json.dumps(value)}


ConfigType = TypeVar("ConfigType", bound=Config)


_MOST_BYTES, _MOST_LEVELS, _MOST_NODES = 1 << 20, 50, 100_000
_LONGEST_LINE = 1000
"""Characters of an error about one field; a value in it may be a whole document."""
_MOST = 2**63
"""Numbers are smaller, as in every library that they are handed to."""


class _CarefulLoader(yaml.SafeLoader):
    """YAML's safe loader, with limits on nesting and on what aliases expand to.

    A key that stands twice is an error: one of the two would be dropped in silence.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._level = 0
        self._nodes: dict[yaml.Node, int] = {}
        """Of every node that is complete, how many it holds, aliases expanded."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        mark = self.peek_event().start_mark
        self._level += 1
        if self._level > _MOST_LEVELS:
            raise yaml.composer.ComposerError(None, None, f"nested more than {_MOST_LEVELS} levels deep", mark)
        is_alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        self._level -= 1
        if node is not None and not is_alias:
            self._nodes[node] = 1 + sum(map(self._size, _children(node)))
        if node is not None and self._size(node) > _MOST_NODES:
            raise yaml.composer.ComposerError(None, None, f"aliases expand to more than {_MOST_NODES} values", mark)
        return node

    def _size(self, node: yaml.Node) -> int:
        """Of one that is an alias inside itself: too many."""
        return self._nodes.get(node, _MOST_NODES + 1)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key '{min(twice)}' is given twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def load_config(cls: type[ConfigType], path: str | Path, overrides: Iterable[str] = ()) -> ConfigType:
    """Reads a YAML file into `cls`, applies `a.b=value` overrides (values are YAML), and validates.

    Raises:
        ConfigError: the file is missing or no YAML mapping, an override is malformed, or any field is unknown,
            missing or invalid; all problems are listed together with file and field.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(
            "There is no such config file.",
            file=path,
            remedy="`fusionx init` writes a first one, `fusionx examples` the shipped ones, into configs/",
        )
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES + 1)
        if len(text) > _MOST_BYTES:
            raise ValueError(f"longer than {_MOST_BYTES:,} bytes")
        raw = yaml.load(text.decode("utf-8"), _CarefulLoader)  # a safe loader
    except OSError as error:
        raise ConfigError("The config cannot be read.", file=path, found=error.strerror) from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: no UTF-8, or a date that does not exist
        raise ConfigError("The config is not valid YAML.", file=path, found=str(error).replace("\n", " ")) from None
    if not isinstance(raw, dict):
        raise ConfigError(
            "The config is not a mapping.", file=path, found=type(raw).__name__, expected="key: value lines"
        )
    for override in overrides:
        _apply_override(raw, override)
    return parse_config(cls, raw, source=path)


def parse_config(cls: type[ConfigType], raw: dict[str, Any], source: object) -> ConfigType:
    """Validates plain values into `cls`; `source` is what error messages call the file."""
    try:
        config = cls.model_validate(raw)
        problems = list(_unusable(config.model_dump(), ""))
        if not problems:
            return config
    except ValidationError as error:
        problems = problems_of(cls, error)
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise ConfigError("\n".join([f"{source}: {count} in the config.", *(f"  {problem}" for problem in problems)]))


def _unusable(value: Any, place: str) -> Iterator[str]:
    """A line for every text and number that no field can use."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _unusable(str(key), f"{place}{key!r:.80}")
            yield from _unusable(item, f"{place}{key}.")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _unusable(item, f"{place}{number}.")
    elif isinstance(value, str) and ("\0" in value or _has_surrogate(value)):
        yield f"{place.rstrip('.')}: must hold no NUL and no half of a surrogate pair (found {value!r:.80})"
    elif isinstance(value, int | float) and abs(value) >= _MOST:
        yield f"{place.rstrip('.')}: must be smaller than 2^63 (found {value!r:.80})"


def _has_surrogate(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


def problems_of(cls: type[Config], error: ValidationError) -> list[str]:
    """Every problem of values for `cls`, as `a.b: what is wrong (found what)`."""
    lines = (line for problem in error.errors() for line in _describe(cls, problem))
    return [line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}..." for line in lines]


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError("An override is not of the form a.b=value.", field="--set", found=override)
    try:
        value = yaml.load(text, _CarefulLoader)  # a safe loader
    except (yaml.YAMLError, ValueError):
        raise ConfigError("An override's value is not valid YAML.", field="--set", found=override) from None
    *parents, last = key.split(".")
    node: Any = raw
    for depth, parent in enumerate(parents):
        node = _child(node, parent, key, depth)
    if isinstance(node, list):
        node[_index(node, last, key)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise ConfigError("An override points below a plain value.", field="--set", found=override)


def _child(node: Any, name: str, key: str, depth: int) -> Any:
    if isinstance(node, list):
        return node[_index(node, name, key)]
    if not isinstance(node, dict):
        above = ".".join(key.split(".")[:depth])
        raise ConfigError("An override points below a plain value.", field=key, found=f"{above} = {node!r}")
    if node.get(name) is None:
        node[name] = {}
    return node[name]


def _index(node: list, name: str, key: str) -> int:
    """Position of a list item named by number, or by its `id` where the items have one."""
    for position, item in enumerate(node):
        if isinstance(item, dict) and item.get("id") == name:
            return position
    if name.isascii() and name.isdigit() and int(name) < len(node):
        return int(name)
    ids = [item["id"] for item in node if isinstance(item, dict) and isinstance(item.get("id"), str)]
    expected = f"0 to {len(node) - 1}" if node else "an item, but the list is empty"
    close = difflib.get_close_matches(name, ids, n=1)
    raise ConfigError(
        "An override names no item of the list.",
        field=f"--set {key}",
        found=name,
        expected=f"one of {', '.join(ids)}, or {expected}" if ids else expected,
        remedy=f"did you mean '{close[0]}'?" if close else None,
    )


def _describe(cls: type[Config], problem: ErrorDetails) -> list[str]:
    """A problem in the user's words; a validator that sees several fields gives a line for each it complains of."""
    location = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = _fields_at(cls, problem["loc"][:-1])
        close = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known keys: {', '.join(known)}"
        return [f"{location}: unknown key; {hint}"]
    if problem["type"] == "missing":
        return [f"{location}: required, but missing"]
    found = f"(found {problem['input']!r:.80})"
    if problem["type"] in ("model_type", "dict_type"):
        return [f"{location}: must be a mapping, `key: value` lines {found}"]
    messages = problem["msg"].removeprefix("Value error, ").splitlines()
    if isinstance(problem["input"], dict):  # it is about several fields, which its message names with their values
        return [f"{location}: {message}" if location else message for message in messages]
    return [f"{location}: {message} {found}" for message in messages]


def _fields_at(cls: type[Config], location: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the config class found by walking `location` down from `cls`."""
    current: Any = cls
    for part in location:
        if isinstance(current, type) and issubclass(current, BaseModel) and part in current.model_fields:
            current = _config_class(current.model_fields[str(part)].annotation)
    return sorted(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []


def _config_class(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        found = _config_class(argument)
        if found is not None:
            return found
    return None
