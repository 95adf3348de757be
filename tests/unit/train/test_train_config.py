"""Presets as the design states them, and what a config refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from shard_builder import make_job

from fusionx.contract.config import parse_config
from fusionx.contract.errors import ConfigError
from fusionx.train.config import PRESETS, MethodConfig, OptimizerConfig, SelectionConfig, TrainConfig, TrainJob


def fields(name: str, *names: str) -> tuple[Any, ...]:
    return tuple(getattr(PRESETS[name], field) for field in names)


def test_presets_are_the_designs() -> None:
    assert set(PRESETS) == {"ct", "fusellm", "fusellm-avgce", "paper", "fusionx", "fusionx-network"}
    losses = ("lambda_lm", "lambda_fuse", "lambda_feed", "lambda_select")
    assert fields("ct", "teacher", *losses) == ("none", 1, 0, 0, 0)
    assert fields("fusellm", "teacher", "alignment", "tail", *losses) == (
        "min_ce",
        "mined",
        "renormalise",
        0.9,
        0.1,
        0,
        0,
    )
    assert PRESETS["fusellm-avgce"] == PRESETS["fusellm"].model_copy(update={"teacher": "avg_ce"})
    assert fields("paper", "teacher", "alignment", "tail", *losses) == ("asn", "mined", "renormalise", 1, 0.1, 0.5, 0)
    shared = ("alignment", "tail", "lambda_lm", "lambda_fuse")
    assert fields("fusionx", "teacher", *shared, *losses[2:]) == ("fixed_share", "walk", "bucket", 1, 1, 0, 0)
    assert fields("fusionx-network", "teacher", *shared, *losses[2:]) == ("asn", "walk", "bucket", 1, 1, 0.05, 0.5)
    for name, granularity in (("paper", "element"), ("fusionx-network", "token")):
        assert PRESETS[name].selection == SelectionConfig(granularity=granularity)
    choices = SelectionConfig()
    assert (choices.layers, choices.metric, choices.choice, choices.tau, choices.fusion, choices.feed_over) == (
        "linear3", "softmax", "adaptive", 0.15, "weighted", "weights",
    )  # fmt: skip
    assert 1 <= PRESETS["fusionx"].lambda_fuse <= 3


def test_optimizer_defaults_are_the_papers() -> None:
    config = OptimizerConfig()
    assert (config.betas, config.clip, config.weight_decay, config.warmup_ratio) == ((0.9, 0.95), 1.0, 0.1, 0.008)
    assert config.learning_rate == 3e-5


def test_overrides_change_one_method() -> None:
    config = TrainConfig(methods=["fusionx", "paper"], overrides={"fusionx": {"lambda_fuse": 3}})
    assert config.method("fusionx") == PRESETS["fusionx"].model_copy(update={"lambda_fuse": 3})
    assert config.method("paper") == PRESETS["paper"]
    assert PRESETS["fusionx"].lambda_fuse == 1


def test_a_method_has_a_rate_and_passes_of_its_own() -> None:
    config = TrainConfig(
        methods=["ct", "fusionx", "paper"],
        overrides={"fusionx": {"learning_rate": 1e-4, "epochs": 3}, "ct": {"epochs": 2}},
        optimizer=OptimizerConfig(learning_rate=2e-5, batch_size=4),
        tune=[1e-5, 2e-5],
        tune_each=True,
    )
    schedules = {name: config.optimizer_of(name) for name in config.methods}
    assert {name: (of.learning_rate, of.epochs, of.batch_size) for name, of in schedules.items()} == {
        "ct": (2e-5, 2, 4),
        "fusionx": (1e-4, 3, 4),
        "paper": (2e-5, 1, 4),
    }
    assert config.method("fusionx") == PRESETS["fusionx"]
    assert config.searched() == ["ct", "paper"]
    assert config.model_copy(update={"tune_each": False}).searched() == ["ct"]
    assert config.model_copy(update={"tune": []}).searched() == []
    with pytest.raises(ValueError, match=r"overrides\.ct: epochs"):
        TrainConfig(overrides={"ct": {"epochs": -1}})


def test_a_preset_in_two_forms_beside_each_other() -> None:
    forms = {"fusellm-walk": {"preset": "fusellm", "alignment": "walk", "lambda_fuse": 1}}
    config = TrainConfig(methods=["fusellm", "fusellm-walk"], overrides=forms)
    assert config.method("fusellm") == PRESETS["fusellm"]
    assert config.method("fusellm-walk") == PRESETS["fusellm"].model_copy(
        update={"alignment": "walk", "lambda_fuse": 1}
    )


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        ({"overrides": {"mine": {"preset": "fuselm"}}}, "unknown method 'fuselm'"),
        ({"overrides": {"../mine": {"preset": "fusellm"}}}, "'../mine' cannot be the name"),
        ({"overrides": {"paper": {"preset": "fusellm"}}}, "'paper' cannot be the name"),
        ({"overrides": {"mine": {"preset": ["fusellm"]}}}, "unknown method"),
        ({"methods": ["fusionx", "fuzion"]}, "fuzion"),
        ({"overrides": {"nobody": {}}}, "nobody"),
        ({"overrides": {"fusionx": {"lamda_fuse": 3}}}, "lamda_fuse"),
        ({"overrides": {"fusionx-network": {"selection": {"tau": 1.5}}}}, "tau"),
        ({"overrides": {"fusionx-network": {"selection": {"features": []}}}}, "features"),
        ({"overrides": {"fusionx-network": {"selection": {"features": ["tail", "tail"]}}}}, "features"),
        ({"optimizer": {"lora": {"quantization": "4bit"}}, "run": {"shards": "fsdp"}}, "fsdp"),
        ({"seeds": [0, 1, 0]}, "twice"),
        ({"methods": ["ct", "ct"]}, "twice"),
        ({"methods": []}, "methods"),
        ({"seeds": []}, "seeds"),
        ({"optimizer": {"epochs": 0}}, "optimizer.epochs"),
        ({"optimiser": {}}, "did you mean 'optimizer'"),
        ({"overrides": {"fusionx-network": {"selection": {"granularity": "element"}}}}, "element"),
        ({"overrides": {"fusionx": {"selection": {"tau": 0.2}}}}, "has no selection network: take the preset"),
        ({"overrides": {"fusionx": {"lambda_feed": 0.5}}}, "has no selection network to train"),
        ({"overrides": {"fusellm": {"lambda_select": 0.5}}}, "has no selection network to train"),
        ({"overrides": {"mine": {"preset": "paper", "teacher": "min_ce"}}}, "has no selection network to train"),
    ],
)
def test_refused(raw: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(TrainConfig, raw, "run.yaml")
    assert named in str(caught.value)
    assert "run.yaml" in str(caught.value)


def test_an_override_changes_one_field_of_the_selection() -> None:
    config = TrainConfig(overrides={"paper": {"selection": {"tau": 0.2}}})
    assert config.method("paper").selection == SelectionConfig(granularity="element", tau=0.2)


def test_element_has_no_selector_loss_and_no_bucket() -> None:
    """Asking for them must not be silently ignored."""
    for wrong in ({"tail": "bucket"}, {"lambda_select": 0.5}):
        with pytest.raises(ValueError, match="element"):
            MethodConfig.model_validate({**PRESETS["paper"].model_dump(), **wrong})


def test_a_teacher_needs_candidates(tmp_path: Path) -> None:
    job = make_job(tmp_path, "tokens", {"a": "b"}, tmp_path)
    with pytest.raises(ConfigError, match="aligned"):
        parse_config(TrainJob, {**job.model_dump(), "aligned": {}}, "job.json")


def test_where_the_work_is_done_is_no_content(tmp_path: Path) -> None:
    job = make_job(tmp_path, "tokens", {"a": "b"}, tmp_path)
    moved = make_job(tmp_path / "x", "other", {"a": "c"}, tmp_path / "y", run={"checkpoint_every": 99, "log_every": 7})
    assert job.digest() == moved.digest()
    for other in (
        make_job(tmp_path, "tokens", {"a": "b"}, tmp_path, seed=1),
        make_job(tmp_path, "tokens", {"a": "b"}, tmp_path, "ct"),
        make_job(tmp_path, "tokens", {"a": "b"}, tmp_path, inputs={"tokens": "u"}),
        make_job(tmp_path, "tokens", {"a": "b"}, tmp_path, optimizer={"epochs": 9}),
        make_job(tmp_path, "tokens", {"a": "b"}, tmp_path, optimizer={"data_share": 0.5}),
        make_job(tmp_path, "tokens", {"a": "b"}, tmp_path, MethodConfig(k=4)),
    ):
        assert other.digest() != job.digest()
    content = job.content()
    assert "k" not in content["method"], "trainings of before the field was there stay valid"
    assert "data_share" not in content["optimizer"]
