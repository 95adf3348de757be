"""What an export holds: a model that loads, the target's own settings, the selection network, and an honest card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from shard_builder import make_job
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import fusionx.contract.models.hub
import fusionx.contract.models.licence
from fusionx.contract.errors import DamageError, DataError
from fusionx.contract.files.sealed import FOLDER_SEAL
from fusionx.train.config import PRESETS, MethodConfig, SelectionConfig, TrainJob
from fusionx.train.objective.selection_network import SelectionNetwork
from fusionx.train.state.export import load_asn, prepared_export
from fusionx.train.state.model_card import TrainingOutcome, hub_id, model_card, public_name
from fusionx.train.state.state_dicts import full_state_dict

SELECTIONS = [
    SelectionConfig(),
    SelectionConfig(granularity="element", layers="conv", choice="top_n"),
    SelectionConfig(features=["entropy", "aligned"], layers="linear1", metric="noise", tau=0.2),
]


class StandInTarget:
    """What `prepared_export` reads of a target."""

    def __init__(self, folder: Path, stored_dtype: torch.dtype = torch.float32) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.stored_dtype = stored_dtype


@pytest.fixture
def folder(tmp_path: Path, make_model: Any) -> Path:
    """A target with settings of its own for generation."""
    made = make_model(tmp_path / "target", "gpt_neo", 300)  # its head is tied
    GenerationConfig(max_new_tokens=7, do_sample=True, temperature=0.6, eos_token_id=[0, 5]).save_pretrained(made)
    return made


def exported(folder: Path, target: Any, asn: SelectionNetwork | None = None, card: str = "card") -> Path:
    weights, tokenizer = full_state_dict(target.model), AutoTokenizer.from_pretrained(folder)
    output = folder.parent / "best"
    prepared_export(output, weights, target, asn, ["a", "b"], card, tokenizer)()
    return output


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_loads_as_any_model(folder: Path, dtype: torch.dtype) -> None:
    target = StandInTarget(folder, dtype)
    output = exported(folder, target)
    assert "lm_head.weight" not in load_file(output / "model.safetensors")
    loaded, info = AutoModelForCausalLM.from_pretrained(output, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert loaded.dtype == dtype
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    expected = target.model.to(dtype).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    config = json.loads((output / "config.json").read_text())
    assert config["dtype"] == str(dtype).removeprefix("torch.")
    assert config["architectures"] == ["GPTNeoForCausalLM"]
    own, kept = (json.loads((place / "generation_config.json").read_text()) for place in (folder, output))
    assert {**own, "transformers_version": ""} == {**kept, "transformers_version": ""}
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert tokenizer.decode(tokenizer("The quick fox")["input_ids"]) == "The quick fox"
    assert (output / "README.md").read_text() == "card"


def test_the_weights_given_are_the_ones_written(folder: Path) -> None:
    """Not the live model's, which may be divided over devices."""
    target = StandInTarget(folder)
    weights = {name: tensor + 1 for name, tensor in full_state_dict(target.model).items()}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prepared_export(folder.parent / "best", weights, target, None, [], "", tokenizer)()  # type: ignore[arg-type]
    written = load_file(folder.parent / "best" / "model.safetensors")
    assert all(torch.equal(weights[name], tensor) for name, tensor in written.items())


@pytest.mark.parametrize("selection", SELECTIONS, ids=lambda selection: selection.granularity)
def test_the_selection_network_comes_back(folder: Path, selection: SelectionConfig) -> None:
    torch.manual_seed(0)
    asn = SelectionNetwork(2, selection)
    output = exported(folder, StandInTarget(folder), asn)
    loaded, candidates = load_asn(output)
    assert candidates == ["a", "b"]
    assert loaded.config == selection
    assert all(torch.equal(tensor, asn.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def test_files_beside_the_weights_are_kept(folder: Path) -> None:
    for name in ("preprocessor_config.json", "chat_template.jinja", "notes.txt"):
        (folder / name).write_text("{}")
    output = exported(folder, StandInTarget(folder))
    assert (output / "preprocessor_config.json").read_text() == (output / "chat_template.jinja").read_text() == "{}"
    assert not (output / "notes.txt").exists()


def test_heads_beyond_the_plain_one_are_left_out_and_said(
    tmp_path: Path, make_tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """As Qwen3.5 has them: transformers does not load their weights, so the config must not promise them."""
    from transformers import AutoConfig

    folder = tmp_path / "target"
    sizes: dict[str, Any] = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "mtp_num_hidden_layers": 1}
    sizes |= {
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 1,
        "linear_num_value_heads": 1,
    }
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3_5_text", **sizes))
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors") | {"mtp.norm.weight": torch.ones(32)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    make_tokenizer(folder, 300)
    output = exported(folder, StandInTarget(folder))
    assert not any("mtp" in name for name in load_file(output / "model.safetensors"))
    assert json.loads((output / "config.json").read_text())["mtp_num_hidden_layers"] == 0
    said = "heads for tokens beyond the next (mtp_num_hidden_layers: 1) were not trained and are left out"
    assert said in capsys.readouterr().err
    assert said in (output / "README.md").read_text()


def test_a_selection_network_that_cannot_be_read(folder: Path) -> None:
    output = exported(folder, StandInTarget(folder), SelectionNetwork(2, SelectionConfig()))
    save_file({"other": torch.zeros(1)}, output / "asn.safetensors")
    with pytest.raises(DamageError, match="is damaged") as caught:
        load_asn(output)
    assert caught.value.details["file"] == str(output / "asn.safetensors")
    (output / FOLDER_SEAL).unlink()  # as whoever changes the folder is told to
    with pytest.raises(DataError, match="cannot be read"):
        load_asn(output)
    with pytest.raises(DataError, match="cannot be read"):
        load_asn(folder)


def test_a_failed_export_leaves_the_last_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = StandInTarget(folder)
    output = exported(folder, target, card="first")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(AutoTokenizer.from_pretrained(folder).__class__, "save_pretrained", full)
    with pytest.raises(DataError, match="cannot be written") as caught:
        exported(folder, target, card="second")
    assert caught.value.details["file"] == str(output)
    assert (output / "README.md").read_text() == "first"


OUTCOME = TrainingOutcome(
    "best", 40, 100, 123456, {"start": 1.25, "best": 1.125}, {"target": 0.25, "prose": 0.5, "code": 0.25}, processes=4
)


def job_of(folder: Path, method: str | MethodConfig = "fusionx", **changed: Any) -> TrainJob:
    sources = {
        "prose": {"path": str(folder.parent / "prose"), "revision": "abc"},
        "code": {"path": "someone/code-model", "revision": ""},
    }
    job = make_job(folder, "tokens", {"target": "t", "prose": "p", "code": "c"}, folder.parent / "out", method)
    return job.model_copy(update={"sources": sources, "corpus": "someone/corpus", **changed})


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that answers no question."""
    import huggingface_hub

    def unreachable(*_: object, **__: object) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    monkeypatch.setattr(fusionx.contract.models.hub, "is_offline", lambda: False)
    monkeypatch.setattr(fusionx.contract.models.licence, "is_offline", lambda: False)
    fusionx.contract.models.licence.licence_fields.cache_clear()


def state_licence(folder: Path, **fields: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(fields)}---\n# A model\n---\nmore\n")


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


@pytest.mark.usefixtures("no_hub")
def test_the_card_says_what_was_done(folder: Path) -> None:
    state_licence(folder, license="other", license_name="own-licence", license_link="https://example.org")
    state_licence(folder.parent / "prose", license="apache-2.0")
    card = model_card(job_of(folder, PRESETS["fusionx-network"].model_copy(update={"lambda_fuse": 2.0})), OUTCOME)
    assert front_matter(card) == {
        "license": "other",
        "license_name": "own-licence",
        "license_link": "https://example.org",
        "datasets": ["someone/corpus"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["fusion-x", "knowledge-fusion"],
    }  # a local target is no base model that a hub could link to
    rows = {line.split(" | ")[0].strip("| "): line for line in card.splitlines() if line.startswith("|")}
    assert "own-licence" in rows["target"]
    assert rows["prose"].split(" | ")[1:] == ["source", "prose", "abc", "apache-2.0", "0.500 |"]
    assert rows["code"].split(" | ")[1:] == ["source", "someone/code-model", "not pinned", "not known", "0.250 |"]
    assert str(folder.parent) not in card, "nobody elsewhere can do anything with a local path"
    assert "1 L_lm + 2 L_fuse + 0.05 L_feed + 0.5 L_select" in rows["Losses"]
    assert "alignment walk, tail bucket" in rows["Distributions"]
    assert "granularity token" in rows["Selection"]
    assert "start 1.2500, best 1.1250" in rows["Validation, bits per byte"]
    assert "123,456" in rows["Tokens seen"]
    assert rows["Hardware"].endswith("4 x CPU |")
    assert f"torch {torch.__version__}" in rows["Versions"]


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("method", PRESETS)
def test_every_method_has_a_card(folder: Path, method: str) -> None:
    job = job_of(folder, method, corpus="notes.txt", target_path="someone/target", target_revision="v1")
    card = model_card(job, OUTCOME)
    assert front_matter(card)["base_model"] == "someone/target"
    assert "datasets" not in front_matter(card)
    assert ("| Selection |" in card) == (job.method.teacher == "asn")
    assert (" L_fuse" in card) == (job.method.teacher != "none")
    assert (" L_select" in card) == (job.method.teacher == "asn")


@pytest.mark.usefixtures("no_hub")
def test_only_a_card_that_cannot_be_read_is_worth_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not that a local model has none."""
    model_card(job_of(folder), OUTCOME)
    assert "someone/code-model" in caplog.text
    assert str(folder) not in caplog.text


def test_without_a_network_no_licence_is_looked_up(
    folder: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    fusionx.contract.models.licence.licence_fields.cache_clear()
    state_licence(folder.parent / "prose", license="mit")
    (folder / "README.md").write_text("# A model whose card has no front matter\n")
    model_card(job_of(folder), OUTCOME)
    assert caplog.text == ""
    assert "".join(capfd.readouterr()) == ""


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("someone/model", "someone/model"),
        ("hf://someone/files@v1/model-q4.gguf", "someone/files"),
        ("/cache/hub/models--someone--model-1/snapshots/0123abc", "someone/model-1"),
        ("/home/me/models/small", None),
        ("models/small/", None),
        ("notes.txt", None),
    ],
)
def test_what_lies_on_the_hub_is_named_as_there(path: str, found: str | None) -> None:
    assert hub_id(path) == found
    assert "/home" not in public_name(path)


@pytest.mark.parametrize("text", ["", "# no front matter", "---\n[broken\n---\n", "---\njust text\n---\n", b"\xff\xfe"])
def test_a_strange_card_never_ends_a_training(folder: Path, text: str | bytes) -> None:
    fusionx.contract.models.licence.licence_fields.cache_clear()
    (folder / "README.md").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert "license" not in front_matter(model_card(job_of(folder), OUTCOME))
