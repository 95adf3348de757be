"""What goes to the hub from a finished run: the recommended model, and shards as a data set. Contacts nobody."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fusionx.contract.errors import ConfigError, DataError
from fusionx.contract.files.sealed import FOLDER_SEAL, check_folder
from fusionx.contract.files.storage import is_local
from fusionx.contract.shards.dataset_card import CARD, combined_card
from fusionx.contract.shards.manifest import MANIFEST_NAME, Manifest, read_manifest, verify_part
from fusionx.pipelines.config import FusionConfig
from fusionx.pipelines.layout import Layout

Shards = Literal["aligned", "logits"]

_WHOLE_PATH = re.compile(
    r"(?<![\w./:<~-])(?:~|/(?:home|Users|root|tmp|mnt|media|data|var|opt|srv|scratch|work|gpfs|lustre))/[\w.@~/-]+"
)
"""What reads as a path of somebody's machine, in a card."""
_TEXTS = (".md", ".json", ".jinja", ".txt")
_MOST_TEXT = 1 << 20
"""Bytes; longer files are vocabularies."""
_MODEL_LEFTOVERS = ["*.safetensors", "*.safetensors.index.json"]
_SHARD_LEFTOVERS = ["part-*.parquet"]


@dataclass(frozen=True)
class Folder:
    """One folder of files. place: where in the repository, "" for its top. leftovers: patterns of files of an earlier
    push that are deleted there unless they are sent again."""

    path: Path
    names: list[str]
    place: str
    leftovers: list[str]


@dataclass(frozen=True)
class Upload:
    """What goes into one repository. card: text of its README.md, where no folder brings one."""

    repo_id: str
    kind: Literal["model", "dataset"]
    folders: list[Folder]
    card: str = ""
    message: str = field(default="", kw_only=True)

    def sizes(self) -> dict[str, int]:
        """Bytes by the name in the repository."""
        found = {CARD: len(self.card.encode())} if self.card else {}
        for folder in self.folders:
            for name in folder.names:
                found["/".join(filter(None, [folder.place, name]))] = (folder.path / name).stat().st_size
        return found


def planned_uploads(config: FusionConfig, layout: Layout, repo_id: str, shards: Shards | None) -> list[Upload]:
    """The model's upload, and that of the shards if there are to be any.

    Raises:
        ConfigError: `repo_id` is no OWNER/NAME, or the run lies in an object store.
        DataError: there is no recommended model, no finished shards, or something is damaged; or a card or setting
            names a path of this machine.
    """
    _check_repo_id(repo_id)
    if not is_local(layout.root):
        raise ConfigError(
            "What is sent to the hub must lie in a local folder.",
            field="output",
            found=layout.root,
            remedy="copy the run's model/ or shards to a local folder and set output to it",
        )
    private = _private_paths(config)
    uploads = [_model(config, layout, repo_id)]
    if shards is not None:
        uploads.append(_shards(config, layout, repo_id, shards))
    for upload in uploads:
        for folder in upload.folders:
            _refuse_local_paths((folder.path / name for name in folder.names), private)
    return uploads


def _check_repo_id(repo_id: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    problem = "" if repo_id.count("/") == 1 else "it has no owner" if "/" not in repo_id else "it has several slashes"
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        problem = problem or " ".join(str(error).split())
    if problem:
        raise ConfigError(
            "This cannot be a repository of the hub.",
            field="REPO_ID",
            found=f"{repo_id!r:.120}: {problem:.200}",
            expected="OWNER/NAME, of letters, digits, '-', '_' and '.'",
        )


def _model(config: FusionConfig, layout: Layout, repo_id: str) -> Upload:
    folder = Path(layout.model)
    if not (folder / FOLDER_SEAL).is_file():
        raise DataError(
            "The run has no recommended model.",
            file=folder,
            found=", ".join(sorted(file.name for file in folder.iterdir())[:8]) if folder.is_dir() else "no folder",
            remedy="run `fusionx eval` first: it chooses the model and puts it there",
        )
    check_folder(folder)
    names = sorted(file.name for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    names.remove(FOLDER_SEAL)  # for this project's own readers, and the hub has hashes of its own
    if CARD not in names:
        raise DataError("The model has no card.", file=folder / CARD, remedy="run `fusionx eval` again: it writes it")
    message = f"The recommended model of the run {config.name}"
    return Upload(repo_id, "model", [Folder(folder, names, "", _MODEL_LEFTOVERS)], message=message)


def _shards(config: FusionConfig, layout: Layout, repo_id: str, shards: Shards) -> Upload:
    target, method = config.target.id, config.align.methods[0]
    found: dict[str, tuple[str, Manifest, str]] = {}
    if shards == "aligned":
        tokens = layout.tokens(target)
        found["tokens"] = tokens, read_manifest(tokens, "tokens", "align"), "align"
    for model in config.models:
        folder = layout.logits(model.id) if shards == "logits" else layout.aligned(target, method, model.id)
        stage = "precompute" if shards == "logits" else "align"
        name = model.id if model.id != "tokens" else f"{model.id}-{shards}"
        found[name] = folder, read_manifest(folder, shards, stage), stage
    for place, manifest, stage in found.values():
        for entry in manifest.parts:
            verify_part(place, entry, stage)
    folders = [
        Folder(Path(place), [MANIFEST_NAME, *(part.name for part in manifest.parts)], name, _SHARD_LEFTOVERS)
        for name, (place, manifest, _) in found.items()
    ]
    card = combined_card({name: (manifest.kind, _files(name, manifest)) for name, (_, manifest, _) in found.items()})
    said = f"alignment {method}" if shards == "aligned" else "top-k logits"
    return Upload(repo_id, "dataset", folders, card, message=f"Shards of the run {config.name}, {said}")


def _files(place: str, manifest: Manifest) -> dict[str, list[str]]:
    splits = dict.fromkeys(part.split for part in manifest.parts)
    return {split: [f"{place}/{part.name}" for part in manifest.parts_of(split)] for split in splits}


def _private_paths(config: FusionConfig) -> list[str]:
    """Folders and files that the config names: of this machine, and nobody else's business."""
    named = [config.output, *(model.path for model in config.models), config.corpus.path or ""]
    local = [
        name
        for name in named
        if "/" in name and (name[0] in "/~." or Path(name).exists())  # else an id of the hub
    ]
    whole = [str(Path(name).expanduser().absolute()) for name in local]
    return sorted({*local, *whole, str(Path.home())} - {"/"}, key=len, reverse=True)


def _refuse_local_paths(files: Iterable[Path], private: Sequence[str]) -> None:
    for file in files:
        if file.suffix not in _TEXTS or file.stat().st_size > _MOST_TEXT:
            continue
        text = file.read_text(encoding="utf-8", errors="replace")
        path = next(_paths_in(text, private, any_path=file.name == CARD), None)
        if path is not None:
            raise DataError(
                "A file that would be sent names a path of this machine.",
                file=file,
                found=path,
                expected="names that mean something elsewhere",
                remedy="take the path out of the file; a card that `fusionx eval` writes has none",
            )


def _paths_in(text: str, private: Sequence[str], any_path: bool) -> Iterator[str]:
    """Paths that the config names, as whole words; with `any_path` whatever else reads as one."""
    for path in private:
        if re.search(rf"(?<![\w/.-]){re.escape(path)}(?![\w-])", text):
            yield path
    if any_path:
        yield from (match[0] for match in _WHOLE_PATH.finditer(text))
