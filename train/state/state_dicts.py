"""A module's tensors and its optimizer's, whole and under the plain module's names, however they are divided.

A plain module, one wrapped by DDP, compiled, or divided by FSDP2 (`fully_shard`) gives and takes the same: what one
number of processes saved another can load.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

_LOCKED_BYTES = 2**32
"""What may be copied off a GPU through page-locked memory, several times as fast. It is never given back, so that of a
large model the rest goes the slow way."""


def full_state_dict(module: nn.Module, trainable_only: bool = False) -> dict[str, Tensor]:
    """Copies on the CPU, on the first rank; empty on the others. Every rank must call it.

    Tied weights appear once, under their first name; copies, so that training may go on changing the originals.

    Args:
        trainable_only: parameters that are trained; otherwise all parameters and persistent buffers.
    """
    chosen = trainable_parameters(module) if trainable_only else dict(_named_tensors(module))
    return _gather(chosen.items())


def full_optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What the optimizer remembers of each parameter, as `<parameter>.<exp_avg, step, ...>`; else `full_state_dict`."""
    return _gather(
        (f"{name}.{key}", value)
        for name, parameter in trainable_parameters(module).items()
        for key, value in optimizer.state.get(parameter, {}).items()
    )


@torch.no_grad()
def load_parameters(module: nn.Module, read: Callable[[str], Tensor]) -> None:
    """Sets the trained parameters in place; `read` gives the whole tensor of a name. Every rank must call it."""
    for name, parameter in trainable_parameters(module).items():
        parameter.copy_(_divided_like(read(name), parameter))


def load_optimizer_state(
    module: nn.Module, optimizer: torch.optim.Optimizer, names: list[str], read: Callable[[str], Tensor]
) -> None:
    """Sets what `full_optimizer_state` gave. `names`: everything that `read` knows. Every rank must call it."""
    keys: dict[str, list[str]] = {}
    for full_name in names:
        name, _, key = full_name.rpartition(".")
        keys.setdefault(name, []).append(key)
    own_names = {id(parameter): name for name, parameter in trainable_parameters(module).items()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    content = optimizer.state_dict()
    content["state"] = {}
    for index, parameter in enumerate(parameters):
        name = own_names.get(id(parameter), "")
        if name in keys:  # else it had no gradient yet
            content["state"][index] = {key: _divided_like(read(f"{name}.{key}"), parameter) for key in keys[name]}
    optimizer.load_state_dict(content)


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by plain name; tied ones once."""
    return {
        name: tensor
        for name, tensor in _named_tensors(module)
        if isinstance(tensor, nn.Parameter) and tensor.requires_grad
    }


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    # Through state_dict, whose hooks let FSDP2 put its divided parameters back in place of whole ones.
    plain = module.module if isinstance(module, DistributedDataParallel) else module
    seen: set[int] = set()
    for name, tensor in plain.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            yield name.replace("_orig_mod.", ""), tensor


@torch.no_grad()
def _gather(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """One tensor after the other, so that no device ever holds more than one whole tensor besides its share."""
    first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    gathered: dict[str, Tensor] = {}
    locked = 0
    for name, tensor in tensors:
        whole = tensor.full_tensor() if _is_divided(tensor) else tensor  # type: ignore[attr-defined]
        if first:
            locks = whole.is_cuda and locked + whole.nbytes <= _LOCKED_BYTES
            locked += locks * whole.nbytes
            gathered[name] = torch.empty(whole.shape, dtype=whole.dtype, pin_memory=locks)
            gathered[name].copy_(whole.detach(), non_blocking=locks)
    if locked:
        torch.cuda.current_stream().synchronize()
    return gathered


def _divided_like(whole: Tensor, like: Tensor) -> Tensor:
    """This rank's share of a tensor that every rank has read; one of another shape (a counter) is no part of it."""
    if not _is_divided(like) or whole.shape != like.shape:
        return whole
    from torch.distributed.tensor import distribute_tensor

    divided: Any = like
    return distribute_tensor(whole.to(like.device), divided.device_mesh, divided.placements, src_data_rank=None)


def _is_divided(tensor: Tensor) -> bool:
    """Whether it is a DTensor; asked without importing the class, which takes seconds that most runs need not spend."""
    return hasattr(tensor, "full_tensor")
