"""What every generated answer needs: settings for `generate`, the ids that pad and end, and when a row is done."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from fusionx.eval.models.loaded_model import LoadedModel

if TYPE_CHECKING:
    import torch


def greedy(loaded: LoadedModel, max_new_tokens: int) -> Any:
    """A `transformers.GenerationConfig`: the likeliest token, and nothing of the folder's own settings but the ends."""
    from transformers import GenerationConfig

    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        pad_token_id=padding_id(loaded),
        eos_token_id=end_ids(loaded),
        bos_token_id=loaded.tokenizer.bos_token_id,
    )


def padding_id(loaded: LoadedModel) -> int:
    """The id that fills up a batch."""
    for token in (loaded.tokenizer.pad_token_id, loaded.tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0  # masked out wherever it stands


def end_ids(loaded: LoadedModel) -> Any:
    """The ids that end a text: the folder's generation settings know them best (chat models have several)."""
    own = getattr(getattr(loaded.model, "generation_config", None), "eos_token_id", None)
    return own if own is not None else loaded.tokenizer.eos_token_id


class StopRule(ABC):
    """Stopping rule for `generate`: a row is done once its new tokens end the answer, and stays so."""

    def __init__(self, prompt_length: int) -> None:
        self.prompt_length = prompt_length
        self.done: torch.Tensor | None = None

    @abstractmethod
    def ends(self, new_ids: torch.Tensor) -> bool:
        """Whether these tokens, int64 [n], all that a row has after its prompt, are a whole answer."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """bool [rows], from ids int64 [rows, prompt and answer]."""
        import torch

        if self.done is None:
            self.done = torch.zeros(len(input_ids), dtype=torch.bool)
        for row in torch.nonzero(~self.done).flatten().tolist():
            self.done[row] = self.ends(input_ids[row, self.prompt_length :])
        return self.done.to(input_ids.device)
