"""Every key of a config says what it means: in docs/configuration.md and in the JSON schema, both made of the code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import jsonschema
import pytest
import yaml
from click.testing import CliRunner
from pydantic.fields import FieldInfo

from fusionx.cli.main import main
from fusionx.contract.config import Config
from fusionx.pipelines.config import FusionConfig
from fusionx.train.config import MethodConfig

ROOT = Path(__file__).resolve().parents[3]


def writer() -> ModuleType:
    spec = spec_from_file_location("write_configuration", ROOT / "docs" / "write_configuration.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


WRITER = writer()


def keys(config: type[Config], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in config.model_fields.items():
        yield f"{prefix}{name}", field
        inner = WRITER.config_of(field.annotation)
        if inner is not None:
            yield from keys(inner, f"{prefix}{name}.")


KEYS = [*keys(FusionConfig), *keys(MethodConfig, "train.overrides.METHOD.")]


def test_the_page_is_that_of_the_code() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == WRITER.page(), "run `make docs`"


@pytest.mark.parametrize(("key", "field"), KEYS, ids=[key for key, _ in KEYS])
def test_every_key_says_what_it_means_and_every_number_in_what_unit(key: str, field: FieldInfo) -> None:
    unit, meaning = WRITER.unit_and_meaning(field)
    assert meaning.endswith("."), f"{key}: a docstring below the field says what it means"
    assert bool(unit) == WRITER.is_number(field.annotation), f"{key}: a number's docstring is `Unit; meaning.`"


@pytest.fixture(scope="module")
def schema() -> dict[str, object]:
    return json.loads(CliRunner().invoke(main, ["schema"]).stdout)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_the_schema_takes_what_the_loader_takes(path: Path, schema: dict[str, object]) -> None:
    jsonschema.validate(yaml.safe_load(path.read_text()), schema)


def test_the_schema_describes_and_refuses(schema: dict[str, object]) -> None:
    raw = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    for wrong in (
        {"chunk": {"block_sise": 3}},
        {"chunk": {"block_size": 3}},
        {"align": {"methods": ["nearest"]}},
        {"zz": 1},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**raw, **wrong}, schema)
    block = schema["$defs"]["ChunkConfig"]["properties"]["block_size"]  # type: ignore[index]
    assert block["description"].startswith("Tokens; ")
