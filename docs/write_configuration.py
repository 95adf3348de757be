"""Writes docs/configuration.md from the configs themselves: key, default, unit and meaning. `make docs` runs it.

A number's docstring is `Unit; meaning.`, any other field's the meaning alone.
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fusionx.contract.config import Config, is_operational
from fusionx.pipelines.config import FusionConfig
from fusionx.precompute.config import ModelConfig
from fusionx.train.config import PRESETS, MethodConfig

PAGE = Path(__file__).resolve().parent / "configuration.md"
_HEAD = """\
# Configuration

Every key of a run's YAML file, written by `make docs` from the code. `fusionx init` writes a first config, `fusionx
schema` a JSON schema by which editors complete and check one, and any key can be given for one command as `--set
a.b=value` (an item of a list by its id: `--set sources.coder.dtype=bfloat16`). Unknown keys are errors.

A key marked ° says how or where the work is done, not what comes out: changing it makes nothing stale.
"""


def page() -> str:
    sections = [*_sections("", FusionConfig, "The run"), *_sections("train.overrides.METHOD", MethodConfig, "A method")]
    return "\n".join([_HEAD, *("\n".join(section) for section in sections), *_presets()])


def _sections(prefix: str, config: type[Config], title: str) -> Iterator[list[str]]:
    """A table of a config's own keys, then those of the configs in it; `prefix` is where it stands in the file."""
    said = " ".join((config.__doc__ or "").split("\n\n")[0].split())
    rows = [_row(name, field) for name, field in config.model_fields.items()]
    header = ["| key | default | unit | meaning |", "|---|---|---|---|"]
    yield [f"## {f'`{prefix}`' if prefix else title}", "", said, "", *header, *rows, ""]
    for name, field in config.model_fields.items():
        inner = config_of(field.annotation)
        path = f"{prefix}.{name}" if prefix else name
        if inner is ModelConfig and name != "target":
            yield [f"## `{path}[]`", "", "Each as `target`.", ""]
        elif inner is not None:
            yield from _sections(path, inner, path)


def _row(name: str, field: FieldInfo) -> str:
    unit, meaning = unit_and_meaning(field)
    values = _values(field.annotation)
    listed = f" One of {', '.join(f'`{value}`' for value in values)}." if values else ""
    mark = "°" if is_operational(field) else ""
    cells = (f"`{name}`{mark}", _default(field), unit, meaning + listed)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def unit_and_meaning(field: FieldInfo) -> tuple[str, str]:
    """What the docstring says, on one line; the unit only of a number."""
    text = " ".join((field.description or "").split())
    if not is_number(field.annotation):
        return "", text
    unit, _, meaning = text.partition("; ")
    return unit[:1].lower() + unit[1:] if unit[1:2].islower() else unit, meaning[:1].upper() + meaning[1:]


def is_number(annotation: Any) -> bool:
    """Whether a field takes one number, perhaps none."""
    parts = _parts(annotation)
    return any(part in (int, float) for part in parts)


def _values(annotation: Any) -> list[str]:
    """What a field that takes one of a few words takes."""
    return [value for part in _parts(annotation) if get_origin(part) is Literal for value in get_args(part)]


def _parts(annotation: Any) -> list[Any]:
    """The members of a union, without what is annotated to them."""
    if get_origin(annotation) is Annotated:
        return _parts(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [part for argument in get_args(annotation) for part in _parts(argument)]
    return [annotation]


def config_of(annotation: Any) -> type[Config] | None:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return annotation
    return next((found for part in get_args(annotation) if (found := config_of(part)) is not None), None)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "below"
    if value is None:
        return "none"
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _presets() -> list[str]:
    """In what the named methods differ from the default."""
    default = MethodConfig().model_dump()
    lines = ["## Presets", "", "Methods by name, where they differ from the default, which is `fusionx`.", ""]
    lines += ["| method | fields |", "|---|---|"]
    for name, preset in PRESETS.items():
        content = preset.model_dump()
        changed = {key: value for key, value in content.items() if value != default[key]}
        if "selection" in changed:
            inner = default["selection"]
            changed["selection"] = {k: v for k, v in content["selection"].items() if v != inner[k]}
        lines.append(f"| `{name}` | {f'`{json.dumps(changed)}`' if changed else 'the default'} |")
    return [*lines, ""]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
