"""Trains the demo's models, from scratch or on from another, and saves each as an ordinary Hugging Face folder.

One loop serves all architectures: documents packed with the tokenizer's bos and eos between them, AdamW, linear warm-up
and cosine, gradient clipping. The data order is a function of the seed and the step alone, so a killed training resumes
from its last checkpoint with the same batches.
"""

from __future__ import annotations

import math
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from fusionx.contract.config import digest_of
from fusionx.contract.errors import DataError
from fusionx.contract.files.atomic_folder import atomic_folder, recover
from fusionx.contract.files.sealed import FOLDER_SEAL, seal_folder, verified
from fusionx.pipelines.demo.config import DemoInputs, DemoModelConfig, DemoOptimizerConfig
from fusionx.pipelines.demo.corpus import read_texts
from fusionx.pipelines.demo.tokenizers import encode_documents

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Log = Callable[[str], None]
_STATE = "state.pt"


@dataclass(frozen=True)
class Training:
    """One model's training, as plain values that can be handed to another process."""

    inputs: DemoInputs
    model: DemoModelConfig
    tokenizer_folder: Path
    experts_folder: Path
    output: Path
    digest: str
    """What the result depends on; a checkpoint of another digest is not resumed."""
    start: Path | None = None
    """Folder of the finished model whose weights it goes on from; None for random ones."""

    @property
    def checkpoint(self) -> Path:
        """The sealed folder that a killed training resumes from; removed when the model is saved."""
        return self.output.with_name(f".{self.output.name}.checkpoint")


def build_model(
    config: DemoModelConfig, tokenizer: PreTrainedTokenizerBase, initializer_range: float
) -> PreTrainedModel:
    """A randomly initialised model of the configured architecture and size (draws from torch's global generator)."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = _architecture_fields(config)
    model_config = AutoConfig.for_model(
        config.architecture,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
        initializer_range=initializer_range,
        use_cache=True,
        **sizes,
    )
    return AutoModelForCausalLM.from_config(model_config)


def _architecture_fields(config: DemoModelConfig) -> dict[str, Any]:
    """The sizes under the names that each architecture's config gives them; no dropout anywhere."""
    hidden, layers, heads, context = config.hidden_size, config.layers, config.heads, config.context
    common = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": context,
        "intermediate_size": 4 * hidden,
    }
    match config.architecture:
        case "llama":
            # Three matrices instead of two, so two thirds of the width, as in the original.
            return common | {"intermediate_size": max(8, 8 * hidden // 3 // 8 * 8)}
        case "gpt_neox":
            return common | {"hidden_dropout": 0.0, "attention_dropout": 0.0}
        case "starcoder2":
            return common | {
                "num_key_value_heads": 2 if heads % 2 == 0 else 1,
                "residual_dropout": 0.0,
                "embedding_dropout": 0.0,
                "attention_dropout": 0.0,
            }
        case "gpt_neo":
            kinds = [["global", "local"][layer % 2] for layer in range(layers)]
            return {
                "hidden_size": hidden,
                "num_layers": layers,
                "num_heads": heads,
                "max_position_embeddings": context,
                "window_size": min(256, context),
                "attention_types": [[[kind], 1] for kind in kinds],
                "resid_dropout": 0.0,
                "embed_dropout": 0.0,
                "attention_dropout": 0.0,
            }
        case "gpt_bigcode":
            return {
                "n_embd": hidden,
                "n_layer": layers,
                "n_head": heads,
                "n_positions": context,
                "n_inner": 4 * hidden,
                "resid_pdrop": 0.0,
                "embd_pdrop": 0.0,
                "attn_pdrop": 0.0,
            }


def pack_mix(documents: dict[str, list[list[int]]], mix: dict[str, float], tokens: int, seed: str) -> np.ndarray:
    """A stream of exactly `tokens` token ids (int32): whole documents of the mix in random order, the last one cut.

    Every domain gives tokens in proportion to its weight; a domain with less text than that is repeated in a new order.
    """
    weight = sum(mix[domain] for domain in documents)
    # A little more than asked for, since the stream is cut to length after shuffling.
    chosen: list[list[int]] = []
    for domain in sorted(documents):
        chosen.extend(_repeated(documents[domain], 1.01 * tokens * mix[domain] / weight, f"{seed}/{domain}"))
    random.Random(seed).shuffle(chosen)
    stream = np.empty(tokens, dtype=np.int32)
    filled = 0
    for document in chosen:
        part = document[: tokens - filled]
        stream[filled : filled + len(part)] = part
        filled += len(part)
    assert filled == tokens, "the mix gave fewer tokens than asked for"
    return stream


def _repeated(documents: list[list[int]], tokens: float, seed: str) -> Iterator[list[int]]:
    """Documents in random order, again in another when they end, until they hold at least `tokens` tokens."""
    assert documents, "a domain of the mix has no documents"
    rng = random.Random(seed)
    while True:
        for document in rng.sample(documents, len(documents)):
            if tokens <= 0:
                return
            yield document
            tokens -= len(document)


def learning_rate(step: int, steps: int, peak: float, config: DemoOptimizerConfig) -> float:
    """The rate of a step: linear up over the warm-up, then a cosine down to `final_share` of the peak."""
    warmup = max(1, round(config.warmup_share * steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
    return peak * (config.final_share + (1 - config.final_share) * cosine)


def pick_device(choice: str) -> str:
    """`cuda` or `cpu` for a config's `auto`, `cpu` or `cuda`."""
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if choice == "auto" else choice


def train(training: Training, log: Log = print) -> Path:
    """Trains one model, resuming from its checkpoint if there is one, and saves it to `training.output`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    config, inputs = training.model, training.inputs
    device = pick_device(inputs.device)
    torch.manual_seed(_seed_of(inputs.models_seed, config.id))
    tokenizer = AutoTokenizer.from_pretrained(training.tokenizer_folder)
    if training.start is None:
        model = build_model(config, tokenizer, inputs.optimizer.initializer_range)
    else:
        model = AutoModelForCausalLM.from_pretrained(training.start, dtype=torch.float32)
    torch.nn.Module.to(model, device)  # transformers' own `to` is wrapped in a way that type checkers misread
    parameters = sum(parameter.numel() for parameter in model.parameters())
    log(f"{config.id}: {config.architecture}, {parameters:,} parameters, {config.steps} steps on {device}")
    optimizer = _optimizer(model, config, inputs.optimizer)
    rows = _rows(training, tokenizer)
    first = _resume(training, model, optimizer)
    if first:
        log(f"{config.id}: resuming at step {first}")
    # GPT-Neo does not scale its scores: many of its probabilities are too small to be normal numbers, with which a CPU
    # computes so slowly that a training takes more than twice as long.
    torch.set_flush_denormal(True)
    try:
        _run_steps(training, model, optimizer, rows, first, log)
    finally:
        torch.set_flush_denormal(False)
    _save(model, tokenizer, training.output)
    shutil.rmtree(training.checkpoint, ignore_errors=True)
    return training.output


def _seed_of(seed: int, name: str) -> int:
    return int(digest_of([seed, name]), 16) % 2**31


def _rows(training: Training, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Training rows, int32 (steps * batch rows, context + 1), in the order in which they are used."""
    config = training.model
    documents = {
        domain: encode_documents(tokenizer, read_texts(training.experts_folder / f"{domain}.parquet"))
        for domain in config.mix
    }
    used = config.steps * config.batch_tokens
    stream = pack_mix(documents, config.mix, used + 1, f"{training.inputs.models_seed}/{config.id}")
    starts = np.arange(0, used, config.context)
    np.random.default_rng(_seed_of(training.inputs.models_seed, config.id)).shuffle(starts)
    # Views, not copies: rows overlap by one token, the label of the last position.
    return np.lib.stride_tricks.sliding_window_view(stream, config.context + 1)[starts]


def _optimizer(model: PreTrainedModel, config: DemoModelConfig, settings: DemoOptimizerConfig) -> torch.optim.Optimizer:
    """AdamW in its fused form; vectors (norms, biases) are not decayed."""
    import torch

    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(settings.beta1, settings.beta2), fused=True)


def _run_steps(
    training: Training,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    rows: np.ndarray,
    first: int,
    log: Log,
) -> None:
    import torch
    from torch.nn.functional import cross_entropy

    config, inputs = training.model, training.inputs
    rows_per_batch = config.batch_tokens // config.context
    device = model.device
    progress = Progress(config.id, config.steps, config.batch_tokens, inputs.log_seconds, log)
    checkpointed = time.monotonic()
    model.train()
    for step in range(first, config.steps):
        batch = torch.from_numpy(rows[step * rows_per_batch : (step + 1) * rows_per_batch].astype(np.int64)).to(device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config.steps, config.learning_rate, inputs.optimizer)
        with autocast(device.type, inputs.dtype):
            logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), inputs.optimizer.clip)
        optimizer.step()
        optimizer.zero_grad()
        progress.report(step + 1, loss)
        if inputs.checkpoint_seconds and time.monotonic() - checkpointed >= inputs.checkpoint_seconds:
            _write_checkpoint(training, model, optimizer, step + 1)
            checkpointed = time.monotonic()


def autocast(device: str, dtype: str) -> AbstractContextManager:
    """The precision of a forward pass: bfloat16 autocast, or plain float32."""
    import torch

    return torch.autocast(device, dtype=torch.bfloat16) if dtype == "bfloat16" else nullcontext()


class Progress:
    """Prints step, loss (nats per token of the current batch), tokens/s and time left every so many seconds."""

    def __init__(self, name: str, steps: int, batch_tokens: int, seconds: float, log: Log) -> None:
        self.name, self.steps, self.batch_tokens, self.seconds, self.log = name, steps, batch_tokens, seconds, log
        self.last = time.monotonic()
        self.since = 0

    def report(self, step: int, loss: torch.Tensor) -> None:
        """Called after every step; reads the loss (a wait for the device) only when it prints."""
        self.since += 1
        elapsed = time.monotonic() - self.last
        if elapsed < self.seconds and step < self.steps:
            return
        speed = self.since * self.batch_tokens / max(elapsed, 1e-9)
        left = (self.steps - step) * self.batch_tokens / speed
        self.log(
            f"{self.name}: step {step}/{self.steps}  loss {loss.item():.3f}  {speed:,.0f} tokens/s  {left:.0f} s left"
        )
        self.last, self.since = time.monotonic(), 0


def _write_checkpoint(training: Training, model: PreTrainedModel, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Weights, optimizer and the number of finished steps, which is also the position in the data."""
    import torch

    state = {"digest": training.digest, "step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    with atomic_folder(training.checkpoint) as folder:
        torch.save(state, folder / _STATE)
        seal_folder(folder)


def _resume(training: Training, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> int:
    """Loads the checkpoint of this very training, if there is a whole one; returns the step to go on with."""
    import torch

    recover(training.checkpoint)
    if not training.checkpoint.is_dir():
        return 0
    try:
        verified(training.checkpoint / FOLDER_SEAL, "nothing: the training begins anew")
    except DataError as error:
        print(f"{training.model.id}: the training begins anew. {error}", flush=True)
        return 0
    state = torch.load(training.checkpoint / _STATE, map_location=model.device, weights_only=True)
    if state["digest"] != training.digest:
        return 0
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, output: Path) -> None:
    """Writes the Hugging Face folder beside its place, then renames it there."""
    temporary = output.with_name(f".{output.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.eval()
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    shutil.rmtree(output, ignore_errors=True)
    os.replace(temporary, output)


def train_in_own_process(training: Training) -> None:
    """Entry of a training process: one thread, so that several models share the cores; ends with its parent."""
    import torch

    torch.set_num_threads(1)
    parent = os.getppid()

    def log(line: str) -> None:
        if os.getppid() != parent:
            # The parent was killed. What was done is in the checkpoint; nobody waits for the rest.
            os._exit(1)
        print(line, flush=True)

    train(training, log)


def bits_per_byte(folder: Path, test: Path, device: str = "auto", batch_rows: int = 16) -> dict[str, float]:
    """Mean cost per UTF-8 byte of each domain's documents under a saved model: bits, lower is better.

    Documents are packed as in training, in rows of the model's context, each token predicted from its row alone; end
    tokens are left out of the sum, as they stand for no byte of the text.
    """
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    torch.nn.Module.to(model, pick_device(device))
    context = tokenizer.model_max_length
    table = pq.read_table(test).to_pydict()
    of_domain: dict[str, list[str]] = {}
    for text, domain in zip(table["text"], table["domain"], strict=True):
        of_domain.setdefault(domain, []).append(text)
    eos = tokenizer.eos_token_id
    result = {}
    for domain in sorted(of_domain):
        stream = [eos] + [token for ids in encode_documents(tokenizer, of_domain[domain]) for token in ids]
        stream += [eos] * (-(len(stream) - 1) % context)
        rows = torch.tensor([stream[start : start + context + 1] for start in range(0, len(stream) - 1, context)])
        nats = 0.0
        with torch.inference_mode():
            for batch in rows.to(model.device).split(batch_rows):
                logits = model(input_ids=batch[:, :-1], use_cache=False).logits.float()
                labels = batch[:, 1:].masked_fill(batch[:, 1:] == eos, -100)
                nats += cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").item()
        result[domain] = nats / math.log(2) / sum(len(text.encode()) for text in of_domain[domain])
    return result
