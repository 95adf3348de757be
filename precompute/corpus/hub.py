"""One split of a hub data set, through `datasets`, which nothing else here needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fusionx.contract.errors import ConfigError
from fusionx.contract.files.storage import failure
from fusionx.contract.models.hub import is_offline
from fusionx.precompute.config import CorpusConfig, Split
from fusionx.precompute.corpus.rows import RowSource, fields_of


class HubSplit(RowSource):
    def __init__(self, config: CorpusConfig, split: Split) -> None:
        self._config = config
        self._place = f"{config.dataset} [{split}]"
        self._rows = _load_hub_split(config, split)
        known = (self._rows.info.splits or {}).get(split)
        self._count = (known and known.num_examples) or 0
        self.share = 0.0 if self._count else None

    def __iter__(self) -> Iterator[tuple[str, str]]:
        rows = iter(self._rows)
        number = 0
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except Exception as error:  # whatever `datasets`, its file readers and its HTTP client raise
                place = f"{self._place}, after row {number}"
                raise failure("A data set cannot be read to its end.", place, error) from None
            number += 1
            if self._count:
                self.share = min(number / self._count, 1.0)
            yield fields_of(row, self._config, f"{self._place}, row {number}")


def _load_hub_split(config: CorpusConfig, split: Split) -> Any:
    is_offline()  # `datasets` is told when it is imported, else it waits for a hub that does not answer
    try:
        import datasets
    except ImportError:
        raise ConfigError(
            "A hub data set needs the package 'datasets'.",
            field="corpus.dataset",
            found=config.dataset,
            remedy="install datasets, or give a folder as corpus.path",
        ) from None
    try:
        return datasets.load_dataset(
            str(config.dataset), config.name, split=split, revision=config.revision, streaming=config.streaming
        )
    except (FileNotFoundError, ConnectionError, ValueError, OSError) as error:
        raise ConfigError(
            "The data set cannot be loaded.",
            field="corpus.dataset",
            found=f"{config.dataset} [{split}]: {(str(error).strip() or type(error).__name__).splitlines()[0]}",
            remedy="check the id, the split names and the connection to the hub",
        ) from None
