"""What a user says about evaluation: the held-out split, the tasks, and how differences are judged."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from contract.config import Config, Operational, digest_of

JUDGING_FIELDS = ("bootstrap", "confidence")
LOCATION_FIELDS = ("tasks", "prompt_prefix_folder")


class EvalConfig(Config):
    """How every model of a run is evaluated.

    `tasks` are files, or folders of files, in BIG-Bench-Hard's JSON format (`{"examples": [{"input", "target"}]}`).
    `prompt_prefix_folder` holds one worked prompt per task (`<task>.txt`, as BIG-Bench-Hard's cot-prompts); with it
    the answer is what follows "the answer is". `stop` ends an answer: a new line by default, a blank line where worked
    prompts are used, because their answers run over several lines. `few_shot` examples come from the start of a task
    and are not scored.
    """

    split: Literal["train", "validation", "test"] = "test"
    sources: Operational[bool] = False
    batch_tokens: int = Field(8192, ge=1)
    tasks: list[str] = []
    task_template: str = "Q: {input}\nA:"
    few_shot: int = Field(0, ge=0)
    prompt_prefix_folder: str | None = None
    stop: str | None = Field(None, min_length=1)
    max_new_tokens: int = Field(32, ge=1)
    limit: int | None = Field(None, ge=1)
    bootstrap: int = Field(2000, ge=100)
    confidence: float = Field(0.95, gt=0.5, lt=1.0)
    device: Operational[str] = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    threads: Operational[int | None] = Field(None, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> EvalConfig:
        if "{input}" not in self.task_template:
            raise ValueError("'task_template' must contain {input}")
        if self.few_shot and self.prompt_prefix_folder:
            raise ValueError("'few_shot' and 'prompt_prefix_folder' both put examples in front; give one of them")
        return self

    @property
    def stop_text(self) -> str:
        """The text that ends an answer."""
        return self.stop or ("\n\n" if self.prompt_prefix_folder else "\n")

    def measurement_digest(self) -> str:
        """Digest of the fields that decide what is measured.

        Leaves out how differences are judged afterwards, and where task files lie: their content is part of an
        evaluation's data digest.
        """
        content: dict[str, Any] = self.content()
        return digest_of({name: content[name] for name in content if name not in JUDGING_FIELDS + LOCATION_FIELDS})
