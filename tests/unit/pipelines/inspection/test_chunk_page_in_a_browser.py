"""A chunk's page in chromium: read with any eyes at any width, and what data says is only ever shown."""

from __future__ import annotations

from html import escape

import pytest
from attacks import ATTACKS, SCRIPTS
from browser import SCHEMES, WIDTHS, Browser

from fusionx.pipelines.inspection.chunk_page import chunk_page
from fusionx.pipelines.inspection.chunk_view import ChunkView, Entry, Opinion, Position, Said


def view_of(words: tuple[str, ...], places: int) -> ChunkView:
    """A position for every word, or as many as are asked for: each a name, a token and a text somewhere."""
    positions = []
    for index in range(places):
        one, two, three = (words[(index + shift) % len(words)] for shift in range(3))
        said = Said([Entry(3, one, 0.5), Entry(4, two, 0.25)], 0.05, 0.2)
        knows = Opinion(three, one, True, said, Entry(4, two, 0.25), "exact_boundary", said, 0.005 * (index + 1), 0.75)
        inside = Opinion(f"{two} 2", three, False, said, Entry(9, one, 0.0001), "inside_token", said, None, 0.25)
        silent = Opinion(f"{one} 3", None, False, None, None, "not_aligned", None, None, 0.0)
        positions.append(Position(index, one, two, 4, three, [knows, inside, silent]))
    text, domain = "\n".join(words), " ".join(words)
    return ChunkView(words[0], "train", 2, 5, 1, domain, text, places, "walk", "fusionx", 0, "", positions)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_a_chunk_can_be_read_by_everyone(width: int, scheme: str, browser: Browser) -> None:
    words = ("\n ", "a very long token without a single break in it".replace(" ", "_") * 4, "' the'")
    browser.open(chunk_page(view_of(words, 3)), width, scheme)
    assert browser.overflow() == 0
    assert browser.violations() == []
    assert browser.requests == []


def test_no_script_in_a_text_runs(browser: Browser) -> None:
    """Without the page's own policy, which is a second wall behind the first."""
    page = chunk_page(view_of(ATTACKS, len(ATTACKS)))
    browser.open(page, obeying=False)
    assert browser.scripts_that_ran() == 0
    assert browser.overflow() == 0
    assert browser.requests == []
    before, found, after = page.rpartition(escape(SCRIPTS[4]))
    assert found
    browser.open(before + SCRIPTS[4] + after, obeying=False)
    assert browser.scripts_that_ran() == 1
    browser.open(before + SCRIPTS[4] + after)
    assert browser.scripts_that_ran() == 0
