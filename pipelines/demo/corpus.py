"""Gathers the demo's corpus from the Python installation and splits it; leaves generated documents to `skills`.

Documents are pieces of real files, each labelled with its domain. They are cleaned of what is no text or no writing of
a person (not UTF-8, minified, encoded blobs), bounded in size, freed of near-duplicates, capped per package, and dealt
by the hash of their text into four disjoint pools: the continual corpus's `train` (small), `validation` and `test`,
and `experts`, what the demo's models are trained on. The result depends on the installation and the config only: files
are visited in the order of a hash of their names, never in the order of a directory.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import sys
import sysconfig
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from importlib.metadata import Distribution
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fusionx.contract.errors import DataError
from fusionx.pipelines.demo import skills
from fusionx.pipelines.demo.config import DemoCorpusConfig, skill_domain

SPLITS = ("train", "validation", "test")
_LONGEST_FILE = 2_000_000
_LONGEST_LINE = 500
_LONGEST_WORD = 120
_SHINGLE_WORDS = 6
_WORD = re.compile(r"\w+")
_DIGITS_OR_HEX = re.compile(r"[0-9a-fA-F]{24,}")
_SKIPPED_FOLDERS = {"__pycache__", "site-packages", "dist-packages"}
_LICENCE_NAME = re.compile(r"(licen[cs]e|copying|notice|copyright)", re.IGNORECASE)


@dataclass(frozen=True)
class SourceFile:
    """A file of the installation: `name` is the same wherever the installation lies."""

    name: str
    path: Path
    package: str

    @property
    def order(self) -> bytes:
        """Position in which files are visited: a hash of the name."""
        return hashlib.sha256(self.name.encode()).digest()


def installed_files() -> list[SourceFile]:
    """All files of the standard library and of the packages that `_own_packages` names."""
    found: dict[str, SourceFile] = {}
    root = Path(sysconfig.get_path("purelib"))
    for distribution in _own_packages():
        for file in distribution.files or []:
            relative, top = str(file), file.parts[0]
            if ".." not in file.parts and not _SKIPPED_FOLDERS & set(file.parts):
                package = top.removesuffix(".py").partition("-")[0]
                found[f"packages/{relative}"] = SourceFile(f"packages/{relative}", root / relative, package)
    stdlib = Path(sysconfig.get_path("stdlib"))
    for relative in _walk(stdlib):
        top = Path(relative).parts[0]
        if not top.startswith("config-"):
            found[f"stdlib/{relative}"] = SourceFile(f"stdlib/{relative}", stdlib / relative, f"stdlib/{top}")
    return sorted(found.values(), key=lambda file: file.order)


@cache
def _own_packages() -> list[Distribution]:
    """The distributions that Fusion-X and its `dev` extra require, directly or not, in order of their names.

    constraints.txt pins them, so that the same corpus comes out wherever the project is installed; what else lies in
    the environment (pip itself, a user's tools) gives no text.
    """
    found: dict[str, Distribution] = {}
    waiting = [("fusionx", frozenset({"dev"}))]
    seen = set(waiting)
    while waiting:
        name, extras = waiting.pop()
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # an optional one that is not installed
        found[name] = distribution
        for line in distribution.requires or []:
            needed = Requirement(line)
            wanted = any(needed.marker is None or needed.marker.evaluate({"extra": extra}) for extra in {"", *extras})
            step = (canonicalize_name(needed.name), frozenset(needed.extras))
            if wanted and step not in seen:
                seen.add(step)
                waiting.append(step)
    del found["fusionx"]
    return [found[name] for name in sorted(found)]


def _walk(root: Path) -> Iterator[str]:
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _SKIPPED_FOLDERS]
        for file in files:
            yield os.path.relpath(os.path.join(folder, file), root)


def _is_licence(name: str) -> bool:
    return bool(_LICENCE_NAME.match(Path(name).name)) and not name.endswith((".py", ".pyi", ".h"))


def _is_code(name: str) -> bool:
    return name.endswith(".py") and not name.startswith(("stdlib/encodings/", "stdlib/pydoc_data/"))


def _half(name: str) -> int:
    """0 or 1: Python files give either code or documentation, so that no docstring stands in both domains."""
    return hashlib.sha256(b"half/" + name.encode()).digest()[0] % 2


def _belongs(domain: str, name: str) -> bool:
    """Whether a file, by its name, gives documents of this domain."""
    lower = name.lower()
    match domain:
        case "python":
            return _is_code(name) and _half(name) == 0
        case "docs":
            return (_is_code(name) and _half(name) == 1) or lower == "stdlib/pydoc_data/topics.py"
        case "cpp":
            return lower.endswith((".h", ".hpp", ".cuh", ".c", ".cc", ".cpp", ".cu"))
        case "stubs":
            return lower.endswith(".pyi")
        case "readme":
            return lower.endswith((".dist-info/metadata", ".md", ".rst", "pkg-info")) and not _is_licence(name)
        case "licences":
            return _is_licence(name)
        case "structured":
            return lower.endswith((".json", ".yaml", ".yml", ".toml", ".xml")) and "direct_url" not in lower
        case "tables":
            return lower.startswith("stdlib/encodings/") and lower.endswith(".py")
        case "cmake":
            return lower.endswith((".cmake", "cmakelists.txt"))
    raise AssertionError(f"no such domain: {domain}")


def _as_written(text: str) -> Iterator[str]:
    yield text


def _docstrings(text: str) -> Iterator[str]:
    """The docstrings of a module; from `pydoc_data.topics` its long string constants."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    if "topics = {" in text[:400]:
        yield from (
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        )
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield docstring + "\n"


def _description(text: str) -> Iterator[str]:
    """A package's long description: what follows the headers of its METADATA; other files as they are."""
    headers, blank, description = text.partition("\n\n")
    yield description if blank and headers.startswith("Metadata-Version:") else text


_EXTRACT: dict[str, Callable[[str], Iterator[str]]] = {"docs": _docstrings, "readme": _description}


def _read(file: SourceFile) -> str | None:
    """A file's text with plain newlines; None for what is no UTF-8, has NUL bytes, is empty or far too long."""
    try:
        if not 0 < file.path.stat().st_size <= _LONGEST_FILE:
            return None
        text = file.path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return None if "\0" in text else text.replace("\r\n", "\n").replace("\r", "\n")


def is_writing(document: str) -> bool:
    """Whether a document looks written: no minified lines, no encoded blobs, few long digit or hexadecimal strings."""
    if any(len(line) > _LONGEST_LINE for line in document.splitlines()):
        return False
    if any(len(word) > _LONGEST_WORD for word in document.split()):
        return False
    return sum(map(len, _DIGITS_OR_HEX.findall(document))) * 20 < len(document)


def cut(text: str, at_least: int, at_most: int) -> Iterator[str]:
    """Cuts a text into documents of `at_least` to `at_most` UTF-8 bytes at line ends, before blank lines if possible.

    A line that alone is longer than `at_most`, and what remains shorter than `at_least`, is left out.
    """
    lines: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        length = len(line.encode())
        at_paragraph = not line.strip() and size >= at_most // 2
        if at_paragraph or size + length > at_most:
            if size >= at_least:
                yield "".join(lines)
            lines, size = [], 0
        if (lines or line.strip()) and length <= at_most:
            lines.append(line)
            size += length
    if size >= at_least:
        yield "".join(lines)


@dataclass
class Deduplicator:
    """Remembers texts exactly and their word 6-grams (a quarter of them, by hash) and tells what repeats them."""

    share: float
    texts: set[bytes] = field(default_factory=set)
    shingles: set[int] = field(default_factory=set)

    def is_new(self, document: str) -> bool:
        """Whether the document is new; if so, it is remembered."""
        digest = hashlib.sha256(document.encode()).digest()
        words = _WORD.findall(document.lower())
        grams = (" ".join(words[start : start + _SHINGLE_WORDS]) for start in range(len(words) - _SHINGLE_WORDS + 1))
        shingles = {gram for gram in (zlib.crc32(text.encode()) for text in grams) if gram % 4 == 0}
        if digest in self.texts or len(shingles & self.shingles) > self.share * len(shingles):
            return False
        self.texts.add(digest)
        self.shingles |= shingles
        return True


def gather(domain: str, files: list[SourceFile], config: DemoCorpusConfig) -> list[str]:
    """The documents of one gathered domain, in the order of the hash of their text."""
    limit = config.real_domains_kb[domain] * 1000  # type: ignore[index]
    of_package: Counter[str] = Counter()
    new = Deduplicator(config.near_duplicate_share)
    kept: list[str] = []
    extract = _EXTRACT.get(domain, _as_written)
    for file in files:
        if not _belongs(domain, file.name) or of_package[file.package] >= config.package_share * limit:
            continue
        for text in extract(_read(file) or ""):
            for document in cut(text, config.min_document_bytes, config.max_document_bytes):
                if of_package[file.package] >= config.package_share * limit or of_package.total() >= limit:
                    break
                if is_writing(document) and new.is_new(document):
                    kept.append(document)
                    of_package[file.package] += len(document.encode())
        if of_package.total() >= limit:
            break
    return sorted(kept, key=lambda document: hashlib.sha256(document.encode()).digest())


def deal(domain: str, documents: list[str], config: DemoCorpusConfig) -> dict[str, list[str]]:
    """Deals documents into validation, test, train (where the domain is not absent) and experts (the rest).

    Raises:
        DataError: there is too little text to fill the small splits and leave the experts at least as much.
    """
    train_kb = 0 if domain in config.absent_from_train else config.train_kb
    budgets = {"validation": config.validation_kb, "test": config.test_kb, "train": train_kb}
    have, need = sum(len(document.encode()) for document in documents), 2000 * sum(budgets.values())
    if have < need:
        raise DataError(
            f"This Python installation has too little text of domain '{domain}' for the demo's corpus.",
            field=f"corpus.real_domains_kb.{domain}",
            found=f"{have // 1000} KB after cleaning",
            expected=f"at least {need // 1000} KB",
            remedy="lower corpus.train_kb, validation_kb and test_kb, or remove the domain here and in every mix",
        )
    dealt: dict[str, list[str]] = {name: [] for name in (*SPLITS, "experts")}
    remaining = iter(documents)
    for split, budget in budgets.items():
        size = 0
        while size < budget * 1000:
            dealt[split].append(next(remaining))
            size += len(dealt[split][-1].encode())
    dealt["experts"] = list(remaining)
    return dealt


def _generate(skill: str, config: DemoCorpusConfig, seed: int) -> dict[str, list[str]]:
    """The documents of one skill for every pool; questions of validation, test and tasks are never in training."""
    train_kb = 0 if skill_domain(skill) in config.absent_from_train else config.train_kb
    budgets = {
        "validation": config.validation_kb,
        "test": config.test_kb,
        "train": train_kb,
        "experts": config.skills_kb[skill],  # type: ignore[index]
    }
    pools: dict[str, skills.Pool] = {"validation": "validation", "test": "test", "train": "train", "experts": "train"}
    return {
        name: list(skills.documents(skill, pools[name], budget * 1000, f"{seed}/{name}"))
        for name, budget in budgets.items()
    }


def make_corpus(config: DemoCorpusConfig, seed: int) -> dict[str, dict[str, list[str]]]:
    """Domain -> split (`train`, `validation`, `test`, `experts`) -> documents."""
    files = installed_files()
    corpus = {domain: deal(domain, gather(domain, files, config), config) for domain in config.real_domains_kb}
    return corpus | {skill_domain(skill): _generate(skill, config, seed) for skill in config.skills_kb}


def write_corpus(corpus: dict[str, dict[str, list[str]]], output: Path) -> list[Path]:
    """Writes `corpus/<split>.parquet` (all domains) and `experts/<domain>.parquet`, columns `text` and `domain`."""
    written = []
    for split in SPLITS:
        rows = [(text, domain) for domain, pools in corpus.items() for text in pools[split]]
        rows.sort(key=lambda row: hashlib.sha256(row[0].encode()).digest())
        written.append(_write_rows(rows, output / "corpus" / f"{split}.parquet"))
    for domain, pools in corpus.items():
        rows = [(text, domain) for text in pools["experts"]]
        written.append(_write_rows(rows, output / "experts" / f"{domain}.parquet"))
    return written


def _write_rows(rows: list[tuple[str, str]], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"text": [text for text, _ in rows], "domain": [domain for _, domain in rows]})
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(table, temporary, compression="zstd")
    os.replace(temporary, path)
    return path


def read_texts(path: Path) -> list[str]:
    """The `text` column of a split or of a domain's experts pool."""
    return pq.read_table(path, columns=["text"]).column("text").to_pylist()


def installation() -> list[str]:
    """Python's version and the distributions: what the gathered text depends on."""
    return [f"python-{sys.version.split()[0]}", *(f"{found.name}-{found.version}" for found in _own_packages())]
