"""Loading, BOS and fingerprints of tokenizers."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizer_builder import byte_level_bpe, installed, made, sentencepiece_bpe, wrapped
from tokenizers import Tokenizer
from transformers import (
    AutoTokenizer,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
)

from fusionx.contract.errors import ConfigError
from fusionx.contract.tokens.encoding import encode
from fusionx.contract.tokens.token_table import token_table
from fusionx.contract.tokens.tokenizer import adds_bos, load_tokenizer, tokenizer_fingerprint


def test_loading_names_folder_and_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere") as missing:
        load_tokenizer(tmp_path / "nowhere")
    assert "remedy" in str(missing.value)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["byte-level", "sentencepiece", "unigram", "wordpiece", "mistral"])
def test_fingerprint_survives_a_round_trip(name: str, tmp_path: Path) -> None:
    tokenizer, table = made(name)
    tokenizer.save_pretrained(tmp_path / "once")
    once = load_tokenizer(tmp_path / "once")
    once("use it", truncation=True, max_length=3)
    once.save_pretrained(tmp_path / "twice")
    assert tokenizer_fingerprint(once) == table.fingerprint
    assert token_table(load_tokenizer(tmp_path / "twice")) == table


@pytest.mark.parametrize("stated", ["as saved", "LlamaTokenizer", "GPT2Tokenizer", "PreTrainedTokenizerFast", ""])
@pytest.mark.parametrize("config", [LlamaConfig(), Qwen2Config(), Gemma3TextConfig(), MistralConfig(), GPTNeoXConfig()])
def test_a_tokenizer_beside_a_model_is_the_one_that_transformers_loads(
    config: PreTrainedConfig, stated: str, tmp_path: Path
) -> None:
    """Which needs the model's class, whose import takes seconds, only where no tokenizer's class is stated."""
    made("byte-level")[0].save_pretrained(tmp_path)
    config.save_pretrained(tmp_path)
    place = tmp_path / "tokenizer_config.json"
    settings = json.loads(place.read_text())
    place.write_text(
        json.dumps({**settings, "tokenizer_class": settings["tokenizer_class"] if "as" in stated else stated})
    )
    found, expected = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert type(found) is type(expected)
    assert tokenizer_fingerprint(found) == tokenizer_fingerprint(expected)
    assert found.init_kwargs == expected.init_kwargs


def test_a_stated_tokenizer_is_loaded_without_the_code_of_its_model(tmp_path: Path) -> None:
    made("byte-level")[0].save_pretrained(tmp_path)
    LlamaConfig().save_pretrained(tmp_path)
    program = "import sys; from fusionx.contract.tokens.tokenizer import *; load_tokenizer(sys.argv[1]); "
    program += "assert not [name for name in sys.modules if name.startswith('transformers.models.llama.')]"
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)


def test_what_a_tokenizer_draws_by_chance_is_switched_off(tmp_path: Path) -> None:
    for name, setting in (("byte-level", {"dropout": 0.5}), ("unigram", {"alpha": 0.1, "nbest_size": 8})):
        folder = tmp_path / name
        made(name)[0].save_pretrained(folder)
        state = json.loads((folder / "tokenizer.json").read_text())
        state["model"] |= setting
        (folder / "tokenizer.json").write_text(json.dumps(state))
        tokenizer, table = load_tokenizer(folder), made(name)[1]
        text = "The quick brown fox jumps over the lazy dog. " * 20
        expected = encode(*made(name), text, False).ids.tolist()
        assert all(encode(tokenizer, table, text, False).ids.tolist() == expected for _ in range(5))
        assert tokenizer_fingerprint(tokenizer) == table.fingerprint


def test_fingerprint_is_the_same_in_another_process(tmp_path: Path) -> None:
    tokenizer, table = made("sentencepiece")
    tokenizer.save_pretrained(tmp_path)
    program = "import sys; from fusionx.contract.tokens.tokenizer import *; "
    program += "print(tokenizer_fingerprint(load_tokenizer(sys.argv[1])))"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", program, str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == table.fingerprint


def test_fingerprint_sees_every_part_that_decides_ids() -> None:
    base = byte_level_bpe()
    found = [tokenizer_fingerprint(base)]
    state = json.loads(base.backend_tokenizer.to_str())

    def variant(change: object, **roles: str) -> str:
        changed = json.loads(json.dumps(state))
        change(changed)  # type: ignore[operator]
        roles = roles or {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
        return tokenizer_fingerprint(wrapped(Tokenizer.from_str(json.dumps(changed)), **roles))

    assert variant(lambda s: None) == found[0]
    last = max(state["model"]["vocab"], key=state["model"]["vocab"].get)
    swapped = state["model"]["merges"][::-1]
    found += [
        variant(lambda s: s["model"]["vocab"].update(new=s["model"]["vocab"][last] + 50)),
        variant(lambda s: s["model"].update(merges=swapped)),
        variant(lambda s: s.update(normalizer={"type": "NFKC"})),
        variant(lambda s: s["pre_tokenizer"].update(add_prefix_space=True)),
        variant(lambda s: None, eos_token="<|endoftext|>"),
        variant(lambda s: s["added_tokens"].pop()),
    ]
    assert len(set(found)) == len(found)


def test_adds_bos_is_found_by_trying() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = sentencepiece_bpe()
    assert not adds_bos(tokenizer)
    before = tokenizer_fingerprint(tokenizer)
    template = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.backend_tokenizer.post_processor = template
    assert adds_bos(tokenizer)
    assert tokenizer_fingerprint(tokenizer) != before
    table = token_table(tokenizer)
    assert encode(tokenizer, table, "a", add_bos=False).ids[0] != 1
    assert encode(tokenizer, table, "a", add_bos=True).ids.tolist().count(1) == 1
    assert adds_bos(tokenizer)  # encoding left the tokenizer as it was


def test_a_folder_with_tekken_only_gives_a_fast_tokenizer(tmp_path: Path) -> None:
    """As in Mistral's own releases. The oracle is mistral-common."""
    from transformers import AutoTokenizer

    shutil.copy(installed("mistral_common", "data", "tekken_240911.json"), tmp_path / "tekken.json")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mistral"}))
    mistral_common = AutoTokenizer.from_pretrained(tmp_path)
    assert mistral_common.backend == "mistral_common"
    tokenizer = load_tokenizer(tmp_path)
    table = token_table(tokenizer)
    assert [table.role_id(role) for role in ("unk", "bos", "eos", "pad")] == [0, 1, 2, 11]
    for text in ("Hello, wörld!  def f(x):\n\treturn 12345\n\n你好 😀\0", "</s>[INST] it's DON'T", " " * 70):
        found = encode(tokenizer, table, text, add_bos=True)
        assert found.ids.tolist() == [
            1,
            *mistral_common.tokenizer.instruct_tokenizer.tokenizer.encode(text, False, False),
        ]
        assert not found.lossy
    assert adds_bos(tokenizer)
    assert adds_bos(mistral_common)
    tokenizer.save_pretrained(tmp_path / "exported")
    assert token_table(load_tokenizer(tmp_path / "exported")) == table
