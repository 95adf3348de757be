"""The model card of an exported target, written from the run's own facts."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from fusionx.contract.files.escaping import markdown_text
from fusionx.contract.models.gguf_folder import dequantised_from
from fusionx.contract.models.licence import licence, licence_fields
from fusionx.contract.models.place import loadable
from fusionx.train.config import TrainJob

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_IN_HUB_FILE = re.compile(r"hf://([\w.-]+/[\w.-]+)(@[\w.-]+)?/")
_IN_HUB_CACHE = re.compile(r"/models--([\w.-]+?)--([\w.-]+)/snapshots/")


@dataclass(frozen=True)
class TrainingOutcome:
    """Where the training stood when it was exported.

    tokens: seen by the target so far. bits_per_byte: on the validation split, e.g. {"start": 1.2, "best": 1.1,
    "last": 1.15}. weights: mean fusion weight of every candidate lately. processes: devices that trained together.
    """

    which: str
    step: int
    steps: int
    tokens: int
    bits_per_byte: dict[str, float]
    weights: dict[str, float] = field(default_factory=dict)
    processes: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


def model_card(job: TrainJob, outcome: TrainingOutcome) -> str:
    """Markdown with the front matter that model hubs read."""
    content = _front_matter(job.target_path, job.target_revision, job.corpus)
    front_matter = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    taught = (
        "" if job.method.teacher == "none" else ", and on the next-token distributions that other models gave for it"
    )
    facts = {**_data(job, outcome), **_method(job), **_optimizer(job), **_result(outcome), **_made_with(outcome)}
    return f"""---
{front_matter}---

# {job.target} after {job.method_name}

Trained with Fusion-X ("Enabling Flexible Multi-LLM Integration for Scalable Knowledge Aggregation",
[arXiv 2505.23844](https://arxiv.org/abs/2505.23844)): on a corpus{taught}.
The architecture and the number of parameters are the target's own.

## Models

{_table(["model", "role", "from", "revision", "licence", "mean fusion weight"], _models(job, outcome))}

Licences are those that the models' own cards state; they may bind what is made from the models.

## Training

{_table(["", ""], [list(fact) for fact in facts.items()])}
"""


def unchanged_card(name: str, path: str, revision: str | None) -> str:
    """The card of a target that no training made better, in a folder of its own."""
    content = _front_matter(path, revision, "", relation=None)
    return f"""---
{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}---

# {name}, unchanged

The weights are those of {markdown_text(public_name(path))}, as they were before any training.
"""


def _front_matter(path: str, revision: str | None, corpus: str, relation: str | None = "finetune") -> dict[str, Any]:
    content: dict[str, Any] = {**licence_fields(path, revision)}
    base = hub_id(path)
    if base is not None:
        content["base_model"] = base
        if relation is not None:
            content["base_model_relation"] = relation
    if hub_id(corpus) is not None:
        content["datasets"] = [corpus]
    return {
        **content,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["fusion-x", "knowledge-fusion"] if relation == "finetune" else ["fusion-x"],
    }


def hub_id(path: str) -> str | None:
    """OWNER/NAME of what lies on the hub: an id, a file there (`hf://`), or a folder in the hub's own cache."""
    file, cached = _IN_HUB_FILE.match(path), _IN_HUB_CACHE.search(f"{path}/")
    if file is not None:
        return file[1]
    if cached is not None:
        return f"{cached[1]}/{cached[2]}"
    return path if _HUB_ID.fullmatch(path) and not Path(path).exists() else None


def public_name(path: str) -> str:
    """What a reader elsewhere can make something of: the hub's id, or of a folder its name; no local path."""
    return hub_id(path) or Path(path).name


def _models(job: TrainJob, outcome: TrainingOutcome) -> list[list[str]]:
    target = {"path": job.target_path, "revision": job.target_revision or ""}
    models = {job.target: target, **{name: said for name, said in job.sources.items() if name != job.target}}
    return [
        [
            name,
            "target" if name == job.target else "source",
            public_name(said["path"]),
            said.get("revision") or "not pinned",
            licence(said["path"], said.get("revision") or None) or "not known",
            f"{outcome.weights[name]:.3f}" if name in outcome.weights else "",
        ]
        for name, said in models.items()
    ]


def _data(job: TrainJob, outcome: TrainingOutcome) -> dict[str, str]:
    packed = dequantised_from(loadable(job.target_path, job.target_revision))
    weights = {} if packed is None else {"Target's weights": f"unpacked from {packed}; these are not quantised"}
    return {
        **weights,
        "Corpus": public_name(job.corpus) or "not stated",
        "Tokens seen": f"{outcome.tokens:,}",
        "Seed": str(job.seed),
    }


def _method(job: TrainJob) -> dict[str, str]:
    method = job.method
    facts = {"Method": f"{job.method_name}: teacher {method.teacher}"}
    lambdas = {"L_lm": method.lambda_lm}
    if method.teacher != "none":
        cut = "" if method.k is None else f", {method.k} entries"
        facts["Distributions"] = f"alignment {method.alignment}, tail {method.tail}{cut}"
        lambdas["L_fuse"] = method.lambda_fuse
    if method.teacher == "asn":
        facts["Selection"] = ", ".join(f"{name} {_said(value)}" for name, value in method.selection.content().items())
        lambdas |= {"L_feed": method.lambda_feed, "L_select": method.lambda_select}
    facts["Losses"] = " + ".join(f"{weight:g} {name}" for name, weight in lambdas.items())
    return facts


def _optimizer(job: TrainJob) -> dict[str, str]:
    config = job.optimizer
    unit = "chunks" if config.pack is None else f"blocks of {config.pack} tokens"
    network = f" (selection network {config.asn_learning_rate:g})" if job.method.teacher == "asn" else ""
    facts = {
        "Optimizer": f"AdamW {config.betas}, weight decay {config.weight_decay:g}, clipped at {config.clip:g}",
        "Learning rate": f"{config.learning_rate:g}{network}, cosine with warm-up ratio {config.warmup_ratio:g}",
        "Batches": f"{config.batch_size} {unit}, {config.epochs:g} epochs",
    }
    if config.data_share < 1:
        facts["Batches"] += f" over {config.data_share:.4g} of the text"
    if config.lora is not None:
        facts["Adapters"] = ", ".join(f"{name} {_said(value)}" for name, value in config.lora.content().items())
        facts["Adapters"] += "; merged into these weights"
    return facts


def _result(outcome: TrainingOutcome) -> dict[str, str]:
    return {
        "Step": f"{outcome.step:,} of {outcome.steps:,} ({outcome.which})",
        "Validation, bits per byte": ", ".join(f"{name} {bits:.4f}" for name, bits in outcome.bits_per_byte.items()),
    }


def _made_with(outcome: TrainingOutcome) -> dict[str, str]:
    cuda = outcome.device.type == "cuda"
    device = torch.cuda.get_device_name(outcome.device) if cuda else "CPU"
    versions = [f"{name} {_version(name)}" for name in ("fusionx", "torch", "transformers")]
    return {"Hardware": f"{outcome.processes} x {device}", "Versions": ", ".join(versions)}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # a checkout on the path, not installed
        return "(not installed)"


def _said(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(markdown_text(cell) for cell in line) + " |" for line in lines)
