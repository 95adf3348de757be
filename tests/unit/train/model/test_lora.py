"""Adapters: trained alone, merged exactly, checkpointed alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fusionx.contract.errors import ConfigError
from fusionx.train.config import LoraConfig
from fusionx.train.model.lora import add_adapters, merged_state_dict, quantization_options
from fusionx.train.state.background import BackgroundWriter
from fusionx.train.state.checkpoint import Checkpointer, TrainState
from fusionx.train.state.state_dicts import full_state_dict


def model_of(architecture: str, seed: int = 0) -> Any:
    import transformers as tr

    torch.manual_seed(seed)
    if architecture == "gpt2":  # Conv1D layers, whose weights lie the other way round; a tied head
        return tr.GPT2LMHeadModel(tr.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32))
    sizes = {"intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    if architecture == "qwen3_moe":
        experts = {"moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 1}
        return tr.Qwen3MoeForCausalLM(tr.Qwen3MoeConfig(vocab_size=40, hidden_size=16, head_dim=8, **sizes, **experts))
    if architecture == "mixtral":
        experts = {"num_local_experts": 4, "num_key_value_heads": 1}
        return tr.MixtralForCausalLM(tr.MixtralConfig(vocab_size=40, hidden_size=16, **sizes, **experts))
    return tr.LlamaForCausalLM(tr.LlamaConfig(vocab_size=40, hidden_size=16, **sizes))


def adapted(architecture: str, config: LoraConfig, seed: int = 0) -> tuple[Any, torch.optim.Optimizer]:
    model = model_of(architecture)
    torch.manual_seed(seed)
    add_adapters(model, config)
    return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)


def steps(model: Any, optimizer: torch.optim.Optimizer, count: int) -> None:
    for step in range(count):
        torch.manual_seed(step)
        ids = torch.randint(0, 40, (2, 8))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


CONFIGS = [LoraConfig(r=4), LoraConfig(r=3, alpha=5, dropout=0.1, modules=["q_proj", "v_proj"])]


@pytest.mark.parametrize("config", CONFIGS)
def test_nothing_changes_before_the_first_step(config: LoraConfig) -> None:
    plain, (model, _) = model_of("llama"), adapted("llama", config)
    ids = torch.arange(10)[None]
    assert torch.equal(model.eval()(ids).logits, plain.eval()(ids).logits)
    assert type(model) is type(plain)
    assert type(model.base_model) is type(plain.base_model)


@pytest.mark.parametrize(
    ("architecture", "config"), [("llama", CONFIGS[0]), ("llama", CONFIGS[1]), ("gpt2", CONFIGS[0])]
)
def test_merged_weights_are_the_adapted_model(architecture: str, config: LoraConfig) -> None:
    plain, (model, optimizer) = model_of(architecture), adapted(architecture, config)
    steps(model, optimizer, 3)
    before = full_state_dict(model)
    merged = merged_state_dict(model, before)
    after = full_state_dict(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert merged.keys() == full_state_dict(plain).keys()
    ids = torch.arange(10)[None]
    start = plain.eval()(ids).logits
    plain.load_state_dict(merged, strict=False)  # a tied head has no name of its own
    torch.testing.assert_close(plain(ids).logits, model.eval()(ids).logits, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(plain(ids).logits, start, atol=1e-3)
    assert merged_state_dict(model, {}) == {}  # a rank that is not the first


def test_only_adapters_are_trained(tmp_path: Path) -> None:
    plain, (model, optimizer) = model_of("llama"), adapted("llama", CONFIGS[1])
    steps(model, optimizer, 3)
    found = {name.replace(".base_layer.", "."): tensor for name, tensor in full_state_dict(model).items()}
    for name, tensor in full_state_dict(plain).items():
        assert torch.equal(found[name], tensor)
    assert {name.split(".")[-3] for name in full_state_dict(model, trainable_only=True)} == {"lora_A", "lora_B"}


def test_checkpoints_hold_the_adapters_and_go_on_bit_exactly(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model, optimizer = adapted("llama", CONFIGS[0])
    steps(model, optimizer, 3)
    with BackgroundWriter() as writer:
        Checkpointer(tmp_path, {}, {"model": (model, optimizer)}, 1, writer).save(TrainState(step=3))
    stored = load_file(tmp_path / "step-00000003" / "model.safetensors")
    assert all(".lora_" in name for name in stored)
    again, again_optimizer = adapted("llama", CONFIGS[0], seed=9)
    Checkpointer(tmp_path, {}, {"model": (again, again_optimizer)}, 1, writer).load()
    steps(model, optimizer, 2)
    steps(again, again_optimizer, 2)
    ours, theirs = full_state_dict(model), full_state_dict(again)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_adapters_of_a_bf16_model_are_fp32() -> None:
    model = model_of("llama").bfloat16()
    add_adapters(model, CONFIGS[0])
    assert {tensor.dtype for tensor in full_state_dict(model, trainable_only=True).values()} == {torch.float32}
    merged = merged_state_dict(model, full_state_dict(model))
    assert merged["model.layers.0.self_attn.q_proj.weight"].dtype == torch.float32
    assert merged["model.embed_tokens.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("modules", [["no_such_layer"], ["lm_head"], ["embed_tokens"]])
def test_layers_that_cannot_have_one(modules: list[str]) -> None:
    with pytest.raises(ConfigError, match="cannot be placed") as caught:
        add_adapters(model_of("llama"), LoraConfig(modules=modules))
    assert caught.value.details["field"] == "train.optimizer.lora.modules"
    assert modules[0] in caught.value.details["found"]


@pytest.mark.parametrize("architecture", ["qwen3_moe", "mixtral"])
def test_experts_that_are_fused_stay_as_they_are(architecture: str) -> None:
    plain, (model, optimizer) = model_of(architecture), adapted(architecture, LoraConfig(r=4, alpha=8))
    steps(model, optimizer, 3)
    merged = merged_state_dict(model, full_state_dict(model))
    assert merged.keys() == full_state_dict(plain).keys()
    changed = {name for name, tensor in full_state_dict(plain).items() if not torch.equal(merged[name], tensor)}
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    plain.load_state_dict(merged, strict=False)
    ids = torch.arange(10)[None]
    torch.testing.assert_close(plain.eval()(ids).logits, model.eval()(ids).logits, rtol=1e-5, atol=1e-6)


def test_what_to_write_instead_is_named() -> None:
    with pytest.raises(ConfigError, match="cannot be placed") as caught:
        add_adapters(model_of("qwen3_moe"), LoraConfig(modules=["gate_proj"]))
    assert "[k_proj, o_proj, q_proj, v_proj]" in caught.value.details["remedy"]


def test_four_bits_need_a_gpu() -> None:
    config = LoraConfig(quantization="4bit")
    with pytest.raises(ConfigError, match="need a GPU"):
        quantization_options(config, torch.device("cpu"))
    assert quantization_options(CONFIGS[0], torch.device("cpu")) == {}
    assert quantization_options(None, torch.device("cuda")) == {}


def test_without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match="package peft") as caught:
        add_adapters(model_of("llama"), CONFIGS[0])
    assert "[lora]" in caught.value.details["remedy"]


def test_a_model_without_adapters_needs_no_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in [name for name in (*sys.modules, "peft") if name.partition(".")[0] == "peft"]:
        monkeypatch.setitem(sys.modules, name, None)
    weights = full_state_dict(model_of("llama"))
    assert merged_state_dict(model_of("llama"), weights).keys() == weights.keys()
