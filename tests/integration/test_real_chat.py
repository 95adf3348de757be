"""Conversations through three real models by their own chat templates; Gemma 3's base model is given one by the config.

From chunks over logits to what is aligned, where `make demo-real` has made the models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_models import GEMMA, conversation

from fusionx.align.aligned_stage import AlignedStage
from fusionx.align.config import AlignConfig
from fusionx.align.tokens_stage import TokensStage
from fusionx.contract.errors import ConfigError
from fusionx.contract.shards.manifest import build_manifest, write_manifest
from fusionx.contract.shards.rows import read_shards
from fusionx.contract.tokens.chat import load_chat_encoder, messages_of
from fusionx.precompute.chunks.chunk_stage import ChunkStage
from fusionx.precompute.config import ChunkConfig, CorpusConfig, ModelConfig, PrecomputeConfig
from fusionx.precompute.logits.logits_stage import LogitsStage

K = 16
GEMMA3 = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}{%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = '' -%}{%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else '') }}
    {{- message['content'] | trim }}{{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}
"""
"""As the instruction-tuned Gemma 3 has it, for messages of text: a system message stands before the first question."""
ENDS = {"smollm2": "<|im_end|>", "qwen": "<|im_end|>", "gemma": "<end_of_turn>"}
CONVERSATIONS = [
    conversation([("What is the capital of France?", "The capital of France is Paris.")]),
    conversation([("Add two numbers.", "def add(a, b):\n    return a + b"), ("And subtract?", "a - b")], "Be brief."),
    conversation([("Wie heißt die Straße?", "Sie heißt Königstraße, 你好 😀.")], "You know every street."),
]

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Made:
    """The outputs of the data stages, and the models by their names."""

    root: Path
    models: Mapping[str, ModelConfig]

    def rows(self, folder: str) -> dict[tuple[int, int], dict[str, Any]]:
        return {(row["doc_id"], row["chunk"]): row for row in read_shards(str(self.root / folder))}


def run(stage: Any) -> None:
    units, worker = list(stage.units()), stage.worker()
    provenance = stage.provenance(units[0])
    entries = [worker(unit) for unit in units]
    write_manifest(stage.output, build_manifest(stage.kind, provenance.config, provenance.identity, entries))


@pytest.fixture(scope="module")
def models(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelConfig]:
    template = tmp_path_factory.mktemp("template") / "gemma3.jinja"
    template.write_text(GEMMA3)
    found = {}
    for name in ENDS:
        folder = root / "data" / "real" / "models" / name
        if not folder.is_dir():
            pytest.skip(f"{folder} is not there: `make demo-real` makes it")
        given = {"chat_template": str(template)} if name == "gemma" else {}
        found[name] = ModelConfig(id=name, path=str(folder), dtype="float32", **given)
    return found


@pytest.fixture(scope="module")
def made(models: dict[str, ModelConfig], tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("real-chat")
    (root / "train.jsonl").write_text("".join(json.dumps({"messages": one}) + "\n" for one in CONVERSATIONS))
    corpus = CorpusConfig(path=str(root / "train.jsonl"), format="chat", splits=["train"])
    chunks, target = str(root / "chunks"), models["smollm2"]
    run(ChunkStage(corpus, ChunkConfig(block_size=256), list(models.values()), chunks))
    for name, model in models.items():
        run(LogitsStage(model, PrecomputeConfig(k=K, device="cpu"), chunks, str(root / "logits" / name)))
    run(TokensStage("smollm2", target.path, None, ["train"], chunks, str(root / "tokens")))
    for name, model in models.items():
        places = [str(root / folder) for folder in (f"logits/{name}", "logits/smollm2", "tokens", f"aligned/{name}")]
        who = (name, model.path, None, "smollm2", target.path, None)
        stage = AlignedStage(*who, "walk", AlignConfig(), *places)
        stage.check()
        run(stage)
    return Made(root, models)


def answers(made: Made) -> dict[tuple[int, int], str]:
    return {key: messages_of(row["text"])[-1]["content"] for key, row in made.rows("chunks").items()}


@pytest.mark.parametrize("name", ENDS)
def test_stored_are_the_answers_alone_as_a_plain_forward_pass_has_them(made: Made, name: str) -> None:
    """Of what transformers renders and tokenizes with the same template."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config, said = made.models[name], answers(made)
    chat = load_chat_encoder(name, config.path, None, config.chat_template)
    tokenizer = AutoTokenizer.from_pretrained(config.path)
    if chat.given is not None:
        tokenizer.chat_template = chat.given
    assert tokenizer.convert_ids_to_tokens(chat.end_id) == ENDS[name]
    model = AutoModelForCausalLM.from_pretrained(config.path, dtype=torch.float32).eval()
    texts, rows = made.rows("chunks"), made.rows(f"logits/{name}")
    assert len(rows) == len(said) == 4
    for key, row in rows.items():
        stored = row["input_ids"].tolist()
        assert chat.table.joined(stored[1:]).decode() == said[key]
        assert (row["ends"][0], row["ends"][-1]) == (0, len(said[key].encode()))
        ids = tokenizer.apply_chat_template(messages_of(texts[key]["text"]), tokenize=True)["input_ids"]
        first = max(at for at in range(len(ids)) if ids[at : at + len(stored)] == stored)
        assert ids[first + len(stored)] == chat.end_id
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, first : first + len(stored)]
        expected = logits.double().log_softmax(-1)
        found = torch.from_numpy(row["logprobs"]).double()
        close = {"rtol": 2**-11, "atol": 2e-3}
        torch.testing.assert_close(found, expected[:, : chat.vocab_size].topk(K).values, **close)
        nll = -expected[:-1].gather(1, torch.tensor(stored[1:])[:, None])[:, 0]
        torch.testing.assert_close(torch.from_numpy(row["token_nll"][:-1]).double(), nll, **close)


def test_the_target_aligned_with_itself_is_itself(made: Made) -> None:
    own, rows = made.rows("logits/smollm2"), made.rows("aligned/smollm2")
    for key, row in rows.items():
        for place in range(len(row["status"]) - 1):
            pairs = zip(row["ids"][place].tolist(), row["logprobs"][place].tolist(), strict=True)
            mine = dict(zip(own[key]["ids"][place].tolist(), own[key]["logprobs"][place].tolist(), strict=True))
            label = int(own[key]["input_ids"][place + 1])
            mine.setdefault(label, -float(own[key]["token_nll"][place]))
            assert all(mine[token] == pytest.approx(logprob, abs=2e-2) for token, logprob in pairs if token >= 0)


@pytest.mark.parametrize("name", ENDS)
def test_every_place_of_an_answer_is_aligned_and_none_behind_it(made: Made, name: str) -> None:
    """And the text is as likely as the source itself finds it."""
    own, tokens, said = made.rows(f"logits/{name}"), made.rows("tokens"), answers(made)
    for key, row in made.rows(f"aligned/{name}").items():
        assert row["status"][-1] == 0
        assert np.all(row["status"][:-1] > 0)
        assert row["nll_bytes"] == len(said[key].encode()) == tokens[key]["ends"][-1]
        assert row["nll"] == pytest.approx(float(own[key]["token_nll"][:-1].sum()), rel=1e-4)


def test_a_template_that_refuses_the_system_role_is_named(models: dict[str, ModelConfig]) -> None:
    path = models["gemma"].path
    with pytest.raises(ConfigError, match="The model 'gemma' has no chat template"):
        load_chat_encoder("gemma", path)
    strict = load_chat_encoder("gemma", path, None, GEMMA)
    with pytest.raises(ConfigError, match="'gemma' cannot write messages of the role 'system'") as caught:
        strict.length(CONVERSATIONS[1])
    assert "System role not supported" in caught.value.details["found"]
    assert "corpus.system to merge or drop" in caught.value.details["remedy"]
    lenient = load_chat_encoder("gemma", path, None, models["gemma"].chat_template)
    assert lenient.written(CONVERSATIONS[1])[0].startswith("<bos><start_of_turn>user\nBe brief.\n\nAdd two numbers.")
