"""The target's split into trunk and head on real architectures, and its validation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from shard_builder import Chunk, corpus_parts, write_tiny_model, write_tokens
from torch import nn

from fusionx.contract.errors import ConfigError, DataError
from fusionx.train.data.shard_stream import ShardSet
from fusionx.train.distributed.collectives import World
from fusionx.train.loop.validation import Validation
from fusionx.train.model.target import Target, TextInputs, load_target

ALONE = World(0, 1, torch.device("cpu"))
SMALL = {"vocab_size": 64, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
FLOW = {**SMALL, "intermediate_size": 24, "num_key_value_heads": 1, "max_position_embeddings": 64}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Llama": FLOW,
    "GPTNeoX": {**SMALL, "intermediate_size": 24, "max_position_embeddings": 64},
    "GPTNeo": {
        "vocab_size": 64, "hidden_size": 16, "num_heads": 2, "num_layers": 2,
        "attention_types": [[["global", "local"], 1]],
        "max_position_embeddings": 64, "window_size": 4,
    },
    "GPTBigCode": {"vocab_size": 64, "n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": 64},
    "GPT2": {"vocab_size": 64, "n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": 64},
    "Starcoder2": FLOW,
    "Qwen2": FLOW,
    "Mistral": FLOW,
    "Gemma2": {**FLOW, "head_dim": 8, "final_logit_softcapping": 2.0},
    "Cohere": {**FLOW, "logit_scale": 0.25},
    "Granite": {**FLOW, "logits_scaling": 3.0},
    "Mpt": {"d_model": 16, "n_heads": 2, "n_layers": 2, "vocab_size": 64, "max_seq_len": 64},
}  # fmt: skip


def build(name: str, **changed: Any) -> Any:
    """A random model whose logits are large enough for capping and scaling to show."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        pad_token_id=0, bos_token_id=0, eos_token_id=0, **ARCHITECTURES[name] | changed
    )
    head = "LMHeadModel" if name == "GPT2" else "ForCausalLM"
    model = getattr(transformers, name + head)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_trunk_and_head_are_the_model(name: str) -> None:
    model = build(name)
    target = Target(model)
    ids = torch.randint(1, 64, (2, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        hidden = target.hidden(TextInputs(ids, None))
        found = target.logits(hidden[mask.bool()])
    torch.testing.assert_close(found, expected[mask.bool()], rtol=1e-4, atol=1e-4)
    assert target.vocab_size == found.shape[1] == 64


@pytest.mark.parametrize("block", [3, 1000])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_losses_and_gradients_are_the_models_own(name: str, block: int) -> None:
    """The blocked head's, against whole logits: caps, scales, biases and tied embeddings included."""
    model = build(name).double()
    target = Target(model)
    ids = torch.randint(1, 64, (2, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    predicts = (mask == 1) & (torch.arange(11) < mask.sum(-1, keepdim=True) - 1)
    labels = ids.roll(-1, 1)[predicts]
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[predicts]
    expected = torch.nn.functional.cross_entropy(logits, labels)
    parameters = dict(model.named_parameters())
    theirs = torch.autograd.grad(expected, list(parameters.values()), allow_unused=True)
    scales = (torch.tensor(1 / len(labels), dtype=torch.float64), torch.tensor(0.0))
    positions = predicts.flatten().nonzero()[:, 0]
    losses = target(TextInputs(ids, None), positions, labels, block, scales)
    torch.testing.assert_close(losses.loss, expected, rtol=1e-6, atol=1e-8)
    ours = torch.autograd.grad(losses.loss, list(parameters.values()), allow_unused=True)
    for path, left, right in zip(parameters, ours, theirs, strict=True):
        if right is not None:
            torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-7, msg=path)
    nll = target(TextInputs(ids, None), positions, labels, block)
    torch.testing.assert_close(nll.mean(), expected.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["Llama", "GPTBigCode", "Gemma2"])
def test_right_padding_changes_nothing(name: str) -> None:
    target = Target(build(name))
    ids = torch.randint(1, 64, (1, 6), generator=torch.Generator().manual_seed(1))
    padded = torch.cat([ids, torch.zeros(1, 5, dtype=torch.long)], 1)
    with torch.no_grad():
        alone = target.hidden(TextInputs(ids, None))
        torch.testing.assert_close(target.hidden(TextInputs(padded, None))[:, :6], alone, rtol=1e-4, atol=1e-5)


class _Bent(nn.Module):
    """An output layer's logits after a rule that no config field names."""

    def __init__(self, model: Any, rule: Any) -> None:
        super().__init__()
        self.model, self.rule = model, rule
        self.config, self.base_model = model.config, model.base_model

    def get_output_embeddings(self) -> nn.Module:
        return self.model.get_output_embeddings()

    def forward(self, **inputs: Any) -> Any:
        out = self.model(**inputs)
        out.logits = self.rule(out.logits)
        return out


def _scaled(z: torch.Tensor) -> torch.Tensor:
    return z * 1.01


def _shifted(z: torch.Tensor) -> torch.Tensor:
    return z + 0.01 * z.abs().max()


def _capped(z: torch.Tensor) -> torch.Tensor:
    return torch.tanh(z / 30) * 30


def _flipped(z: torch.Tensor) -> torch.Tensor:
    return z.flip(-1)


@pytest.mark.parametrize(
    ("rule", "size"),
    # A cap at 30 bends tiny logits by nothing that can be measured, so it is tried on logits of ordinary size only.
    [(rule, size) for rule in (_scaled, _shifted, _flipped) for size in (1.0, 0.02)] + [(_capped, 1.0)],
)
def test_an_unknown_rule_is_refused(rule: Any, size: float) -> None:
    """However small a random model's logits are."""
    model = build("Llama")
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(size)
    Target(_Bent(model, lambda z: z))
    with pytest.raises(ConfigError, match="_Bent"):
        Target(_Bent(model, rule))


@pytest.mark.parametrize("name", ["Llama", "GPTNeoX", "GPTNeo", "GPT2", "Starcoder2", "Qwen2", "Mistral", "Gemma2"])
def test_packed_documents_are_kept_apart(name: str) -> None:
    Target(build(name)).verify_document_mask()


@pytest.mark.parametrize("name", ["Mpt"])
def test_architectures_that_mix_packed_documents_are_refused(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Target(build(name)).verify_document_mask()
    assert caught.value.details["field"] == "train.optimizer.document_mask"


def test_verification_leaves_mode_and_rng_alone() -> None:
    model = build("GPT2", attn_pdrop=0.5).train()
    before = torch.get_rng_state()
    Target(model)
    assert model.training
    assert torch.equal(before, torch.get_rng_state())


def test_loading_keeps_the_stored_dtype_and_trains_in_fp32(tmp_path: Path) -> None:
    target = load_target(str(write_tiny_model(tmp_path, "bfloat16")), None, torch.device("cpu"))
    assert target.stored_dtype == torch.bfloat16
    assert {parameter.dtype for parameter in target.parameters()} == {torch.float32}


def test_loading_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_target(str(tmp_path), None, torch.device("cpu"))
    assert caught.value.details["file"] == str(tmp_path)


# Validation


def naive_measures(model: Any, chunks: list[Chunk]) -> dict[str, tuple[float, int, int]]:
    """(nats, predicted tokens, covered bytes) per domain, one chunk at a time."""
    sums: dict[str, tuple[float, int, int]] = {}
    for chunk in chunks:
        if len(chunk.input_ids) < 2:
            continue
        ids = torch.from_numpy(chunk.input_ids).long()
        with torch.no_grad():
            logits = model(ids[None]).logits[0].double()
        nll = sum(float(-torch.log_softmax(logits[at], -1)[ids[at + 1]]) for at in range(len(ids) - 1))
        old = sums.get(chunk.domain, (0.0, 0, 0))
        size = int(chunk.ends[-1]) - int(chunk.ends[0])
        sums[chunk.domain] = (old[0] + nll, old[1] + len(ids) - 1, old[2] + size)
    return sums


@pytest.mark.parametrize("batch_tokens", [1, 64, 100_000])
def test_bits_per_byte_against_a_loop(tmp_path: Path, batch_tokens: int) -> None:
    from dataclasses import replace

    folder = write_tiny_model(tmp_path / "model")
    parts = corpus_parts(folder, [], rows=(2,))
    first = parts[1][1][0]
    short = replace(first, doc_id=500, input_ids=first.input_ids[:1], ends=first.ends[:1])
    parts[1][1].append(short)  # predicts nothing, and must not count
    target = load_target(str(folder), None, torch.device("cpu")).train()
    tokens = write_tokens(tmp_path / "tokens", parts)
    trained = ShardSet(tokens, {}, "train").domains
    found = Validation(tokens, batch_tokens, 0, trained)(target, ALONE, None, head_block=7)
    assert target.training
    target.eval()
    sums = naive_measures(target.model, parts[1][1])
    assert list(found["domains"]) == sorted(sums)
    for domain, (nll, count, size) in sums.items():
        measured = found["domains"][domain]
        assert measured["bits_per_byte"] == pytest.approx(nll / math.log(2) / size, rel=1e-5)
        assert measured["perplexity"] == pytest.approx(math.exp(nll / count), rel=1e-5)
    bits = {domain: nll / math.log(2) / size for domain, (nll, _, size) in sums.items()}
    assert found["bits_per_byte"] == pytest.approx(sum(bits.values()) / len(bits), rel=1e-5)
    assert trained == {"domain-0", "domain-1"}
    of_trained = [bits[domain] for domain in trained & bits.keys()]
    assert 0 < len(of_trained) < len(bits)
    assert found["trained_bits_per_byte"] == pytest.approx(sum(of_trained) / len(of_trained), rel=1e-5)
    total = math.exp(sum(nll for nll, _, _ in sums.values()) / sum(count for _, count, _ in sums.values()))
    assert found["perplexity"] == pytest.approx(total, rel=1e-5)


def test_a_diverged_target_is_measured_not_crashed_on(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model")
    target = load_target(str(folder), None, torch.device("cpu"))
    with torch.no_grad():
        target.model.get_output_embeddings().weight.mul_(1e5)  # type: ignore[operator]
    tokens = write_tokens(tmp_path / "tokens", corpus_parts(folder, [], rows=(1,)))
    found = Validation(tokens, 64, 0, set())(target, ALONE, None, 32)
    assert found["perplexity"] == math.inf
    assert found["bits_per_byte"] > 100
    assert found["bits_per_byte"] < math.inf


def test_nothing_to_validate_on(tmp_path: Path) -> None:
    from dataclasses import replace

    folder = write_tiny_model(tmp_path / "model")
    parts = corpus_parts(folder, [], rows=(1,))
    short = [replace(row, input_ids=row.input_ids[:1], ends=row.ends[:1]) for row in parts[1][1]]
    tokens = write_tokens(tmp_path / "tokens", [parts[0], ("validation", short)])
    with pytest.raises(DataError) as caught:
        Validation(tokens, 64, 0, set())
    assert caught.value.details["file"] == tokens
