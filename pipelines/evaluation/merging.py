"""Weight merging of the candidates that share the target's architecture, through mergekit: `eval.merges`.

mergekit is an extra (`merge`) and runs on the CPU. A merged model is an ordinary model folder with its recipe in it;
`pipelines.evaluation.ensembles` scores it as a rival.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fusionx.contract.config import digest_of
from fusionx.contract.errors import ConfigError, DataError
from fusionx.contract.extras import import_extra
from fusionx.contract.files import done_marks
from fusionx.contract.files.atomic_folder import atomic_folder
from fusionx.contract.tokens.encoder import load_encoder
from fusionx.eval.config import EvalConfig, MergeMethod
from fusionx.eval.evaluate import data_digest, evaluate_model
from fusionx.eval.models.loaded_model import limited_threads, settings_digest, weights_digest
from fusionx.eval.text.perplexity import Chunk
from fusionx.pipelines.config import FusionConfig
from fusionx.pipelines.evaluation.evaluate_models import held_out_chunks, local_folder
from fusionx.pipelines.layout import Layout
from fusionx.precompute.config import ModelConfig
from fusionx.precompute.logits.source_model import load_model_config

FIELD = "eval.merges"
RECIPE_FILE = "mergekit_config.yml"
"""In a merged model's folder, under mergekit's own name for it: `mergekit-yaml` makes the same model of it."""
_SEED = 0
"""Of the methods that drop weights at random."""
SCALES = (0.2, 0.3, 0.5, 1.0)
"""How far a merge goes from the target along what the others changed; the best on the validation text is kept."""


@dataclass(frozen=True)
class Recipe:
    """What mergekit is told for a method.

    each: parameters of every model, of the others than the target where `base`. whole: parameters of the merge.
    base: the target is what the merge goes out from. scales: of what the others changed; empty where it has none.
    least, most: number of models, the target included.
    """

    each: Mapping[str, float] = field(default_factory=dict)
    whole: Mapping[str, float | bool] = field(default_factory=dict)
    base: bool = True
    scales: tuple[float, ...] = ()
    least: int = 2
    most: int | None = None


RECIPES: dict[MergeMethod, Recipe] = {
    "linear": Recipe({"weight": 1.0}, base=False),
    "slerp": Recipe(whole={"t": 0.5}, most=2),
    "karcher": Recipe(base=False),
    "task_arithmetic": Recipe({"weight": 1.0}, scales=SCALES),
    "ties": Recipe({"weight": 1.0, "density": 0.5}, {"normalize": True}, scales=SCALES),
    "dare_linear": Recipe({"weight": 1.0, "density": 0.5}, scales=SCALES),
    "dare_ties": Recipe({"weight": 1.0, "density": 0.5}, {"normalize": True}, scales=SCALES),
    "breadcrumbs": Recipe({"weight": 1.0, "density": 0.9, "gamma": 0.01}, scales=SCALES),
    "della": Recipe({"weight": 1.0, "density": 0.5, "epsilon": 0.15}, {"normalize": True}, scales=SCALES),
    "model_stock": Recipe(least=3),
}
"""Every method with one setting for all models, and where its paper tunes a scale on validation text, with `SCALES`:

- `linear`: the mean of all weights (model soups, Wortsman et al. 2022, arXiv 2203.05482).
- `slerp`: half way between two models on a sphere. `karcher`: the mean on the sphere of any number.
- `task_arithmetic` (Ilharco et al. 2023, arXiv 2212.04089): the target plus the scaled sum of what the others changed.
- `ties` (Yadav et al. 2023, arXiv 2306.01708): the larger half of every change, one sign elected per weight, the mean
  of those that have it.
- `dare_linear`, `dare_ties` (Yu et al. 2024, arXiv 2311.03099): the same two after half of each change was dropped at
  random and the rest scaled up.
- `breadcrumbs` (Davari and Belilovsky 2024, arXiv 2312.06795): task arithmetic without the largest 1% and smallest 9%.
- `della` (Deep et al. 2024, arXiv 2406.11617): TIES, dropping at random, large changes less often.
- `model_stock` (Jang et al. 2024, arXiv 2403.19522): between target and mean, by the angle between the changes.
"""


def make_merges(config: FusionConfig, layout: Layout) -> int:
    """Makes what `eval.merges` asks for, unless it was made of the same weights by the same recipe; returns how many.

    Raises:
        ConfigError: the candidates cannot be merged so, or mergekit is not installed.
        DataError: there is no validation text, or mergekit could not merge them.
    """
    if not config.eval.merges:
        return 0
    models = check_merges(config)
    folders = {model.id: local_folder(model) for model in models}
    weights = {id: [weights_digest(Path(folder)), settings_digest(Path(folder))] for id, folder in folders.items()}
    trial = _Trial(
        list(folders.values()),
        held_out_chunks(layout, "validation"),
        config.eval.model_copy(update={"split": "validation", "tasks": []}),
        any(model.trust_remote_code for model in models),
    )
    count = 0
    for method in config.eval.merges:
        output = Path(layout.merged(method))
        asked = [[merge_config(method, list(folders), scale) for scale in _scales(method)], weights, _SEED]
        digest = digest_of([asked, data_digest(trial.chunks, [])])
        if not done_marks.is_done(output, digest):
            figures = trial.make(method, output)
            done_marks.write_mark(output, digest, [path for path in output.iterdir() if path.is_file()], figures)
            count += 1
    return count


@dataclass(frozen=True)
class _Trial:
    """Makes a merge: at each of its scales, of which the best on `chunks` stays. folders: the target's first."""

    folders: list[str]
    chunks: Sequence[Chunk]
    settings: EvalConfig
    trust_remote_code: bool

    def make(self, method: MergeMethod, output: Path) -> dict[str, float]:
        """The merged model in `output`; returns bits per byte on `chunks` by scale (nothing where it has none)."""
        found: dict[str, float] = {}
        tried = output.with_name(f".{method}.tried")
        for scale in _scales(method):
            with limited_threads(self.settings.threads):
                _merge(merge_config(method, self.folders, scale), tried, self.trust_remote_code)
            if scale is not None:
                scored = evaluate_model(tried, self.chunks, self.settings, trust_remote_code=self.trust_remote_code)
                found[str(scale)] = scored["overall"]["bits_per_byte"]
            if scale is None or found[str(scale)] == min(found.values()):
                shutil.rmtree(output, ignore_errors=True)
                tried.rename(output)
        shutil.rmtree(tried, ignore_errors=True)
        return found


def _scales(method: MergeMethod) -> tuple[float | None, ...]:
    return RECIPES[method].scales or (None,)


def check_merges(config: FusionConfig) -> list[ModelConfig]:
    """The candidates that `eval.merges` merges, the target first.

    Raises:
        ConfigError: there are fewer or more than one of its methods takes.
    """
    models = mergeable(config.models)
    for method in config.eval.merges:
        recipe = RECIPES[method]
        if not recipe.least <= len(models) <= (recipe.most or len(models)):
            expected = f"at least {recipe.least} models" if recipe.most is None else f"{recipe.most} models"
            raise ConfigError(
                f"The candidates cannot be merged by '{method}'.",
                field=FIELD,
                found=f"with the target's architecture, sizes and tokenizer: {', '.join(model.id for model in models)}",
                expected=expected,
                remedy=f"leave out '{method}'" + (", or take karcher" if method == "slerp" and len(models) > 1 else ""),
            )
    return models


def mergeable(models: list[ModelConfig]) -> list[ModelConfig]:
    """The target and the candidates whose weights have its names and shapes, and whose ids mean the same tokens."""
    target, *others = models
    of_target = _signature(target)
    return [target, *(model for model in others if of_target is not None and _signature(model) == of_target)]


def merge_config(method: MergeMethod, models: Sequence[str], scale: float | None = None) -> dict[str, Any]:
    """The config that mergekit takes. models: folders, the target's first. scale: one of the recipe's `scales`."""
    recipe = RECIPES[method]
    # As mappings, because mergekit reads a string with `+` or `@` as more than a path.
    references = [{"model": {"path": model}} for model in models]
    # slerp wants its base among the models; in the others the base would be a task vector of zeros.
    merged = references[1:] if recipe.base and method != "slerp" else references
    config: dict[str, Any] = {
        "merge_method": method,
        "models": [{"model": model, "parameters": dict(recipe.each)} for model in merged],
        "parameters": dict(recipe.whole) | ({} if scale is None else {"lambda": scale}),
    }
    return config | ({"base_model": references[0]} if recipe.base else {})


def _merge(content: dict[str, Any], output: Path, trust_remote_code: bool) -> None:
    """Runs mergekit; the folder appears whole, with its recipe.

    Raises:
        DataError: mergekit could not: weights that it cannot read, an architecture that it does not know.
    """
    configs, merge = (import_extra(f"mergekit.{module}", "merge", FIELD) for module in ("config", "merge"))
    options = merge.MergeOptions(
        random_seed=_SEED, quiet=True, write_model_card=False, trust_remote_code=trust_remote_code
    )
    with atomic_folder(output) as folder:
        try:
            merge.run_merge(configs.MergeConfiguration.model_validate(content), str(folder), options)
        except Exception as error:  # whatever mergekit and what it calls may raise
            method, models = content["merge_method"], [model["model"]["model"]["path"] for model in content["models"]]
            raise DataError(
                f"mergekit could not merge the candidates by '{method}'.",
                field=FIELD,
                found=f"{type(error).__name__}: {error}",
                remedy=f"check the weights of {', '.join(models)}, or leave out '{method}'",
            ) from error
        (folder / RECIPE_FILE).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def _signature(model: ModelConfig) -> tuple[str, dict[str, tuple[int, ...]]] | None:
    """Tokenizer fingerprint, and name and shape of every weight; None for a candidate without weights."""
    if model.kind == "fake":
        return None
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(load_model_config(model), trust_remote_code=model.trust_remote_code)
    shapes = {name: tuple(weight.shape) for name, weight in empty.named_parameters()}
    return load_encoder(model.path, model.revision).fingerprint, shapes
