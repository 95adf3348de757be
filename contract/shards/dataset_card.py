"""The card beside a folder's parts, by which `datasets.load_dataset(folder)` finds its splits and columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import yaml

from fusionx.contract.shards.schema import SCHEMAS

_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
"""The same text, and for many parts six times as fast where libyaml is there."""

CARD = "README.md"
_SAID = {
    "chunks": "A corpus, cut into chunks",
    "logits": "Next-token distributions of one language model over a corpus",
    "tokens": "The target's tokens of a corpus",
    "generated": "Text that a language model wrote, from beginnings of a corpus",
    "aligned": "A source's next-token distributions, over the target's tokens",
}


def dataset_card(kind: str, files: Mapping[str, Sequence[str]]) -> str:
    """Markdown with the front matter that `datasets` reads.

    Columns are named because the parts' own types may differ: a packed column is as wide as a part's values need.

    Args:
        files: split -> names of its parts.
    """
    return combined_card({"default": (kind, files)})


def combined_card(folders: Mapping[str, tuple[str, Mapping[str, Sequence[str]]]]) -> str:
    """The card of several folders, each of which is a configuration of one data set.

    Args:
        folders: name of the configuration -> kind of its parts, and split -> their paths below the card.
    """
    described = [
        {
            "config_name": name,
            "features": [{"name": field.name, **_feature(field.type)} for field in SCHEMAS[kind]],
        }
        for name, (kind, _) in folders.items()
    ]
    front_matter = {
        "configs": [
            {
                "config_name": name,
                "data_files": [{"split": split, "path": list(names)} for split, names in files.items()],
            }
            for name, (_, files) in folders.items()
        ],
        "dataset_info": described if len(described) > 1 else described[0],
        "tags": ["fusion-x"],
    }
    kinds = dict.fromkeys(kind for kind, _ in folders.values())
    packed = any(pa.types.is_list(field.type) for kind in kinds for field in SCHEMAS[kind])
    told = (
        "\nIts list columns are packed. `fusionx.read_shards(folder, split)` gives every row as plain arrays.\n"
        if packed
        else ""
    )
    title = ". ".join(_SAID[kind] for kind in kinds)
    header = yaml.dump(front_matter, Dumper=_DUMPER, sort_keys=False)
    return f"---\n{header}---\n\n# {title}\n\nMade by Fusion-X.\n{told}"


def _feature(kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_list(kind):
        binary = pa.types.is_fixed_size_binary(kind.value_type)
        return {"list": "binary" if binary else str(kind.value_type)}
    return {"dtype": {"double": "float64"}.get(str(kind), str(kind))}
