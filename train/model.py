"""The target model as the trainer sees it: a trunk that gives hidden states, and a head that gives final logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from contract.errors import ConfigError


class Target(nn.Module):
    """A causal language model, split so that the head can run over blocks of positions.

    The head includes what the model itself does to its logits (soft-capping, scaling); construction compares trunk
    plus head with the model's own logits, so that an architecture which does something else is refused, not mistrained.
    """

    def __init__(self, model: nn.Module, stored_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model = model
        self.stored_dtype = stored_dtype
        self._verify()

    @property
    def vocab_size(self) -> int:
        return self._output_layer().weight.shape[0]

    def hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[B, L, d]; runs the model with its head skipped."""
        trunk: Any = self.model.base_model
        return trunk(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state

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
        was_training = self.model.training
        self.model.eval()
        device = next(self.model.parameters()).device
        ids = torch.arange(1, 9, device=device)[None]
        mask = torch.ones_like(ids)
        expected = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0].float()
        found = self.logits(self.hidden(ids, mask)[0]).float()
        self.model.train(was_training)
        # Both sides run the same kernels in fp32; a rule that bends small logits only slightly must not slip through.
        if not torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())):
            raise ConfigError(
                "This architecture does something to its logits that the trainer does not know.",
                field="target.path",
                found=type(self.model).__name__,
                expected="a head that is one linear layer, optionally soft-capped or scaled",
                remedy="add its rule to Target.logits in train/model.py",
            )


def load_target(path: str, revision: str | None, device: torch.device) -> Target:
    """The target in fp32 master weights on `device`.

    Raises:
        ConfigError: there is no causal language model with safetensors weights at that place.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        stored = AutoConfig.from_pretrained(path, revision=revision).dtype
        load: Callable[..., Any] = AutoModelForCausalLM.from_pretrained
        model = load(path, revision=revision, dtype=torch.float32, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise ConfigError(
            "The target cannot be loaded.",
            file=path,
            field="target.path",
            found=str(error).strip().splitlines()[0],
            expected="a Hugging Face folder or hub id with safetensors weights",
        ) from None
    return Target(model.to(device), stored if isinstance(stored, torch.dtype) else torch.float32)
