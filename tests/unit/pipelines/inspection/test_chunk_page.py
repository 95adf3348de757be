"""A chunk in lines and as a page: what is said of it, and that nothing in it is more than text."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from fusionx.pipelines.inspection.chunk_lines import chunk_lines, percent
from fusionx.pipelines.inspection.chunk_page import chunk_page
from fusionx.pipelines.inspection.chunk_view import ChunkView, Entry, Opinion, Position, Said

ATTACKS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</div></main><iframe src='http://evil'>",
    "{{ 7 * 7 }}{% raw %}",
    "\x1b[2J\x1b]0;title\x07",
    "\u202egnp.exe\u2066",
]


def view_of(text: str, domain: str = "prose", token: str = "' b'") -> ChunkView:
    said = Said([Entry(3, "' a'", 0.5), Entry(4, token, 0.25)], 0.05, 0.2)
    knows = Opinion("coder", "'x'", True, said, Entry(4, token, 0.25), "exact_boundary", said, 0.25, 0.75)
    inside = Opinion("writer", "'y'", False, said, Entry(9, "'z'", 0.0001), "inside_token", said, None, 0.25)
    silent = Opinion("mute", None, False, None, None, "not_aligned", None, None, 0.0)
    place = Position(7, "'x'", token, 4, text, [knows, inside, silent])
    return ChunkView("part-00000.parquet", "train", 2, 5, 1, domain, text, 9, "walk", "fusionx", 0, "", [place])


def printed(view: ChunkView) -> str:
    return "\n".join("".join(piece for piece, _ in line) for line in chunk_lines(view))


def test_lines_say_what_each_candidate_says() -> None:
    found = printed(view_of("a text"))
    assert "Document 5, chunk 1" in found
    assert "weights in the teacher of fusionx, seed 0" in found
    assert re.search(r"7  'x' -> ' b'", found)
    assert re.search(r"coder +25.0%  weight 0.75  boundaries agree", found)
    assert re.search(r"writer +not stored  weight 0.25  inside a source token, after 'y'", found)
    assert re.search(r"mute +weight 0.00  not aligned: it has read no token yet", found)
    assert "said     ' a' 50.0%  ' b' 25.0%  (other entries 5.0%)  (tail 20.0%)" in found
    assert "… 'z' <0.1%" in found, "what is not among the entries shown follows them"
    assert "Positions 7 to 7 of 0 to 8" in found


def test_the_next_token_is_what_stands_out() -> None:
    labels = {piece.strip() for line in chunk_lines(view_of("t")) for piece, role in line if role == "label"}
    assert labels - {""} == {"' b'", "' b' 25.0%", "25.0%", "… 'z' <0.1%", "not stored"}


def test_json_is_the_whole_view() -> None:
    found = json.loads(view_of("a text").to_json())
    assert found["positions"][0]["opinions"][0]["said"]["entries"][1] == {"id": 4, "token": "' b'", "probability": 0.25}
    assert found["positions"][0]["opinions"][1]["own_next"]["probability"] == 0.0001
    assert found["positions"][0]["opinions"][2]["said"] is None


@pytest.mark.parametrize("method", [None, "fusionx"])
def test_without_weights_it_says_why(method: str | None) -> None:
    view = replace(view_of("t"), method=method, note="no weights: not trained")
    assert ("no weights: not trained" in printed(view)) == (method is None)
    assert ("no weights: not trained" in chunk_page(view)) == (method is None)


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]


def tags_of(page: str) -> _Tags:
    parser = _Tags()
    parser.feed(page)
    return parser


def test_the_page_needs_nothing_else_and_follows_the_readers_colours() -> None:
    page = chunk_page(view_of("a text"))
    found = tags_of(page)
    assert not found.tags & {"script", "link", "img", "iframe", "object", "form", "base"}
    assert not {name for name in found.attributes if name.startswith("on")}
    assert all(link.startswith("#") for link in found.links)
    assert "url(" not in page
    assert "@import" not in page
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page
    targets = set(re.findall(r'id="(p\d+)"', page))
    assert {link.removeprefix("#") for link in found.links} == targets == {"p7"}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_a_text_or_domain_holds_is_shown_and_does_nothing(attack: str) -> None:
    plain, hostile = chunk_page(view_of("a text")), chunk_page(view_of(attack, attack, attack))
    harmless, found = tags_of(plain), tags_of(hostile)
    assert found.tags == harmless.tags
    assert found.attributes == harmless.attributes
    assert "49" not in re.sub(r"<style>.*?</style>", "", hostile, flags=re.DOTALL)
    shown = printed(view_of(attack, attack))
    for character in "\x1b\x07\u202e\u2066":
        assert character not in shown
        assert character not in hostile


def test_no_share_is_rounded_to_nothing() -> None:
    assert [percent(share) for share in (1.0, 0.12345, 0.0005, 0.0001, 0.0)] == [
        "100.0%",
        "12.3%",
        "0.1%",
        "<0.1%",
        "0.0%",
    ]
