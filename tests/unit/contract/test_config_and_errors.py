"""The strict config base and the errors that cross process borders."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator

from fusionx.contract.config import Added, Config, Operational, digest_of, load_config, parse_config
from fusionx.contract.errors import ConfigError, DataError, FusionXError, IncompleteError


class Inner(Config):
    k: int = Field(32, ge=1)
    workers: Operational[int] = Field(1, ge=1)


class Item(Config):
    id: str
    size: float = 1.0


class Pair(Config):
    low: int = 0
    high: int = 1

    @model_validator(mode="after")
    def _apart(self) -> Pair:
        if self.low >= self.high:
            raise ValueError(f"low: {self.low} is not below {self.high}\nhigh: not above it")
        return self


class Outer(Config):
    pair: Pair = Pair()
    name: str
    output: Operational[str] = "runs/x"
    inner: Inner = Inner()
    items: list[Item] = []
    shares: dict[str, float] = {}
    maybe: Operational[int | None] = None


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_unknown_keys_are_errors_with_a_suggestion_and_all_problems_come_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, "name: a\ninner: {kk: 3, workers: 0}\nitems: [{id: a, sise: 2}, {size: x}]\nzzz: 1\n")
    with pytest.raises(ConfigError) as caught:
        load_config(Outer, path)
    text = str(caught.value)
    assert str(path) in text
    assert "6 problems" in text
    for line in (
        "inner.kk: unknown key; did you mean 'k'?",
        "inner.workers: Input should be greater than or equal to 1 (found 0)",
        "items.0.sise: unknown key; did you mean 'size'?",
        "items.1.id: required, but missing",
        "items.1.size: ",
        "zzz: unknown key; known keys: inner, items, maybe, name, output, pair, shares",
    ):
        assert line in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2]", "not a mapping"),
        ("", "not a mapping"),
        ("a: [1", "not valid YAML"),
        ("a: 2024-13-45", "not valid YAML"),
        ("name: a\nname: b", "given twice"),
        ("name: a\ninner:\n  k: 1\n  k: 2", "given twice"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_what_is_no_config_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(Outer, write(tmp_path, text))


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such config file"):
        load_config(Outer, tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(Outer, tmp_path / "binary.yaml")


def test_overrides_reach_scalars_lists_by_index_and_by_id_and_new_mappings(tmp_path: Path) -> None:
    path = write(tmp_path, "name: a\nitems: [{id: x}, {id: y}]\n")
    overrides = ["inner.k=8", "items.0.size=2", "items.y.size=3", "shares.a=0.5", "maybe=null", "output=/tmp/é"]
    config = load_config(Outer, path, overrides)
    assert (config.inner.k, [item.size for item in config.items]) == (8, [2.0, 3.0])
    assert (config.shares, config.maybe, config.output) == ({"a": 0.5}, None, "/tmp/é")
    assert load_config(Outer, path, ["items=[{id: z}]"]).items == [Item(id="z")]
    assert load_config(Outer, path, ["name=a=b"]).name == "a=b"


@pytest.mark.parametrize(
    "override",
    ["inner.k", "=3", "items.2.size=1", "items.none.size=1", "items.²=1", "name.x=1", "name.x.y=1", "name=["],
)
def test_malformed_overrides_are_refused(tmp_path: Path, override: str) -> None:
    path = write(tmp_path, "name: a\nitems: [{id: x}]\n")
    with pytest.raises(ConfigError) as caught:
        load_config(Outer, path, [override])
    assert caught.value.exit_code == 2


def test_an_override_that_names_no_item_is_told_the_ids(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'coder'") as caught:
        load_config(Outer, write(tmp_path, "name: a\nitems: [{id: coder}, {id: writer}]"), ["items.codr.size=2"])
    assert caught.value.details["expected"] == "one of coder, writer, or 0 to 1"


def test_what_concerns_several_fields_is_told_line_by_line_without_the_whole_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(Outer, write(tmp_path, "name: a\npair: {low: 5, high: 3}\ninner: 3"))
    _, *lines = str(caught.value).splitlines()
    assert sorted(lines) == [
        "  inner: must be a mapping, `key: value` lines (found 3)",
        "  pair: high: not above it",
        "  pair: low: 5 is not below 3",
    ]


def test_a_value_as_long_as_a_document_is_not_told_whole() -> None:
    with pytest.raises(ConfigError, match="low: 7 is not below 3") as refused:
        parse_config(Outer, {"n" * 3000: 1, "pair": {"low": 7, "high": 3}}, "run.yaml")
    assert len(str(refused.value)) < 1500


def test_an_unknown_override_is_an_unknown_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"inner\.worker: unknown key; did you mean 'workers'\?"):
        load_config(Outer, write(tmp_path, "name: a"), ["inner.worker=2"])


def test_the_digest_covers_content_and_leaves_out_what_is_operational() -> None:
    base = Outer(name="a")
    same = [
        Outer(name="a", output="elsewhere"),
        Outer(name="a", maybe=3),
        Outer(name="a", inner=Inner(workers=7)),
        parse_config(Outer, {"name": "a", "inner": {"k": 32}}, "x"),
    ]
    other = [Outer(name="b"), Outer(name="a", inner=Inner(k=31)), Outer(name="a", items=[Item(id="x")])]
    assert {config.digest() for config in same} == {base.digest()}
    assert base.digest() not in {config.digest() for config in other}


def test_the_digest_is_stable_across_versions_of_python_and_processes() -> None:
    # A fixed value: a change here makes every finished output stale.
    assert digest_of({"b": [1, 2.5, None, True], "a": "é"}) == digest_of({"a": "é", "b": [1, 2.5, None, True]})
    assert digest_of({"a": 1}) == "015abd7f5cc57a2d"


def test_configs_are_immutable() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Outer(name="a").name = "b"  # type: ignore[misc]


@pytest.mark.parametrize(("cls", "code"), [(ConfigError, 2), (DataError, 1), (IncompleteError, 1), (FusionXError, 1)])
def test_errors_have_exit_codes_and_survive_pickling(cls: type[FusionXError], code: int) -> None:
    error = cls("It broke.", file=Path("a/b"), field="f", found=3, expected=[1], remedy="mend it")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is cls
    assert back.exit_code == code
    assert str(back) == str(error)
    assert all(word in str(error) for word in ("It broke.", "a/b", "f", "3", "[1]", "mend it"))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
        max_leaves=8,
    )
)
def test_digest_of_any_plain_value_is_sixteen_hex_digits(value: Any) -> None:
    assert len(digest_of(value)) == 16
    int(digest_of(value), 16)


def test_a_field_that_was_added_makes_nothing_stale_until_it_is_used() -> None:
    class Before(Config):
        k: int = 32

    class After(Before):
        share: Added[float] = Field(1.0, gt=0, le=1)

    assert After().digest() == After(share=1).digest() == Before().digest()
    assert After(share=0.5).content() == {"k": 32, "share": 0.5}


def nested(levels: int) -> str:
    return "name: " + "[" * levels + "]" * levels


def bomb(merged: bool) -> str:
    lines = ["a0: &a0 {x: 1}" if merged else "a0: &a0 [x, x]"]
    for level in range(1, 30):
        twice = f"[*a{level - 1}, *a{level - 1}]"
        lines.append(f"a{level}: &a{level} {{<<: {twice}}}" if merged else f"a{level}: &a{level} {twice}")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (nested(5000), "levels deep"),
        (bomb(merged=False), "aliases expand"),
        (bomb(merged=True), "aliases expand"),
        ("name: &a [*a]", "aliases expand"),
        ("name: x" + " " * (1 << 20), "longer than"),
        ("\0", "not valid YAML"),
    ],
    ids=["deep", "bomb", "merges", "circle", "long", "NUL"],
)
def test_hostile_yaml_is_refused_at_once(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_config(Outer, path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        *(("items.0.size", value) for value in (".inf", "-.inf", ".nan", "inf", "1e300", "1.0e+23")),
        *(("inner.k", value) for value in ("1e23", "1.0e+23", "9223372036854775808")),
        *(("name", value) for value in (r'"\0"', r'"\ud800"')),
        ("shares", r'{"a\0": 1}'),
        ("shares", "{a: .nan}"),
    ],
)
def test_what_no_field_can_use_is_refused(tmp_path: Path, place: str, value: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("name: x\nitems: [{id: a}]\n")
    with pytest.raises(ConfigError, match=place):
        load_config(Outer, path, [f"{place}={value}"])
