"""The target model as the trainer sees it: a trunk that gives hidden states, and a head that gives final logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fusionx.contract.errors import ConfigError, FusionXError
from fusionx.contract.models.causal_lm import load_causal_lm, one_line, read_config
from fusionx.contract.models.place import loadable
from fusionx.contract.packed_rows import packed_rows_found_by
from fusionx.contract.weights import check_model_files
from fusionx.train.config import LoraConfig
from fusionx.train.model.lora import add_adapters, quantization_options
from fusionx.train.objective.fused_head import HeadLosses, fused_head, label_nll
from fusionx.train.objective.teacher import Teacher


class TextInputs(NamedTuple):
    """What the trunk reads; int64 [B, L]. With `position_ids` that restart, each document sees itself only.

    There is no mask of the padding: it stands on the right, where no token of a causal model sees it.
    """

    input_ids: Tensor
    position_ids: Tensor | None


class Target(nn.Module):
    """A causal language model, split so that the head can run over blocks of positions.

    The head includes what the model itself does to its logits (soft-capping, scaling); construction compares trunk
    plus head with the model's own logits, so that an architecture which does something else is refused, not mistrained.
    All computing goes through `forward`, which is where wrappers that divide the work over devices step in.
    """

    def __init__(self, model: nn.Module, stored_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model = model
        self.stored_dtype = stored_dtype
        self._verify()

    @property
    def vocab_size(self) -> int:
        return self._output_layer().weight.shape[0]

    @property
    def context(self) -> int | None:
        """The most tokens that a row may have; None where the model states no limit."""
        config: Any = self.model.config
        return getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)

    def forward(
        self,
        inputs: TextInputs,
        positions: Tensor,
        labels: Tensor,
        block: int,
        scales: tuple[Tensor, Tensor] | None = None,
        teacher: Teacher | None = None,
    ) -> HeadLosses | Tensor:
        """The losses of a micro-batch (`train.objective.fused_head`), or without `scales` its label NLLs [N].

        Args:
            positions: int64 [N], places in the flattened rows. labels: int64 [N], what comes next there.
        """
        hidden = self.hidden(inputs).flatten(0, 1).index_select(0, positions)
        if scales is None:
            return label_nll(self.logits, hidden, labels, block)
        parameters = [leaf for leaf in self._output_layer().parameters() if leaf.requires_grad]
        return fused_head(self.logits, parameters, hidden, labels, teacher, *scales, block)

    def hidden(self, inputs: TextInputs) -> Tensor:
        """[B, L, d]; runs the model with its head skipped."""
        trunk: Any = self.model.base_model
        # Transformers builds a mask per document from restarting positions, if it is given no other mask.
        given = {} if inputs.position_ids is None else {"position_ids": inputs.position_ids}
        with _packing_known(inputs.position_ids is not None):
            return trunk(input_ids=inputs.input_ids, use_cache=False, **given).last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, d] -> final logits [n, V]."""
        config: Any = self.model.config
        logits = self._output_layer()(hidden)
        scale = getattr(config, "logit_scale", None)  # Cohere
        if scale is not None:
            logits = logits * scale
        divisor = getattr(config, "logits_scaling", None)  # Granite
        if divisor is not None:
            logits = logits / divisor
        cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _output_layer(self) -> Any:
        return self.model.get_output_embeddings()  # type: ignore[operator]

    @torch.no_grad()
    def _verify(self) -> None:
        with self._on_probe() as ids:
            expected = self.model(input_ids=ids[None], use_cache=False).logits[0].float()
            found = self.logits(self._document(ids)).float()
        if bool((expected.isnan() | expected.isposinf()).any()):
            raise ConfigError(
                "The target's logits are not finite.",
                file=getattr(self.model, "name_or_path", None) or None,
                field="target.path",
                found=f"NaN or infinity for the tokens {ids.tolist()}",
                expected="finite logits",
                remedy="its numbers overflow or were damaged: download or export it again, from before that",
            )
        # Both sides run the same kernels in fp32; a rule that bends small logits only slightly must not slip through.
        if not torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())):
            raise ConfigError(
                "This architecture does something to its logits that the trainer does not know.",
                field="target.path",
                found=type(self.model).__name__,
                expected="a head that is one linear layer, optionally soft-capped or scaled",
                remedy="add its rule to Target.logits in train/model.py",
            )

    @torch.no_grad()
    def verify_document_mask(self) -> None:
        """Compares two packed documents with each alone, and asks whether the first ever shows in the second.

        Raises:
            ConfigError: this architecture does not keep them apart.
        """
        with self._on_probe() as ids:
            for first, second in (ids.split([5, 3]), ids.flip(0).split([3, 5])):
                size = len(first)
                packed = self._packed(first, second)
                apart = torch.cat([self._document(first), self._document(second)])
                other_first = self._packed(first.flip(0) + 1, second)
                # Kernels of one shape give the same sums, but for experts that share their work out by token.
                noise = (self._packed(first, second.flip(0) + 1) - packed)[:size].abs().max()
                leak, scale = (other_first - packed)[size:].abs().max(), packed.abs().max()
                alike = torch.allclose(packed, apart, rtol=1e-3, atol=1e-3 * float(apart.abs().max()))
                if not alike or leak > 10 * noise + 1e-6 * scale:
                    raise ConfigError(
                        "This architecture does not keep packed documents apart.",
                        field="train.optimizer.document_mask",
                        found=type(self.model).__name__,
                        expected="a model whose every layer makes its mask of position_ids",
                        remedy="set document_mask to false, or pack to null",
                    )

    @contextmanager
    def _on_probe(self) -> Iterator[Tensor]:
        """Eight ids, int64 on the model's device, for a model that draws no random numbers meanwhile."""
        was_training = self.model.training
        self.model.eval()
        yield torch.arange(1, 9, device=next(self.model.parameters()).device)
        self.model.train(was_training)

    def _packed(self, first: Tensor, second: Tensor) -> Tensor:
        """Hidden states [L, d] of two texts in one row, each to see itself only."""
        ids = torch.cat([first, second])[None]
        position_ids = torch.cat([torch.arange(len(first)), torch.arange(len(second))]).to(ids.device)[None]
        return self.hidden(TextInputs(ids, position_ids))[0]

    def _document(self, ids: Tensor) -> Tensor:
        """Hidden states [L, d] of one text of ids [L]."""
        return self.hidden(TextInputs(ids[None], None))[0]


def _packing_known(packed: bool) -> AbstractContextManager[None]:
    """Tells transformers whether rows hold several documents, which else it asks the device in every forward pass."""

    def documents(position_ids: Tensor) -> Tensor | None:
        """Each token's document, counted in its row, int64 [B, L]: a new one begins where positions do not go on."""
        if not packed:
            return None
        goes_on = position_ids[:, 1:] == position_ids[:, :-1] + 1
        return torch.nn.functional.pad((~goes_on).cumsum(-1), (1, 0))

    return packed_rows_found_by(documents)


def decoder_blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated layers of a model, by the class names that it keeps on one device."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def prepare(target: Target, gradient_checkpointing: bool, compiled: bool) -> None:
    """Trades time for memory, or compilation for time, block by block."""
    model: Any = target.model
    if gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if compiled:
        for block in decoder_blocks(model):
            block.compile()


def load_target(path: str, revision: str | None, device: torch.device, lora: LoraConfig | None = None) -> Target:
    """The target on `device`, in fp32 master weights; with `lora` frozen, in bf16 if stored so, adapters in place.

    Raises:
        ConfigError: there is no causal language model with safetensors weights at that place.
        DataError: weights are missing, damaged or not finite.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    place = loadable(path, revision)
    check_model_files(place)
    try:
        stored = read_config(place, revision, field="target.path").dtype
        options = quantization_options(lora, device)
        # Frozen weights need no spare digits, but adapters' gradients would vanish in fp16.
        dtype = torch.bfloat16 if lora is not None and stored == torch.bfloat16 else torch.float32
        model = load_causal_lm(place, field="target.path", revision=revision, dtype=dtype, **options)
    except FusionXError:
        raise
    except Exception as error:  # transformers and safetensors raise many kinds for a damaged folder
        raise ConfigError(
            "The target cannot be loaded.",
            file=path,
            field="target.path",
            found=f"{type(error).__name__}: {one_line(error)}",
            expected="a Hugging Face folder or hub id with safetensors weights, or a GGUF file",
            remedy="check the path, or download or export the model again",
        ) from None
    if not options:
        model = model.to(device)
    if lora is not None:
        add_adapters(model, lora)
    return Target(model, stored if isinstance(stored, torch.dtype) else torch.float32)
