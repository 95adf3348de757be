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
    """How lm-evaluation-harness runs the benchmarks.

    `limit` (items per task), `batch_size`, `max_gen_toks` and `include_path` (a folder of your own task files) mean
    what they mean there. `few_shot` is the number of worked examples by task or benchmark, where it is not to be what
    the benchmark or the task says. `data` is a folder of task files to read instead of the hub, see
    `eval.tasks.harness_tasks.local_data`. It, `limit` and `batch_size` hold for the benchmark `me`, too, see
    `eval.code.problems`.
    """

    data: str | None = None
    limit: int | None = Field(None, ge=1)
    batch_size: Operational[int | Literal["auto"]] = 8
    max_gen_toks: int | None = Field(None, ge=1)
    include_path: Added[str | None] = None
    few_shot: Added[dict[str, Annotated[int, Field(ge=0)]]] = {}

    @field_validator("batch_size")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("'batch_size' must be at least 1, or auto")
        return value


class CodeConfig(Config):
    """How the benchmark `me` has programs written and runs them.

    `run` allows programs that the models have written to be run on this machine, in the sandbox of `eval.code.jail`.
    Per problem there are `samples` programs. `languages` are all whose toolchain works in the sandbox, where the list
    is empty. `seconds` is the time for each command (compiling and running), `memory_mib` what a program's processes
    and files may hold together, `workers` how many programs run at a time (one per CPU core by default).
    `libraries` are what a language's tests need beside its toolchain, as a file or folder by language: javatuples' jar
    for `java`, folders with Test::Deep for `pl`, luaunit for `lua`, test-unit for `rb`, unless they are installed.
    """

    run: Operational[bool] = False
    languages: list[CodeLanguage] = []
    samples: int = Field(20, ge=1)
    temperature: float = Field(0.2, gt=0)
    top_p: float = Field(0.95, gt=0, le=1)
    max_new_tokens: int = Field(512, ge=1)
    seconds: float = Field(15, gt=0)
    memory_mib: int = Field(1024, ge=64)
    workers: Operational[int | None] = Field(None, ge=1)
    libraries: Operational[dict[CodeLanguage, str]] = {}


class EvalConfig(Config):
    """How every model of a run is evaluated.

    `tasks` are files, or folders of files, in BIG-Bench-Hard's JSON format (`{"examples": [{"input", "target"}]}`).
    `prompt_prefix_folder` holds one worked prompt per task (`<task>.txt`, as BIG-Bench-Hard's cot-prompts); with it
    the answer is what follows "the answer is". `stop` ends an answer: a new line by default, a blank line where worked
    prompts are used, because their answers run over several lines. `few_shot` examples come from the start of a task
    and are not scored.

    `rivals` are other model folders by name, scored beside the ensembles of the sources. So are the `merges`: the
    candidates of the target's architecture and tokenizer, merged by mergekit with these methods.

    `benchmarks` are run through lm-evaluation-harness besides: `cs` (commonsense: six tasks, zero-shot likelihood),
    `bbh` (27 tasks, few-shot chain of thought, exact match), `mmlu` (57 subjects, five-shot likelihood), any other
    task, group or tag of the harness by its name, or a task file (`.yaml`) in its format. `me` (MultiPL-E: HumanEval in
    many programming languages) needs no harness, but `code.run`.
    """

    split: Literal["train", "validation", "test"] = "test"
    sources: Operational[bool] = False
    rivals: Operational[dict[str, str]] = {}
    merges: Operational[list[MergeMethod]] = []
    batch_tokens: int = Field(8192, ge=1)
    tasks: list[str] = []
    task_template: str = "Q: {input}\nA:"
    few_shot: int = Field(0, ge=0)
    prompt_prefix_folder: str | None = None
    stop: str | None = Field(None, min_length=1)
    max_new_tokens: int = Field(32, ge=1)
    limit: int | None = Field(None, ge=1)
    benchmarks: list[Annotated[str, Field(min_length=1)]] = []
    harness: HarnessConfig = HarnessConfig()
    code: Added[CodeConfig] = CodeConfig()
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
