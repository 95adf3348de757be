"""What a user says about evaluation: the held-out split, the tasks, and how differences are judged."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from fusionx.contract.config import Added, Config, Operational, digest_of

JUDGING_FIELDS = ("bootstrap", "confidence")
LOCATION_FIELDS = ("tasks", "prompt_prefix_folder")
BENCHMARK_FIELDS = ("benchmarks", "harness", "code")

CodeLanguage = Literal["py", "js", "ts", "cpp", "java", "pl", "sh", "rs", "go", "rb", "php", "lua", "r", "jl"]
MergeMethod = Literal[
    "linear",
    "slerp",
    "karcher",
    "task_arithmetic",
    "ties",
    "dare_linear",
    "dare_ties",
    "breadcrumbs",
    "della",
    "model_stock",
]


MERGE_ROW = "merge: "
"""What a merged model's row of the report begins with."""


class HarnessConfig(Config):
    """How lm-evaluation-harness runs the benchmarks. `data`, `limit` and `batch_size` hold for the benchmark `me`, too
    (`eval.code.problems`).
    """

    data: str | None = None
    """A folder of task files to read instead of the hub (`eval.tasks.harness_tasks.local_data`)."""
    limit: int | None = Field(None, ge=1)
    """Items; of each task, the first ones, none: all."""
    batch_size: Operational[int | Literal["auto"]] = 8
    """Requests; in one forward pass, or `auto`."""
    max_gen_toks: int | None = Field(None, ge=1)
    """Tokens; of a generated answer, none: what the task says."""
    include_path: Added[str | None] = None
    """A folder of your own task files."""
    few_shot: Added[dict[str, Annotated[int, Field(ge=0)]]] = {}
    """Worked examples by task or benchmark, where it is not to be what the benchmark or the task says."""

    @field_validator("batch_size")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("'batch_size' must be at least 1, or auto")
        return value


class CodeConfig(Config):
    """How the benchmark `me` has programs written and runs them."""

    run: Operational[bool] = False
    """Allows programs that the models have written to be run on this machine, in the sandbox of `eval.code.jail`."""
    languages: list[CodeLanguage] = []
    """Which of MultiPL-E's; empty: all whose toolchain works in the sandbox."""
    samples: int = Field(20, ge=1)
    """Programs; per problem."""
    temperature: float = Field(0.2, gt=0)
    """Temperature; at which programs are sampled."""
    top_p: float = Field(0.95, gt=0, le=1)
    """Share of probability; from which tokens are sampled."""
    max_new_tokens: int = Field(512, ge=1)
    """Tokens; of a program."""
    seconds: float = Field(15, gt=0)
    """Seconds; for each command (compiling and running)."""
    memory_mib: int = Field(1024, ge=64)
    """MiB; that a program's processes and files may hold together."""
    workers: Operational[int | None] = Field(None, ge=1)
    """Programs; that run at a time, none: one per CPU core."""
    libraries: Operational[dict[CodeLanguage, str]] = {}
    """What a language's tests need beside its toolchain, as a file or folder by language: javatuples' jar for `java`,
    folders with Test::Deep for `pl`, luaunit for `lua`, test-unit for `rb`, unless they are installed."""


RowName = Annotated[str, Field(pattern=r"^\w[\w .:()+@=,-]{0,47}$")]
"""Also the name of a file."""


class EvalConfig(Config):
    """How every model of a run is evaluated."""

    split: Literal["train", "validation", "test"] = "test"
    """The text that models are judged on."""
    sources: Operational[bool] = False
    """Whether the sources are evaluated, too."""
    rivals: Operational[dict[RowName, str]] = {}
    """Other model folders by name, scored beside the ensembles of the sources."""
    merges: Operational[list[MergeMethod]] = []
    """Methods of mergekit, by which the candidates of the target's architecture and tokenizer are merged; scored beside
    the ensembles."""
    batch_tokens: int = Field(8192, ge=1)
    """Tokens; in one forward pass."""
    tasks: list[str] = []
    """Files, or folders of files, in BIG-Bench-Hard's JSON format (`{"examples": [{"input", "target"}]}`)."""
    task_template: str = "Q: {input}\nA:"
    """The prompt of a task's item; `{input}` stands for its input."""
    few_shot: int = Field(0, ge=0)
    """Examples; from the start of a task that stand before each item, and are not scored."""
    prompt_prefix_folder: str | None = None
    """One worked prompt per task (`<task>.txt`, as BIG-Bench-Hard's cot-prompts); with it the answer is what follows
    "the answer is"."""
    stop: str | None = Field(None, min_length=1)
    """The text that ends an answer; none: a new line, or a blank line where worked prompts are used, because their
    answers run over several lines."""
    max_new_tokens: int = Field(32, ge=1)
    """Tokens; of an answer to a task."""
    limit: int | None = Field(None, ge=1)
    """Items; of each of `tasks`, none: all."""
    benchmarks: list[Annotated[str, Field(min_length=1)]] = []
    """`cs` (commonsense: six tasks, zero-shot likelihood), `bbh` (27 tasks, few-shot chain of thought, exact match),
    `mmlu` (57 subjects, five-shot likelihood), any other task, group or tag of lm-evaluation-harness by its name, or a
    task file (`.yaml`) in its format; `me` (MultiPL-E: HumanEval in many programming languages) needs no harness, but
    `code.run`."""
    harness: HarnessConfig = HarnessConfig()
    """How lm-evaluation-harness runs the benchmarks."""
    code: Added[CodeConfig] = CodeConfig()
    """How the benchmark `me` runs."""
    examples: Operational[int] = Field(3, ge=0, le=50)
    """Held-out documents; that a model which is evaluated goes on from, for the report to show side by side."""
    bootstrap: int = Field(2000, ge=100)
    """Resamples; of documents and items, for intervals."""
    confidence: float = Field(0.95, gt=0.5, lt=1.0)
    """Probability; of the intervals, and what "beyond noise" means."""
    device: Operational[str] = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")
    """`auto`: a GPU where there is one; `cpu`, `cuda`, `cuda:N` or `mps`."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What models compute in; `auto`: bfloat16 on a GPU, float32 elsewhere. A CPU without instructions for a half
    precision takes float32 for it."""
    threads: Operational[int | None] = Field(None, ge=1)
    """CPU threads; none: as many as torch takes."""

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

    @property
    def merge_rows(self) -> dict[str, MergeMethod]:
        """Name under which a merged model stands in the report -> its method."""
        return {f"{MERGE_ROW}{method}": method for method in self.merges}

    def measurement_digest(self) -> str:
        """Digest of the fields that decide what is measured.

        Leaves out how differences are judged afterwards, where task files lie (their content is part of an evaluation's
        data digest), and the benchmarks, whose scores are kept task by task with digests of their own.
        """
        content: dict[str, Any] = self.content()
        left_out = JUDGING_FIELDS + LOCATION_FIELDS + BENCHMARK_FIELDS
        return digest_of({name: content[name] for name in content if name not in left_out})
