"""The whole road at the smallest size: what is made loads as anybody's folders, once made it stays, resume is exact."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusionx.contract.config import load_config, parse_config
from fusionx.contract.errors import ConfigError
from fusionx.contract.files import done_marks
from fusionx.contract.files.storage import write_bytes
from fusionx.pipelines.demo import inputs, models
from fusionx.pipelines.demo.config import DemoInputs

CONFIGS = Path(__file__).parents[4] / "configs" / "inputs"


def tiny(output: Path, **changes: Any) -> DemoInputs:
    def model(name: str, architecture: str, tokenizer: str) -> dict[str, Any]:
        return {
            "id": name,
            "architecture": architecture,
            "tokenizer": tokenizer,
            "vocab_size": 420,
            "hidden_size": 16,
            "layers": 2,
            "heads": 2,
            "context": 32,
            "mix": {"stubs": 1, "skill_boolean": 1},
            "training_tokens": 640,
            "batch_tokens": 128,
            "learning_rate": 1e-3,
        }

    raw: dict[str, Any] = {
        "output": str(output),
        "tokenizer_sample_kb": 20,
        "device": "cpu",
        "corpus": {
            "real_domains_kb": {"stubs": 60, "licences": 60},
            "skills_kb": {"boolean": 10},
            "train_kb": 2,
            "validation_kb": 2,
            "test_kb": 2,
            "absent_from_train": ["licences"],
            "task_examples": 5,
        },
        "models": [
            model("target", "llama", "sentencepiece_bpe"),
            model("coder", "gpt_neox", "byte_bpe"),
            model("writer", "gpt_neo", "unigram"),
            model("scribe", "starcoder2", "regex_byte_bpe"),
            model("clerk", "gpt_bigcode", "regex_byte_bpe"),
        ],
    }
    return parse_config(DemoInputs, raw | changes, source="test")


def stamps(output: Path) -> dict[str, int]:
    return {
        path.relative_to(output).as_posix(): path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()
    }


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("demo")
    inputs.make_inputs(tiny(output))
    return output


def test_everything_loads_as_ordinary_folders(output: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for config in tiny(output).models:
        folder = output / "models" / config.id
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert model.config.model_type == config.architecture
        assert model.get_input_embeddings().num_embeddings == len(tokenizer) == config.vocab_size
        assert model.generation_config.eos_token_id == tokenizer.eos_token_id
        assert not list(output.rglob("*.checkpoint"))
        trained = AutoTokenizer.from_pretrained(output / "tokenizers" / config.id)
        assert trained("x = [1, 23]\n")["input_ids"] == tokenizer("x = [1, 23]\n")["input_ids"]
    tasks = json.loads((output / "tasks" / "boolean.json").read_text())
    assert len(tasks["examples"]) == 5
    assert set(tasks["examples"][0]) == {"input", "target"}
    costs = models.bits_per_byte(output / "models" / "coder", output / "corpus" / "test.parquet", "cpu")
    assert set(costs) == {"stubs", "licences", "skill_boolean"}
    assert all(0 < cost < 20 for cost in costs.values())


def test_second_call_writes_nothing(output: Path) -> None:
    before = stamps(output)
    inputs.make_inputs(tiny(output))
    assert stamps(output) == before


def test_only_what_changed_is_made_again(output: Path) -> None:
    before = stamps(output)
    raw = [model.model_dump() for model in tiny(output).models]
    raw[1]["learning_rate"] = 5e-3
    inputs.make_inputs(tiny(output, models=raw))
    changed = {name for name, stamp in stamps(output).items() if before.get(name) != stamp}
    assert changed
    assert all(name.startswith("models/coder") for name in changed)


def test_a_damaged_model_is_made_again(output: Path) -> None:
    weights = output / "models" / "writer" / "model.safetensors"
    intact = weights.read_bytes()
    weights.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    inputs.make_inputs(tiny(output), only="writer")
    assert weights.read_bytes() == intact


def test_another_training_seed_gives_other_models_of_the_same_text(output: Path, tmp_path: Path) -> None:
    before = stamps(output)
    inputs.make_inputs(tiny(output, training_seed=0), only="target")
    assert stamps(output) == before, "without it, the models have the corpus's seed"
    inputs.make_inputs(tiny(tmp_path, training_seed=1), only="target")
    same = ["tasks/boolean.json", "tokenizers/target/tokenizer.json", "corpus/train.parquet", "experts/stubs.parquet"]
    for name in same:
        assert (tmp_path / name).read_bytes() == (output / name).read_bytes()
    weights = "models/target/model.safetensors"
    assert (tmp_path / weights).read_bytes() != (output / weights).read_bytes()


def test_a_tokenizer_file_is_taken_and_what_it_holds_is_what_counts(output: Path, tmp_path: Path) -> None:
    target = tiny(tmp_path).models[0].model_dump()
    for name in ("kept", "moved"):
        shutil.copy(output / "tokenizers" / "coder" / "tokenizer.json", tmp_path / f"{name}.json")

    def config(name: str) -> DemoInputs:
        kept = target | {"tokenizer": "byte_bpe", "tokenizer_file": str(tmp_path / name)}
        return tiny(tmp_path / "out", models=[kept])

    inputs.make_inputs(config("kept.json"))
    made = tmp_path / "out" / "models" / "target" / "tokenizer.json"
    assert made.read_bytes() == (tmp_path / "kept.json").read_bytes()
    assert changed_by(config("moved.json"), None) == set()
    other = json.loads((tmp_path / "moved.json").read_text())
    other["model"]["merges"][-1:] = []
    (tmp_path / "moved.json").write_text(json.dumps(other))
    assert changed_by(config("moved.json"), None) == {"tokenizers/target", "models/target"}


@pytest.mark.parametrize(
    ("content", "vocab_size", "said"),
    [
        (None, 420, ["a tokenizer.json", "correct the path"]),
        ("{}", 420, ["a tokenizer.json"]),
        ("coder", 421, ["420 tokens", "421, the model's vocab_size"]),
    ],
)
def test_a_tokenizer_file_that_will_not_do_is_named(
    content: str | None, vocab_size: int, said: list[str], output: Path, tmp_path: Path
) -> None:
    file = tmp_path / "kept.json"
    if content == "coder":
        shutil.copy(output / "tokenizers" / "coder" / "tokenizer.json", file)
    elif content is not None:
        file.write_text(content)
    target = tiny(tmp_path).models[0].model_dump()
    kept = target | {"tokenizer": "byte_bpe", "tokenizer_file": str(file), "vocab_size": vocab_size}
    with pytest.raises(ConfigError) as caught:
        inputs.make_inputs(tiny(tmp_path / "out", models=[kept]))
    for words in (*said, "models.target.tokenizer_file", str(file)):
        assert words in str(caught.value)


SIBLING = {"id": "twin", "start": "target", "mix": {"stubs": 1}, "training_tokens": 256, "learning_rate": 1e-9}


def changed_by(config: DemoInputs, only: str | None) -> set[str]:
    """Names of the pieces of which a call writes any file."""
    before = stamps(Path(config.output))
    inputs.make_inputs(config, only)
    written = [name for name, stamp in stamps(Path(config.output)).items() if before.get(name) != stamp]
    return {"/".join(name.split("/")[:2]).removesuffix(".made.json") for name in written}


def test_a_sibling_goes_on_from_its_start_and_is_made_only_when_asked_for(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    target, coder = (model.model_dump() for model in tiny(tmp_path).models[:2])
    config = tiny(tmp_path, models=[target, coder], siblings=[SIBLING])
    assert "models/target" in changed_by(config, "target")
    assert changed_by(config, None) == {"models/coder", "tokenizers/coder"}
    assert changed_by(config, "siblings") == {"models/twin"}
    assert changed_by(config, "twin") == set()
    start, twin = (
        dict(AutoModelForCausalLM.from_pretrained(tmp_path / "models" / name).named_parameters())
        for name in ("target", "twin")
    )
    distance = max((twin[name] - weight).abs().max().item() for name, weight in start.items())
    assert 0 < distance < 1e-6, "at such a rate it has hardly left its start"
    tokenizers = [(tmp_path / "models" / name / "tokenizer.json").read_bytes() for name in ("target", "twin")]
    assert tokenizers[0] == tokenizers[1]

    another = tiny(tmp_path, models=[target | {"learning_rate": 5e-3}, coder], siblings=[SIBLING])
    assert changed_by(another, "siblings") == {"models/target", "models/twin"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"start": "nobody"}, "sibling twin starts from 'nobody', which is none of models: target, coder"),
        ({"start": "twin"}, "sibling twin starts from 'twin', which is none of models"),
        ({"id": "coder"}, "two models have the same id"),
        ({"mix": {"klingon": 1}}, "the mix of model twin names no domain of the corpus: klingon"),
        ({"training_tokens": 100}, "training_tokens of sibling twin is below one batch of 'target'"),
        ({"hidden_size": 32}, "siblings.0.hidden_size: unknown key"),
    ],
)
def test_mistakes_of_siblings_are_named(output: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        tiny(output, siblings=[SIBLING | change])
    assert said in str(error.value)


def test_parallel_training_gives_the_same_weights(output: Path, tmp_path: Path) -> None:
    chosen = [model.model_dump() for model in tiny(tmp_path).models[:2]]
    inputs.make_inputs(tiny(tmp_path, models=chosen, jobs=2), only="models")
    for name in ("corpus/train.parquet", "tokenizers/target/tokenizer.json"):
        assert (tmp_path / name).read_bytes() == (output / name).read_bytes()
    assert {path.name for path in (tmp_path / "models").iterdir() if path.is_dir()} == {"target", "coder"}


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("place", [0, 2])
def test_a_killed_training_resumes_exactly(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: int
) -> None:
    config = tiny(output, checkpoint_seconds=1e-9)
    model = config.models[place]
    training = models.Training(
        config, model, output / "tokenizers" / model.id, output / "experts", tmp_path / model.id, "digest"
    )
    whole = models.train(training).joinpath("model.safetensors").read_bytes()
    write = models._write_checkpoint

    def die_after_three(training: models.Training, model: Any, optimizer: Any, step: int) -> None:
        write(training, model, optimizer, step)
        if step == 3:
            raise KilledError

    for damaged in (False, True):
        monkeypatch.setattr(models, "_write_checkpoint", die_after_three)
        with pytest.raises(KilledError):
            models.train(training)
        monkeypatch.undo()
        if damaged:
            file = training.checkpoint / "state.pt"
            content = file.read_bytes()
            file.write_bytes(content[:999] + bytes([content[999] ^ 1]) + content[1000:])
        lines: list[str] = []
        assert models.train(training, lines.append).joinpath("model.safetensors").read_bytes() == whole
        assert any("resuming at step 3" in line for line in lines) is not damaged
        assert ("begins anew" in capsys.readouterr().out) is damaged


def test_pack_mix_keeps_the_weights() -> None:
    documents = {"few": [[1] * 10] * 3, "many": [[2] * 7] * 500}
    stream = models.pack_mix(documents, {"few": 3.0, "many": 1.0, "other": 1.0}, 4000, "seed")
    assert len(stream) == 4000
    assert abs(np.mean(stream == 1) - 0.75) < 0.03
    assert (stream == models.pack_mix(documents, {"few": 3.0, "many": 1.0}, 4000, "seed")).all()


def test_marks_tell_what_is_damaged(tmp_path: Path) -> None:
    piece = tmp_path / "piece"
    file = piece / "a.txt"
    write_bytes(file, b"content")
    done_marks.write_mark(piece, "digest", [file])
    assert done_marks.is_done(piece, "digest")
    assert not done_marks.is_done(piece, "other")
    file.write_bytes(b"Content")
    assert not done_marks.is_done(piece, "digest")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("demo*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_hold_what_the_demo_needs(path: Path) -> None:
    config = load_config(DemoInputs, path)
    assert [model.id for model in config.models] == ["target", "coder", "writer", "scribe"]
    experts = [model.mix for model in config.models if model.id != "target"]
    for domain in config.corpus.domains():
        best = max(mix.get(domain, 0) / sum(mix.values()) for mix in experts)
        target = config.models[0].mix
        assert best > target[domain] / sum(target.values()), f"{domain} is no expert's speciality"
    absent = config.corpus.absent_from_train
    assert sum(not domain.startswith("skill_") for domain in absent) >= 2
    assert any(domain.startswith("skill_") for domain in absent)


def test_mistakes_are_named(output: Path) -> None:
    with pytest.raises(ConfigError, match="no such part"):
        inputs.make_inputs(tiny(output), only="nobody")
    raw = [model.model_dump() for model in tiny(output).models]
    raw[0]["mix"] = {"klingon": 1.0}
    with pytest.raises(ConfigError, match="klingon"):
        tiny(output, models=raw)
