"""Devices that a config asks for and this machine does not have."""

from __future__ import annotations

import math
from collections.abc import Iterator

from fusionx.contract.errors import ConfigError
from fusionx.pipelines.config import FusionConfig


def missing_devices(config: FusionConfig, *stages: str) -> Iterator[ConfigError]:
    """One error for each field of the stages (precompute, train, eval) that asks for what is not here.

    Precompute's workers on a cluster are not of this machine, and not asked. Imports torch only where a field asks.
    """
    for field, value, gpus in _wanted(config, stages):
        there = _apple_gpus() if value == "mps" else _cuda_gpus()
        if there < gpus:
            yield ConfigError(
                "A config asks for a device that this machine does not have.",
                field=field,
                found=value,
                expected=f"what is here: {_said(there)}",
                remedy="run where it is, or join a cluster with executor.address"
                if field.startswith("precompute")
                else "run where it is, or set the device to auto or cpu",
            )


def _wanted(config: FusionConfig, stages: tuple[str, ...]) -> Iterator[tuple[str, object, int]]:
    """Field, its value, and how many GPUs it takes for granted."""
    here = config.executor.kind == "inline" or config.executor.address is None
    precompute, train, device = config.precompute, config.train, config.eval.device
    if "precompute" in stages and here:
        if precompute.device == "cuda":
            yield "precompute.device", precompute.device, 1
        if precompute.num_gpus > 0:
            yield "precompute.num_gpus", precompute.num_gpus, math.ceil(precompute.num_gpus)
        for model in config.models:
            if model.quantization != "none":
                yield f"quantization of model '{model.id}'", model.quantization, 1
    if "train" in stages:
        if train.run.device == "cuda":
            yield "train.run.device", train.run.device, train.run.devices or 1
        if train.optimizer.lora is not None and train.optimizer.lora.quantization != "none":
            yield "train.optimizer.lora.quantization", train.optimizer.lora.quantization, 1
    if "eval" in stages and device not in ("auto", "cpu"):
        yield "eval.device", device, 1 + int(device.partition(":")[2] or 0)


def _cuda_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _apple_gpus() -> int:
    import torch

    return int(torch.backends.mps.is_available())


def _said(gpus: int) -> str:
    import torch

    if gpus:
        return "1 GPU" if gpus == 1 else f"{gpus} GPUs"
    return "no GPU" if torch.version.cuda or torch.version.hip else "no GPU, and a torch without CUDA"
