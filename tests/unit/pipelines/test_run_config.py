"""What a whole run's config refuses."""

from __future__ import annotations

from typing import Any

import pytest

from fusionx.contract.config import parse_config
from fusionx.contract.errors import ConfigError
from fusionx.pipelines.config import FusionConfig

BASE: dict[str, Any] = {
    "name": "x",
    "output": "runs/x",
    "target": {"id": "t", "path": "models/t"},
    "sources": [{"id": "a", "path": "models/a"}],
    "corpus": {"path": "data"},
}


def parse(**changes: Any) -> FusionConfig:
    return parse_config(FusionConfig, {**BASE, **changes}, "x.yaml")


def test_the_target_is_the_first_candidate() -> None:
    assert [model.id for model in parse().models] == ["t", "a"]


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        ([{"id": "a", "path": "p"}, {"id": "a", "path": "q"}], "listed twice (id 'a')"),
        ([{"id": "t", "path": "p"}], "listed twice (id 't')"),
        ([{"id": "a", "path": "p"}, {"id": "b", "path": "p"}], "listed twice (path 'p')"),
        ([{"id": "a", "path": "models/t/"}], "listed twice (path 'models/t')"),
        ([{"id": "a", "path": "./models/../models/t"}], "listed twice (path 'models/t')"),
        ([{"id": "a/b", "path": "p"}], "sources.0.id"),
    ],
)
def test_a_source_stands_once(sources: list[dict[str, str]], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(sources=sources)
    assert said in str(caught.value)


def test_one_model_at_two_revisions_is_two_sources() -> None:
    parse(sources=[{"id": "a", "path": "hub/m", "revision": "1"}, {"id": "b", "path": "hub/m", "revision": "2"}])


def test_a_method_needs_the_alignment_that_it_reads() -> None:
    said = r"method 'paper' reads the alignment 'mined', which align\.methods does not make"
    with pytest.raises(ConfigError, match=said):
        parse(train={"methods": ["paper"]})
    parse(train={"methods": ["paper"]}, align={"methods": ["mined"]})
    parse(train={"methods": ["ct"]}, align={"methods": ["exact"]})


@pytest.mark.parametrize(
    "train", [{"methods": ["nope"]}, {"overrides": {"ct": {"lamda": 1}}}, {"methods": ["ct", "ct"]}]
)
def test_unknown_methods_and_overrides_are_refused(train: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="train"):
        parse(train=train)


def test_every_fault_of_a_method_is_told_with_its_field_and_value() -> None:
    overrides = {"fusionx": {"lamda_fuse": 3, "k": "x"}, "paper": {"selection": {"tau": 2}}}
    with pytest.raises(ConfigError) as caught:
        parse(train={"methods": ["fusionx", "nope"], "overrides": overrides})
    head, *lines = str(caught.value).splitlines()
    assert head == "x.yaml: 4 problems in the config."
    assert lines[0].startswith("  train: overrides.fusionx: k: ")
    assert lines[0].endswith("(found 'x')")
    assert lines[1] == "  train: overrides.fusionx: lamda_fuse: unknown key; did you mean 'lambda_fuse'?"
    assert lines[2].startswith("  train: unknown method 'nope'")
    assert lines[3].startswith("  train: overrides.paper: selection.tau: ")


def test_where_and_how_is_no_content() -> None:
    elsewhere = parse(output="/y", executor={"kind": "inline"}, precompute={"workers": 4})
    assert elsewhere.digest() == parse().digest()
    assert parse(precompute={"k": 3}).digest() != parse().digest()


ESCAPES = [
    "../x",
    "..",
    ".",
    "",
    "/etc/passwd",
    "a/../../x",
    "a/b",
    "a\\b",
    "C:\\x",
    "~root",
    ".hidden",
    "-rf",
    "a\0b",
    "a\nb",
    "a\n",
    "$HOME",
    "a;b",
    "x" * 300,
    "\u202ex",
    "s3://bucket/x",
]


@pytest.mark.parametrize("name", ESCAPES)
def test_no_name_leads_out_of_the_runs_folder(name: str) -> None:
    """Of whatever becomes the name of a file or folder."""
    named: dict[str, dict[str, Any]] = {
        "a source": {"sources": [{"id": name, "path": "models/a"}]},
        "the target": {"target": {"id": name, "path": "models/t"}},
        "a method": {"train": {"methods": [name], "overrides": {name: {"preset": "fusellm"}}}},
        "an override": {"train": {"overrides": {name: {"preset": "fusellm"}}}},
        "a preset": {"train": {"methods": [name]}},
        "a rival": {"eval": {"rivals": {name: "models/r"}}},
        "a merge": {"eval": {"merges": [name]}},
        "a split": {"corpus": {"path": "data", "splits": [name]}},
        "a held-out split": {"corpus": {"path": "data", "holdout": {name: 0.1}}},
        "an alignment": {"align": {"methods": [name]}},
        "the evaluated split": {"eval": {"split": name}},
    }
    for changes in named.values():
        with pytest.raises(ConfigError):
            parse(**changes)


@pytest.mark.parametrize("name", ["a", "Llama-3.1-8B", "Llama 2 (7B)", "v1.0_final", "模型", "x" * 48])
def test_names_that_people_give_rivals_are_taken(name: str) -> None:
    assert list(parse(eval={"rivals": {name: "models/r"}}).eval.rivals) == [name]
