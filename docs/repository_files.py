"""A hook of mkdocs: what lies outside docs/ has its place on the site, too.

README.md is the first page, CONTRIBUTING.md and CHANGELOG.md are pages, and another file of the repository that a page
links to (a config, a script) is copied. So the same links work in a checkout, in the repository's web view and on the
site, and a link that leads nowhere fails a strict build.
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""File of the repository -> page of the site."""

_COPIES = "repository"
_LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)\s#]+)")
_log = logging.getLogger("mkdocs.hooks")


def place(target: str, home: str) -> str | None:
    """Where on the site the file lies that a page of the repository's folder `home` links to; None: there is none."""
    path = posixpath.normpath(posixpath.join(home, target))
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"{_COPIES}/{path}" if not path.startswith("..") and (ROOT / path).is_file() else None


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    for file in list(files.documentation_pages()):
        for target in _LINK.findall(file.content_string):
            there = place(target, _home(file))
            if there is not None and there.startswith(f"{_COPIES}/") and there not in files.src_uris:
                source = ROOT / there.removeprefix(f"{_COPIES}/")
                files.append(File.generated(config, there, abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    def moved(link: re.Match[str]) -> str:
        there = place(link[0], _home(page.file))
        if there is None:
            _log.warning("%s links to '%s', and the repository has no such file", page.file.src_uri, link[0])
            return link[0]
        return posixpath.relpath(there, posixpath.dirname(page.file.src_uri))

    return _LINK.sub(moved, markdown)


def _home(file: File) -> str:
    """The folder of the repository in which the page's links begin."""
    return "" if file.src_uri in PAGES.values() else posixpath.join("docs", posixpath.dirname(file.src_uri))
