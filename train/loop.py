"""The training loop of one job: one method, one seed. Resumes from its last checkpoint, ends with two exports.

`last/` is the target after the last step, `best/` at its lowest validation bits per byte on the domains that the
training text has. result.json is the mark.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from contract.encoder import load_encoder
from contract.errors import DataError
from train.asn import SelectionNetwork
from train.card import model_card
from train.checkpoint import TrainState, load_checkpoint, save_checkpoint
from train.collate import Batch, collate
from train.config import TrainJob
from train.export import distance_moved, export
from train.losses import run_head
from train.model import load_target
from train.objective import Objective, objective
from train.result import finished_result, read_log, write_result
from train.selection_log import SelectionLog
from train.stream import BatchStream, ShardSet
from train.validation import Validation


def run_job(job: TrainJob) -> dict[str, Any]:
    """Trains, unless `output` already holds this job's result; returns the result.

    Raises:
        DataError: shards are missing or stale, a checkpoint belongs to another job, or the loss is not finite.
    """
    result = finished_result(job)
    return result if result is not None else Trainer(job).run()


class Trainer:
    """Everything one job needs, built once."""

    def __init__(self, job: TrainJob) -> None:
        self.job = job
        self.output = Path(job.output)
        self.device = _device(job.run.device)
        self.dtype = _autocast_dtype(job.run.precision, self.device)
        torch.manual_seed(job.seed)
        if self.device.type == "cpu":
            torch.set_num_threads(job.run.threads)
        encoder = load_encoder(job.target_path, job.target_revision)
        self.tokenizer = encoder.tokenizer
        pad_id = self.tokenizer.pad_token_id or 0
        self.pad_id = pad_id
        self.target = load_target(job.target_path, job.target_revision, self.device)
        uses_candidates = job.method.teacher != "none"
        # By name, not as listed: a checkpoint's selection network must meet its candidates in the order it knows.
        aligned = dict(sorted(job.aligned.items()))
        self.shards = ShardSet(job.tokens, aligned if uses_candidates else {}, "train")
        self.candidates = list(aligned)
        self.asn = self._build_asn()
        self.optimizer = self._build_optimizer()
        self.stream = BatchStream(self.shards, job.optimizer.batch_size, job.seed)
        self.steps = max(1, round(job.optimizer.epochs * self.stream.samples_per_epoch / job.optimizer.batch_size))
        self.validation = Validation(job.tokens, job.run.validate_tokens, pad_id, self.shards.domains)
        self.state = TrainState(job=job.digest())
        self.selection = SelectionLog(self.candidates)

    def _build_asn(self) -> SelectionNetwork | None:
        if self.job.method.teacher != "asn":
            return None
        return SelectionNetwork(len(self.candidates), self.job.method.granularity).to(self.device)

    def _build_optimizer(self) -> torch.optim.Optimizer:
        config = self.job.optimizer
        groups: list[dict[str, Any]] = [{"params": list(self.target.parameters()), "lr": config.learning_rate}]
        if self.asn is not None:
            groups.append({"params": list(self.asn.parameters()), "lr": config.asn_learning_rate})
        for group in groups:
            group["peak_lr"] = group["lr"]
        return torch.optim.AdamW(groups, betas=config.betas, weight_decay=config.weight_decay, fused=True)

    def run(self) -> dict[str, Any]:
        started = time.monotonic()
        initial_asn = _copy(self.asn)
        resumed = load_checkpoint(
            self.output / "checkpoints", self.state.job, self.target.model, self.asn, self.optimizer
        )
        self.output.mkdir(parents=True, exist_ok=True)
        if resumed is not None:
            self.state = resumed
            self.stream.taken = resumed.taken
            self.selection.load(resumed.window)
            self._print(f"resumed at step {resumed.step} of {self.steps}")
        self._truncate_log()
        self.target.train()
        if self.state.step == 0:
            self._validate()
        batches = iter(self.stream)
        while self.state.step < self.steps:
            self._step(collate(next(batches), self.pad_id).to(self.device))
            if self.state.step % self.job.run.validate_every == 0 or self.state.step == self.steps:
                self._validate()
            if self.state.step % self.job.run.checkpoint_every == 0 and self.state.step < self.steps:
                self._checkpoint()
        return self._finish(initial_asn, time.monotonic() - started)

    def _step(self, batch: Batch) -> None:
        step_started = time.monotonic()
        rate = schedule(self.state.step, self.steps, self.job.optimizer.warmup_ratio)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * rate
        terms = self._losses(batch)
        self._require_finite("loss", terms.total, batch)
        self.optimizer.zero_grad(set_to_none=True)
        terms.total.backward()
        # Before the weights are touched, so that no checkpoint or export can hold NaN.
        norm = torch.nn.utils.clip_grad_norm_(self.target.parameters(), self.job.optimizer.clip)
        self._require_finite("target's gradient norm", norm, batch)
        if self.asn is not None:
            asn_norm = torch.nn.utils.clip_grad_norm_(self.asn.parameters(), self.job.optimizer.clip)
            self._require_finite("selection network's gradient norm", asn_norm, batch)
        self.optimizer.step()
        self.state.step += 1
        self.state.taken = self.stream.taken
        if terms.weights is not None and batch.candidates is not None:
            self.selection.add(terms.weights, batch.candidates, batch.domains)
        if self.state.step % self.job.run.log_every == 0 or self.state.step == self.steps:
            self._log_step(terms, batch, float(norm), time.monotonic() - step_started)

    def _require_finite(self, what: str, value: torch.Tensor, batch: Batch) -> None:
        if not torch.isfinite(value):
            raise DataError(
                f"The {what} is not finite.",
                file=self.job.tokens,
                field=f"step {self.state.step}",
                found=value.item(),
                expected=f"a finite value on the chunks {batch.keys}",
                remedy="lower the learning rate or use precision fp32; the last checkpoint is kept",
            )

    def _losses(self, batch: Batch) -> Objective:
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            hidden = self.target.hidden(batch.input_ids, batch.attention_mask)[batch.predicts]
            ids = None if batch.candidates is None else batch.candidates.ids
            head = run_head(self.target.logits, hidden, batch.labels, ids, self.job.run.head_block)
        return objective(self.job.method, self.asn, batch.candidates, head, self.target.vocab_size)

    def _log_step(self, terms: Objective, batch: Batch, norm: float, seconds: float) -> None:
        record: dict[str, Any] = {
            "event": "step",
            "step": self.state.step,
            "epoch": self.state.taken / self.stream.samples_per_epoch,
            "tokens": int(batch.attention_mask.sum()),
            "loss": terms.total.item(),
            **{name: float(getattr(terms, name)) for name in ("lm", "fuse", "feed", "select")},
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "grad_norm": norm,
            "tokens_per_s": round(int(batch.attention_mask.sum()) / seconds),
        }
        if terms.weights is not None:
            record |= self.selection.since_last_step()
        self._log(record)

    def _validate(self) -> None:
        measured = self.validation(self.target, self.device, self.dtype, self.job.run.head_block)
        self._log({"event": "validation", "step": self.state.step, **measured})
        if not self.selection.empty:
            self._log({"event": "selection", "step": self.state.step, "domains": self.selection.by_domain()})
        found = measured["trained_bits_per_byte"]
        if found < self.state.best_bits_per_byte:
            self.state.best_bits_per_byte, self.state.best_step = found, self.state.step
            self._export("best")
        self._print(f"step {self.state.step}/{self.steps}  validation {found:.4f} bits per byte")

    def _checkpoint(self) -> None:
        with open(self._log_path, "rb") as stream:
            os.fsync(stream.fileno())
        self.state.log_bytes = self._log_path.stat().st_size
        self.state.window = self.selection.save()
        save_checkpoint(
            self.output / "checkpoints",
            self.state,
            self.target.model,
            self.asn,
            self.optimizer,
            self.job.run.keep_checkpoints,
        )

    def _export(self, name: str) -> None:
        card = model_card(self.job, self.state, name)
        export(self.output / name, self.target, self.asn, self.candidates, card, self.tokenizer)

    def _finish(self, initial_asn: dict[str, torch.Tensor] | None, seconds: float) -> dict[str, Any]:
        self._export("last")
        last = [record for record in read_log(self.output) if record["event"] == "validation"][-1]
        moved = None if initial_asn is None else distance_moved(initial_asn, _copy(self.asn) or {})
        result = {
            "job": self.state.job,
            "config": self.job.content(),
            "steps": self.steps,
            "samples": self.state.taken,
            "best_step": self.state.best_step,
            "best_bits_per_byte": self.state.best_bits_per_byte,
            "last_bits_per_byte": last["trained_bits_per_byte"],
            "asn_moved": moved,
            "seconds": round(seconds, 2),
        }
        write_result(self.output, result)
        return result

    @property
    def _log_path(self) -> Path:
        return self.output / "log.jsonl"

    def _truncate_log(self) -> None:
        """Drops what was logged after the checkpoint that this run goes on from."""
        with open(self._log_path, "ab") as stream:
            found = stream.tell()
            if found < self.state.log_bytes:
                raise DataError(
                    "The log is shorter than the checkpoint says.",
                    file=self._log_path,
                    found=f"{found} bytes",
                    expected=f"at least {self.state.log_bytes} bytes",
                    remedy="bring the file back, delete the folder, or run with --overwrite",
                )
            stream.truncate(self.state.log_bytes)

    def _log(self, record: dict[str, Any]) -> None:
        with open(self._log_path, "a") as stream:
            stream.write(json.dumps(record) + "\n")

    def _print(self, text: str) -> None:
        print(f"[train/{self.job.method_name}/seed-{self.job.seed}] {text}", file=sys.stderr, flush=True)


def schedule(step: int, steps: int, warmup_ratio: float) -> float:
    """Share of the peak learning rate at `step`: linear warm-up, then a cosine to 0."""
    warmup = max(1, round(warmup_ratio * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _device(wanted: str) -> torch.device:
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def _autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    return torch.bfloat16 if precision == "bf16" else None


def _copy(module: torch.nn.Module | None) -> dict[str, torch.Tensor] | None:
    return None if module is None else {name: tensor.clone() for name, tensor in module.state_dict().items()}
