"""The training loop of one job: one method, one seed. Resumes from its last checkpoint, ends with two exports.

`last/` is the target after the last step, `best/` at its lowest validation bits per byte on the domains that the
training text has. result.json is the mark.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusionx.contract.errors import DataError, StoppedError
from fusionx.contract.files.atomic_folder import recover
from fusionx.contract.shapes import shapes_of
from fusionx.contract.tokens.encoder import load_encoder
from fusionx.train.config import TrainJob
from fusionx.train.data.collate import Batch
from fusionx.train.data.loader import StepBatches, blocks_at_once, loader, workers_for
from fusionx.train.data.shard_stream import ShardSet
from fusionx.train.distributed.collectives import World, by_first_rank, clip, gradient_sync, parallelize, process_group
from fusionx.train.loop.metrics_log import LogMark, MetricsLog
from fusionx.train.loop.optimization import adamw, autocast_dtype, schedule, step_seed, trained
from fusionx.train.loop.progress_line import ProgressLine
from fusionx.train.loop.selection_log import SelectionLog
from fusionx.train.loop.step_records import StepRecord, StepRecords
from fusionx.train.loop.stop_request import StopRequest
from fusionx.train.loop.throughput import Throughput, flops_per_token
from fusionx.train.loop.validation import Validation
from fusionx.train.model.lora import merged_state_dict
from fusionx.train.model.target import TextInputs, load_target, prepare
from fusionx.train.objective.fused_head import head_block
from fusionx.train.objective.losses import Totals, divisor, feed_value, head_scales, local_totals, selection_loss
from fusionx.train.objective.selection_network import SelectionNetwork
from fusionx.train.objective.teacher import Selection, select
from fusionx.train.state.background import BackgroundWriter
from fusionx.train.state.checkpoint import Checkpointer, Parts, TrainState
from fusionx.train.state.export import distance_moved, prepared_export
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
    """Everything one job needs on this process, built once.

    A step never waits for its device: what it found is read every `log_every` steps, and before anything is saved.
    """

    def __init__(self, job: TrainJob, world: World) -> None:
        self.job, self.world = job, world
        self.output = Path(job.output)
        if world.device.type == "cpu":
            torch.set_num_threads(job.run.threads)
        elif job.run.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
            torch.use_deterministic_algorithms(True, warn_only=True)
        torch.manual_seed(job.seed)  # the selection network and adapters start alike on every process
        self.tokenizer = load_encoder(job.target_path, job.target_revision).tokenizer
        self.tokenizer.chat_template = job.chat_template or self.tokenizer.chat_template  # exported as learned by
        self.target = load_target(job.target_path, job.target_revision, world.device, job.optimizer.lora)
        self.dtype = autocast_dtype(job.run.precision, world.device, self.target.stored_dtype)
        # By name, not as listed: a checkpoint's selection network must meet its candidates in the order it knows.
        aligned = dict(sorted(job.aligned.items())) if job.method.teacher != "none" else {}
        self.candidates = list(aligned)
        self.asn: SelectionNetwork | None = None
        if job.method.teacher == "asn":
            self.asn = SelectionNetwork(len(aligned), job.method.selection).to(world.device)
        self.initial_asn = _copy(self.asn)
        shards = ShardSet(job.tokens, aligned, "train", job.method.k, job.end_id)
        self._plan_data(shards)
        self.selection_log = SelectionLog(self.candidates, sorted(shards.domains))
        self.throughput = Throughput(flops_per_token(self.target.model, self.block_tokens), world.device, world.size)
        prepare(self.target, job.run.gradient_checkpointing, job.run.compile)
        self.model = parallelize(self.target, job.run.shards, self.dtype, world)
        self.parts: Parts = {"model": (self.target.model, adamw(job, self.target, job.optimizer.learning_rate))}
        if self.asn is not None:
            self.parts["asn"] = (self.asn, adamw(job, self.asn, job.optimizer.asn_learning_rate))
        self.head_block = job.run.head_block or head_block(self.target.vocab_size, world.device.type)
        self.state = TrainState()
        self.writer = BackgroundWriter()
        self.records = StepRecords(list(self.parts))
        self.stop = StopRequest()
        self.stop_agreed = False

    def _plan_data(self, shards: ShardSet) -> None:
        config, run, pad_id = self.job.optimizer, self.job.run, self.tokenizer.pad_token_id or 0
        packed_apart = config.pack is not None and config.document_mask
        if packed_apart:
            self.target.verify_document_mask()
        order = shards.order(self.job.seed, config.pack, config.data_share)
        self.blocks_per_epoch = order.blocks_per_epoch
        self.block_tokens = sum(part.tokens for part in shards.parts) / order.blocks_per_epoch
        self.steps = max(1, round(config.epochs * order.blocks_per_epoch / config.batch_size))
        world, kind, context = self.world, self.world.device.type, self.target.context
        share = max(1, config.batch_size // world.size)
        self.batches = StepBatches(
            shards,
            order,
            config.batch_size,
            pad_id,
            document_mask=packed_apart,
            micro_batch=run.micro_batch or blocks_at_once(share, config.pack or int(self.block_tokens), kind),
            rank=world.rank,
            world=world.size,
            shapes=shapes_of(kind),
            longest=config.pack or context,
        )
        held_out = (self.job.tokens, run.validate_tokens, pad_id, shards.domains)
        self.validation = Validation(*held_out, shapes_of(kind), context)

    def run(self, resume: Path | None = None) -> dict[str, Any]:
        """The whole training; see `run_job`."""
        started = time.monotonic()
        run = self.job.run
        kept = (self.output / "checkpoints", self.job.content(), self.parts, run.keep_checkpoints)
        checkpoints = Checkpointer(*kept, self.writer)
        for name in ("best", "last"):
            by_first_rank(partial(recover, self.output / name))
        with self.writer, self.stop.listening():
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
                            by_first_rank(self.writer.wait)  # nobody leaves before it is on the disk
                            raise self._stopped()
                result = self._finish(time.monotonic() - started)
            checkpoints.delete_all()  # a finished job never resumes
        return result

    def _log_from(self, first: int) -> MetricsLog:
        arguments = (self.output, self.job, LogMark(*self.state.log), first)
        made: list[MetricsLog] = []
        by_first_rank(lambda: made.append(MetricsLog(*arguments)))  # what it holds stays in its process
        return made[0] if made else MetricsLog(*arguments, is_main=False)

    def batches_from(self, first: int) -> Iterator[list[Batch]]:
        """Micro-batches step by step; what is spent waiting for them is measured."""
        device = self.world.device
        workers = self.job.run.loader_workers
        if workers is None:
            workers = workers_for(device.type)
        made = loader(self.batches, first, self.steps, workers, pin_memory=device.type == "cuda")
        while True:
            with self.throughput.waiting():
                batches = next(made, None)
            if batches is None:
                return
            yield batches

    def step(self, batches: list[Batch]) -> None:
        """One update of the target and the selection network, or none if a gradient is not finite."""
        state, world = self.state, self.world
        tokens, keys = sum(batch.tokens for batch in batches), [key for batch in batches for key in batch.keys]
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
        scales = head_scales(self.job.method, totals)
        sums = torch.zeros(4, dtype=torch.float64, device=world.device)  # L_lm, L_fuse, selector, variation
        for number, (batch, selection) in enumerate(zip(batches, selections, strict=True)):
            with gradient_sync(self.model, number == len(batches) - 1):
                sums += self._backward(batch, selection, totals, scales)
        norms = self._clipped()
        self._update(norms)
        state.step += 1
        found = world.sum(torch.cat([sums, sums.new_full((1,), tokens)]))
        self.records.add(state.step, keys, found, norms, totals)
        self.selection_log.take(world.sum(self.selection_log.sums))
        if state.step % self.job.run.log_every == 0 or state.step == self.steps:
            self._log_step()

    def _select(self, batch: Batch) -> Selection | None:
        if batch.candidates is None:
            return None
        selection = select(self.job.method, self.asn, batch.candidates, self.target.vocab_size)
        anywhere, chunk_of = batch.candidates.aligned.any(-1), batch.candidates.chunk_of
        self.selection_log.add(selection.weights, selection.entropy, anywhere, chunk_of, batch.domains)
        return selection

    def _agree(self, batches: list[Batch], selections: list[Selection | None]) -> Totals:
        """The step's totals over all processes, and whether a signal asked one of them to stop."""
        mine = local_totals([batch.labels for batch in batches], selections, len(self.candidates)).vector()
        self.stop_agreed = self.world.any(self.stop.asked)
        return Totals.from_vector(self.world.sum(mine))

    def _backward(
        self, batch: Batch, selection: Selection | None, totals: Totals, scales: tuple[Tensor, Tensor]
    ) -> Tensor:
        """One micro-batch's gradients; its sums of L_lm, L_fuse, selector loss and variation."""
        inputs = TextInputs(batch.input_ids, batch.position_ids)
        teacher = None if selection is None else selection.teacher
        with torch.autocast(self.world.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            head = self.model(inputs, batch.positions, batch.labels, self.head_block, scales, teacher)
        loss, sums = head.loss, [head.lm, head.fuse]
        if selection is not None:
            loss = loss + selection_loss(self.job.method, selection, totals)
            sums += [selection.text_nll, selection.variation]
        (loss * self.world.size).backward()  # whoever reduces the gradients takes their mean
        found = torch.stack([value.detach().double() for value in sums])
        return torch.nn.functional.pad(found, (0, 4 - len(found)))

    def _clipped(self) -> Tensor:
        """Norms of the gradients of each of the parts before it was clipped, [parts]."""
        if self.asn is not None:
            self.world.average_gradients(self.asn)
        limit = self.job.optimizer.clip
        return torch.stack([clip(trained(module), limit) for module, _ in self.parts.values()])

    def _update(self, norms: Tensor) -> None:
        """One step of every optimizer, or of none where a norm is not finite, as the kernels themselves see to it."""
        found_inf = (~norms.isfinite()).any().float()
        for _, optimizer in self.parts.values():
            optimizer.found_inf = found_inf  # type: ignore[attr-defined]  # as a GradScaler tells it
            optimizer.step()

    def _read(self) -> StepRecord | None:
        """Counts what the steps since the last reading found; the last of them, if there was one."""
        record = None
        for record in self.records.read():
            self.state.tokens += record.tokens
            self.throughput.add(record.tokens)
            if not record.was_taken:
                self._note_skipped(record)
        return record

    def _note_skipped(self, record: StepRecord) -> None:
        """
        Raises:
            DataError: there were too many of them.
        """
        self.state.skipped += 1
        keys, norms = self.world.gather(record.keys), record.norms
        self.log.write("skipped", record.step, keys=keys, **{f"{name}_grad_norm": str(norms[name]) for name in norms})
        self.progress.say(f"step {record.step} was skipped: a gradient is not finite")
        if self.state.skipped >= self.job.run.skip_limit:
            raise DataError(
                f"{self.state.skipped} steps had a loss or gradient that is not finite.",
                file=self.job.tokens,
                field=f"step {record.step}",
                found=", ".join(f"gradient norm of the {name} {norm}" for name, norm in norms.items()),
                expected=f"finite values on the chunks {keys}",
                remedy="lower the learning rate or use precision fp32; the last checkpoint is kept",
            )

    def _log_step(self) -> None:
        method, state, record = self.job.method, self.state, self._read()
        assert record is not None
        totals = record.totals
        feed = feed_value(method, totals.places.new_tensor(record.variation), totals) if self.asn is not None else 0.0
        means = {
            "lm": record.lm / max(1.0, float(totals.positions)),
            "fuse": record.fuse / float(divisor(totals.taught)),
            "feed": float(feed),
            "select": record.text_nll / max(1.0, float(totals.scored)),
        }
        values = {
            "epoch": state.step * self.job.optimizer.batch_size / self.blocks_per_epoch,
            "tokens": state.tokens,
            "loss": sum(getattr(method, f"lambda_{name}") * value for name, value in means.items()),
            **means,
            "learning_rate": self.parts["model"][1].param_groups[0]["lr"],
            "grad_norm": record.norms["model"],
            **self.throughput.since_last(),
        }
        self.progress.loss, self.progress.tokens_per_s = values["loss"], values["tokens_per_s"]
        if self.candidates:
            values |= self.selection_log.since_last_step()
        self.log.write("step", state.step, **values)

    def _validate(self) -> None:
        state = self.state
        self._read()
        with self.throughput.paused():
            measured = self.validation(self.model, self.world, self.dtype, self.head_block)
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
        self._read()
        with self.throughput.paused():
            self.state.log = list(self.log.mark())
            self.state.window = self.selection_log.save()
            checkpoints.save(self.state)

    def _export(self, name: str) -> None:
        """Copies the target; what was begun before is written first."""
        by_first_rank(self.writer.wait)
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
        asn, names, folder = self.asn, self.candidates, self.output / name
        self.writer.submit(prepared_export(folder, weights, self.target, asn, names, card, self.tokenizer))

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
        by_first_rank(self.writer.wait)
        by_first_rank(lambda: write_result(self.output, result))
        return result

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
