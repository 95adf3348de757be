"""Fusion-X: make one language model learn what several others know.

`fuse` does it in one call, `open_pipeline` stage by stage; the rest are the parts that a run's config is made of, and
what reads a run's files. All are loaded when they are first used: the import itself is light.

The packages lie at the repository's top, where a person looks for them; here are links to them, so that type checkers,
the wheel and Python see one import name, `fusionx`, that holds everything.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusionx.align.config import AlignConfig as AlignConfig
    from fusionx.contract.config import load_config as load_config
    from fusionx.contract.errors import ConfigError as ConfigError
    from fusionx.contract.errors import DataError as DataError
    from fusionx.contract.errors import FusionXError as FusionXError
    from fusionx.contract.errors import IncompleteError as IncompleteError
    from fusionx.contract.shards.rows import read_shards as read_shards
    from fusionx.eval.config import EvalConfig as EvalConfig
    from fusionx.pipelines.config import ExecutorConfig as ExecutorConfig
    from fusionx.pipelines.config import FusionConfig as FusionConfig
    from fusionx.pipelines.evaluation.run_result import RunResult as RunResult
    from fusionx.pipelines.fuse import fuse as fuse
    from fusionx.pipelines.pipeline import Pipeline as Pipeline
    from fusionx.pipelines.pipeline import open_pipeline as open_pipeline
    from fusionx.precompute.config import ChunkConfig as ChunkConfig
    from fusionx.precompute.config import CorpusConfig as CorpusConfig
    from fusionx.precompute.config import ModelConfig as ModelConfig
    from fusionx.precompute.config import PrecomputeConfig as PrecomputeConfig
    from fusionx.train.config import MethodConfig as MethodConfig
    from fusionx.train.config import OptimizerConfig as OptimizerConfig
    from fusionx.train.config import RunConfig as RunConfig
    from fusionx.train.config import TrainConfig as TrainConfig

_HOMES = {
    "fuse": "pipelines.fuse",
    "open_pipeline": "pipelines.pipeline",
    "Pipeline": "pipelines.pipeline",
    "RunResult": "pipelines.evaluation.run_result",
    "load_config": "contract.config",
    "read_shards": "contract.shards.rows",
    "FusionConfig": "pipelines.config",
    "ExecutorConfig": "pipelines.config",
    "CorpusConfig": "precompute.config",
    "ModelConfig": "precompute.config",
    "ChunkConfig": "precompute.config",
    "PrecomputeConfig": "precompute.config",
    "AlignConfig": "align.config",
    "TrainConfig": "train.config",
    "MethodConfig": "train.config",
    "OptimizerConfig": "train.config",
    "RunConfig": "train.config",
    "EvalConfig": "eval.config",
    "FusionXError": "contract.errors",
    "ConfigError": "contract.errors",
    "DataError": "contract.errors",
    "IncompleteError": "contract.errors",
}
"""What `import fusionx` offers, and the module where each of it lives."""

__all__ = [*_HOMES]

_HERE = Path(__file__).resolve().parent

if (_HERE / "contract").is_symlink():
    # In a checkout modules are loaded from where they really lie: tracebacks name, and breakpoints hit, these files.
    __path__.insert(0, str(_HERE.parent))


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fusionx' has no attribute '{name}'")
    return getattr(import_module(f"fusionx.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
