"""The training loop of one job: one method, one seed. Resumes from its last checkpoint, ends with two exports.

`last/` is the target after the last step, `best/` at its lowest validation bits per byte on the domains that the
training text has. result.json is the mark.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusionx.contract.errors import DataError, StoppedError
from fusionx.contract.files.atomic_folder import recover
from fusionx.contract.tokens.encoder import load_encoder
from fusionx.train.config import TrainJob
from fusionx.train.data.collate import Batch
from fusionx.train.data.loader import StepBatches, loader
from fusionx.train.data.shard_stream import ShardSet
from fusionx.train.distributed.collectives import World, by_first_rank, clip, gradient_sync, parallelize, process_group
from fusionx.train.distributed.ranks import STOP_SIGNALS
from fusionx.train.loop.metrics_log import MetricsLog
from fusionx.train.loop.optimization import adamw, autocast_dtype, schedule, step_seed, trained
from fusionx.train.loop.progress_line import ProgressLine
from fusionx.train.loop.selection_log import SelectionLog
from fusionx.train.loop.throughput import Throughput, flops_per_token
from fusionx.train.loop.validation import Validation
from fusionx.train.model.lora import merged_state_dict
from fusionx.train.model.target import TextInputs, load_target, prepare
from fusionx.train.objective.losses import Totals, divisor, feed_value, head_scales, local_totals, selection_loss
from fusionx.train.objective.selection_network import SelectionNetwork
from fusionx.train.objective.teacher import Selection, select
from fusionx.train.state.checkpoint import Checkpointer, Parts, TrainState
from fusionx.train.state.export import distance_moved, export
from fusionx.train.state.model_card import TrainingOutcome, model_card
from fusionx.train.state.result import discard_checkpoints, finished_result, write_result
from fusionx.train.state.state_dicts import full_state_dict


def run_job(job: TrainJob, resume: Path | None = None) -> dict[str, Any]:
    """Trains, unless `output` already holds this job's result; returns the result.

    Under torchrun or srun all processes call this together.

    Args:
        resume: a checkpoint to go on from; None: the last one, if there is one.

    Raises:
        DataError: shards are missing or stale, a checkpoint belongs to another job, too many steps were skipped, or
            another process trains in the same folder.
        StoppedError: a signal asked for it; a checkpoint is written.
    """
    result = finished_result(job)
    if result is not None:
        discard_checkpoints(job)
        return result
    with process_group(job.run.device) as world, world.locked(Path(job.output)):
        return Trainer(job, world).run(resume)


class Trainer:
    """Everything one job needs on this process, built once."""

    def __init__(self, job: TrainJob, world: World) -> None:
        self.job, self.world = job, world
        self.output = Path(job.output)
        self.dtype = autocast_dtype(job.run.precision, world.device)
        if world.device.type == "cpu":
            torch.set_num_threads(job.run.threads)
        elif job.run.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
            torch.use_deterministic_algorithms(True, warn_only=True)
        torch.manual_seed(job.seed)  # the selection network and adapters start alike on every process
        self.tokenizer = load_encoder(job.target_path, job.target_revision).tokenizer
        self.target = load_target(job.target_path, job.target_revision, world.device, job.optimizer.lora)
        # By name, not as listed: a checkpoint's selection network must meet its candidates in the order it knows.
        aligned = dict(sorted(job.aligned.items())) if job.method.teacher != "none" else {}
        self.candidates = list(aligned)
        self.asn: SelectionNetwork | None = None
        if job.method.teacher == "asn":
            self.asn = SelectionNetwork(len(aligned), job.method.selection).to(world.device)
        self.initial_asn = _copy(self.asn)
        shards = ShardSet(job.tokens, aligned, "train", job.method.k, job.logits)
        self._plan_data(shards)
        self.selection_log = SelectionLog(self.candidates, sorted(shards.domains))
        self.throughput = Throughput(flops_per_token(self.target.model, self.block_tokens), world.device, world.size)
        prepare(self.target, job.run.gradient_checkpointing, job.run.compile)
        self.model = parallelize(self.target, job.run.shards, self.dtype, world)
        self.parts: Parts = {"model": (self.target.model, adamw(job, self.target, job.optimizer.learning_rate))}
        if self.asn is not None:
            self.parts["asn"] = (self.asn, adamw(job, self.asn, job.optimizer.asn_learning_rate))
        self.state = TrainState()
        self.stop_asked = self.stop_agreed = False

    def _plan_data(self, shards: ShardSet) -> None:
        config, run = self.job.optimizer, self.job.run
        pad_id = self.tokenizer.pad_token_id or 0
        packed_apart = config.pack is not None and config.document_mask
        if packed_apart:
            self.target.verify_document_mask()
        order = shards.order(self.job.seed, config.pack, config.data_share)
        self.blocks_per_epoch = order.blocks_per_epoch
        self.block_tokens = sum(part.tokens for part in shards.parts) / order.blocks_per_epoch
        self.steps = max(1, round(config.epochs * order.blocks_per_epoch / config.batch_size))
        self.batches = StepBatches(
            shards,
            order,
            config.batch_size,
            pad_id,
            document_mask=packed_apart,
            micro_batch=run.micro_batch,
            rank=self.world.rank,
            world=self.world.size,
        )
        self.validation = Validation(self.job.tokens, run.validate_tokens, pad_id, shards.domains)

    def run(self, resume: Path | None = None) -> dict[str, Any]:
        """The whole training; see `run_job`."""
        started = time.monotonic()
        run = self.job.run
        checkpoints = Checkpointer(self.output / "checkpoints", self.job.content(), self.parts, run.keep_checkpoints)
        for name in ("best", "last"):
            by_first_rank(partial(recover, self.output / name))
        with checkpoints, self._stop_on_signal():
            self.state = checkpoints.load(resume) or self.state
            self.selection_log.load(self.state.window)
            first = self.state.step
            with self._log_from(first) as self.log:
                self.progress = ProgressLine(self._name, self.steps, first, self.world.is_main)
                if first:
                    self.progress.say(f"resumed at step {first} of {self.steps}")
                self.model.train()
                if first == 0:
                    self._validate()
                for batches in self.batches_from(first):
                    self.step(batches)
                    self.progress.show(self.state.step)
                    if self.state.step % run.validate_every == 0 or self.state.step == self.steps:
                        self._validate()
                    due = self.state.step % run.checkpoint_every == 0
                    if self.state.step < self.steps and (due or self.stop_agreed):
                        self._save(checkpoints)
                        if self.stop_agreed:
                            by_first_rank(checkpoints.wait)  # nobody leaves before it is on the disk
                            raise self._stopped()
                result = self._finish(time.monotonic() - started)
            checkpoints.delete_all()  # a finished job never resumes
        return result

    def _log_from(self, first: int) -> MetricsLog:
        arguments = (self.output, self.job, self.state.log_bytes, first)
        made: list[MetricsLog] = []
        by_first_rank(lambda: made.append(MetricsLog(*arguments)))  # what it holds stays in its process
        return made[0] if made else MetricsLog(*arguments, is_main=False)

    def batches_from(self, first: int) -> Iterator[list[Batch]]:
        """Micro-batches step by step; what is spent waiting for them is measured."""
        device = self.world.device
        workers = self.job.run.loader_workers
        if workers is None:
            workers = 2 if device.type == "cuda" else 0
        made = loader(self.batches, first, self.steps, workers, pin_memory=device.type == "cuda")
        while True:
            with self.throughput.waiting():
                batches = next(made, None)
            if batches is None:
                return
            yield batches

    def step(self, batches: list[Batch]) -> None:
        """One update of the target and the selection network, or none if a gradient is not finite."""
        state, method, world = self.state, self.job.method, self.world
        tokens = sum(int(batch.attention_mask.sum()) for batch in batches)  # before they go where this would wait
        batches = [batch.to(world.device) for batch in batches]
        # All randomness of a step follows from this, so a checkpoint needs no generator's state.
        torch.manual_seed(step_seed(self.job.seed, state.step, world.rank))
        rate = schedule(state.step, self.steps, self.job.optimizer.warmup_ratio)
        for _, optimizer in self.parts.values():
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * rate
            optimizer.zero_grad(set_to_none=True)
        selections = [self._select(batch) for batch in batches]
        totals = self._agree(batches, selections)
        scales = head_scales(method, totals)
        sums = torch.zeros(4, dtype=torch.float64, device=world.device)  # L_lm, L_fuse, selector, variation
        for number, (batch, selection) in enumerate(zip(batches, selections, strict=True)):
            with gradient_sync(self.model, number == len(batches) - 1):
                sums += self._backward(batch, selection, totals, scales)
        norms = self._clipped()
        finite = all(map(math.isfinite, norms.values()))
        for _, optimizer in self.parts.values():
            if finite:
                optimizer.step()
        state.step += 1
        *terms, all_tokens = world.sum(torch.cat([sums, sums.new_tensor([tokens])])).tolist()
        state.tokens += int(all_tokens)
        self.throughput.add(int(all_tokens))
        self.selection_log.take(world.sum(self.selection_log.sums))
        if not finite:
            self._skip(norms, [key for batch in batches for key in batch.keys])
        if state.step % self.job.run.log_every == 0 or state.step == self.steps:
            self._log_step(totals, terms, norms)

    def _select(self, batch: Batch) -> Selection | None:
        if batch.candidates is None:
            return None
        selection = select(self.job.method, self.asn, batch.candidates, self.target.vocab_size, batch.spans)
        anywhere = batch.candidates.aligned.any(-1)
        chunk_of = batch.candidates.chunk_of
        self.selection_log.add(selection.weights, selection.entropy, anywhere, chunk_of, batch.domains)
        return selection

    def _agree(self, batches: list[Batch], selections: list[Selection | None]) -> Totals:
        """The step's totals over all processes, and whether a signal asked one of them to stop."""
        mine = local_totals([batch.labels for batch in batches], selections, len(self.candidates)).vector()
        everybodys = self.world.sum(torch.cat([mine, mine.new_tensor([float(self.stop_asked)])]))
        self.stop_agreed = bool(everybodys[-1] > 0)
        return Totals.from_vector(everybodys[:-1])

    def _backward(
        self, batch: Batch, selection: Selection | None, totals: Totals, scales: tuple[Tensor, Tensor]
    ) -> Tensor:
        """One micro-batch's gradients; its sums of L_lm, L_fuse, selector loss and variation."""
        inputs = TextInputs(batch.input_ids, batch.attention_mask, batch.position_ids)
        teacher = None if selection is None else selection.teacher
        device = self.world.device.type
        with torch.autocast(device, dtype=self.dtype, enabled=self.dtype is not None):
            head = self.model(inputs, batch.predicts, batch.labels, self.job.run.head_block, scales, teacher)
        loss, sums = head.loss, [head.lm, head.fuse]
        if selection is not None:
            loss = loss + selection_loss(self.job.method, selection, totals)
            sums += [selection.text_nll, selection.variation]
        (loss * self.world.size).backward()  # whoever reduces the gradients takes their mean
        found = torch.stack([value.detach().double() for value in sums])
        return torch.nn.functional.pad(found, (0, 4 - len(found)))

    def _clipped(self) -> dict[str, float]:
        """Norms of the gradients of target and selection network before each was clipped."""
        if self.asn is not None:
            self.world.average_gradients(self.asn)
        limit = self.job.optimizer.clip
        return {name: float(clip(trained(module), limit)) for name, (module, _) in self.parts.items()}

    def _skip(self, norms: dict[str, float], keys: list[tuple[int, int]]) -> None:
        """Notes a step that was not taken.

        Raises:
            DataError: there were too many of them.
        """
        state = self.state
        state.skipped += 1
        keys = self.world.gather(keys)
        self.log.write("skipped", state.step, keys=keys, **{f"{name}_grad_norm": str(norms[name]) for name in norms})
        self.progress.say(f"step {state.step} was skipped: a gradient is not finite")
        if state.skipped >= self.job.run.skip_limit:
            raise DataError(
                f"{state.skipped} steps had a loss or gradient that is not finite.",
                file=self.job.tokens,
                field=f"step {state.step}",
                found=", ".join(f"gradient norm of the {name} {norm}" for name, norm in norms.items()),
                expected=f"finite values on the chunks {keys}",
                remedy="lower the learning rate or use precision fp32; the last checkpoint is kept",
            )

    def _log_step(self, totals: Totals, terms: list[float], norms: dict[str, float]) -> None:
        method, state = self.job.method, self.state
        lm, fuse, text_nll, variation = terms
        feed = feed_value(method, totals.positions.new_tensor(variation), totals) if self.asn is not None else 0.0
        means = {
            "lm": lm / max(1.0, float(totals.positions)),
            "fuse": fuse / float(divisor(totals.taught)),
            "feed": float(feed),
            "select": text_nll / max(1.0, float(totals.scored)),
        }
        values = {
            "epoch": state.step * self.job.optimizer.batch_size / self.blocks_per_epoch,
            "tokens": state.tokens,
            "loss": sum(getattr(method, f"lambda_{name}") * value for name, value in means.items()),
            **means,
            "learning_rate": self.parts["model"][1].param_groups[0]["lr"],
            "grad_norm": norms["model"],
            **self.throughput.since_last(),
        }
        self.progress.loss, self.progress.tokens_per_s = values["loss"], values["tokens_per_s"]
        if self.candidates:
            values |= self.selection_log.since_last_step()
        self.log.write("step", state.step, **values)

    def _validate(self) -> None:
        state = self.state
        with self.throughput.paused():
            measured = self.validation(self.model, self.world, self.dtype, self.job.run.head_block)
            self.log.write("validation", state.step, **measured)
            if not self.selection_log.empty:
                self.log.write("selection", state.step, **self.selection_log.by_domain())
            found = measured["trained_bits_per_byte"]
            state.last_bits_per_byte = found
            if state.step == 0:
                state.start_bits_per_byte = found
            if found < state.best_bits_per_byte:
                state.best_bits_per_byte, state.best_step = found, state.step
                self._export("best")
        self.progress.say(f"step {state.step} of {self.steps}: validation {found:.4f} bits per byte")

    def _save(self, checkpoints: Checkpointer) -> None:
        with self.throughput.paused():
            self.state.log_bytes = self.log.position()
            self.state.window = self.selection_log.save()
            checkpoints.save(self.state)

    def _export(self, name: str) -> None:
        weights = merged_state_dict(self.target.model, full_state_dict(self.target.model))
        by_first_rank(lambda: self._write_export(name, weights))

    def _write_export(self, name: str, weights: dict[str, Tensor]) -> None:
        state = self.state
        outcome = TrainingOutcome(
            name,
            state.step,
            self.steps,
            state.tokens,
            {which: getattr(state, f"{which}_bits_per_byte") for which in ("start", "best", "last")},
            self.selection_log.lately(),
            self.world.size,
            self.world.device,
        )
        card = model_card(self.job, outcome)
        export(self.output / name, weights, self.target, self.asn, self.candidates, card, self.tokenizer)

    def _finish(self, seconds: float) -> dict[str, Any]:
        self._export("last")
        state = self.state
        moved = None if self.asn is None else distance_moved(self.initial_asn or {}, _copy(self.asn) or {})
        result = {
            "job": self.job.digest(),
            "config": self.job.content(),
            "steps": self.steps,
            "samples": state.step * self.job.optimizer.batch_size,
            "tokens": state.tokens,
            "skipped": state.skipped,
            "best_step": state.best_step,
            "best_bits_per_byte": state.best_bits_per_byte,
            "last_bits_per_byte": state.last_bits_per_byte,
            "asn_moved": moved,
            "seconds": round(seconds, 2),
        }
        by_first_rank(lambda: write_result(self.output, result))
        return result

    @contextmanager
    def _stop_on_signal(self) -> Iterator[None]:
        """A signal sets a flag, on which the processes agree at their next step."""

        def ask(*_: object) -> None:
            self.stop_asked = True

        before = {number: signal.signal(number, ask) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stopped(self) -> StoppedError:
        return StoppedError(
            "The training was stopped by a signal.",
            file=self.output,
            found=f"step {self.state.step} of {self.steps}; its checkpoint is written",
            remedy="run the same command again: it goes on from there",
        )

    @property
    def _name(self) -> str:
        return "/".join(self.output.parts[-4:])  # train/<method>/lr-<rate>/seed-<n>, or a study's own


def _copy(module: nn.Module | None) -> dict[str, Tensor] | None:
    return None if module is None else {name: tensor.clone() for name, tensor in module.state_dict().items()}
