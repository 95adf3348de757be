"""Draws docs/walk.svg: a real walk over two words, between two small tokenizers. `make docs` runs it.

What source and target say is set by hand (`SOURCE_SAYS`, `TARGET_SAYS`); where it goes is what `align.walk` does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from fusionx.align.walk.explain import Reading, WalkedPosition, explain_walk
from fusionx.contract.shards.codec import Distributions
from fusionx.contract.tokens.encoder import Encoder
from fusionx.contract.tokens.token_table import token_table

ROOT = Path(__file__).resolve().parent.parent
TEXT = "sunflower seeds"
SOURCE_WORDS = ("sun", "flower", "shine", "set", "moon", "the", " see", " seed", " seeds", " seek", " field")
TARGET_WORDS = ("sun", "sunflower", "sunflowers", "sunshine", "moon", "the", "there", " see", "ds", " field")
Dist = dict[str, float]
SOURCE_SAYS: list[Dist] = [
    {"sun": 0.5, "moon": 0.2, "the": 0.15},
    {"flower": 0.6, "shine": 0.28, "set": 0.08},
    {" seeds": 0.48, "s": 0.2, " seed": 0.096, " see": 0.08, " seek": 0.064, " field": 0.032},
]
TARGET_SAYS: list[Dist] = [
    {"the": 0.2, "sunflower": 0.1, "there": 0.1},
    {" see": 0.3},
    {"ds": 0.6, "n": 0.3},
]
"""At every position of the text; what lacks to 1 is the tail."""
KEPT = 16
STORIES = (
    (
        "Two source tokens for one",
        "The text's own path is a product. Where it ends, what makes",
        "a longer token of it leaves: {path}. The source",
        "may mean the or there: the target's own distribution decides.",
    ),
    (
        "One source token for two",
        "All that begins as the target's next token does counts for it.",
        "What left for sunflowers at 1 is gone, and the others are",
        "shares of what stayed: {path} / {stayed} = {mass}.",
    ),
    (
        "Inside a source token",
        "Nothing new is read: what began alike goes on, scaled to 1.",
        "·see says no more than it did: the target fills in. Of the",
        "tail as much counts as of the source's vocabulary begins so.",
    ),
)
WIDTH, MARGIN = 1240, 16
STRIP_LEFT, CELL, BOX = 206, 64, 34
PANEL_TOP, PANEL = 214, (WIDTH - 4 * MARGIN) / 3
NODES_TOP, UNIT, GAP, BAR = PANEL_TOP + 116, 250, 9, 9
"""UNIT: the height of mass 1."""
LEFT, RIGHT = 126, PANEL - 122
"""Where a panel's bars stand."""
STYLE = (
    "text{font-family:system-ui,sans-serif;font-size:12.5px;fill:#1a1a2e}.title{font-size:15px;font-weight:700}"
    ".char{font-family:ui-monospace,monospace;font-size:20px}.token{font-size:15px;font-weight:600}"
    ".says,.spent{fill:#5a6272}.end{text-anchor:end}.middle{text-anchor:middle}.strong{font-weight:700}"
    ".ground{fill:#fff}.box{fill:#eef2f8;stroke:#8aa0c0}.path{stroke:#2563eb;stroke-width:2}"
    ".own{fill:#2563eb}.leaves{fill:#8aa0c0}.target{fill:#e08700}.tail{fill:url(#tail)}.stripe{stroke:#8a93a3}"
    ".band{opacity:.45}.band.own{opacity:.7}"
    ".mark{fill:#1a1a2e}.digit{fill:#fff;font-weight:700}.cut{stroke:#1a1a2e;stroke-dasharray:3 4}"
    "@media (prefers-color-scheme:dark){text{fill:#e6e9f0}.says,.spent{fill:#a3acbd}.ground{fill:#12161f}"
    ".box{fill:#1e2634;stroke:#566b90}.path{stroke:#5b9bff}.own{fill:#5b9bff}.leaves{fill:#7388aa}.target{fill:#f2a33a}"
    ".mark{fill:#e6e9f0}.digit{fill:#12161f}.cut{stroke:#e6e9f0}.band{opacity:.6}}"
)


class Flow(NamedTuple):
    """What leaves one node on the left: `masses` by node on the right."""

    label: str
    role: str
    masses: dict[str, float]


def encoder(words: Sequence[str]) -> Encoder:
    """A tokenizer that takes the fewest tokens, of `words` and the single characters."""
    characters = sorted(set("".join((*SOURCE_WORDS, *TARGET_WORDS))))
    scores = dict.fromkeys(["<s>", "\n", *characters], -9.0) | dict.fromkeys(words, -1.0)
    backend = Tokenizer(models.Unigram(list(scores.items()), unk_id=0))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
    return Encoder.of(tokenizer, token_table(tokenizer), add_bos=True)


def reading(of: Encoder, dists: Sequence[Dist]) -> Reading:
    """`dists` as what a model says of the text; after its last token it says nothing."""
    (encoding,) = of.encode([TEXT])
    vocab = of.tokenizer.get_vocab()
    said = [*({vocab[piece]: prob for piece, prob in dist.items()} for dist in dists), {}]
    entries = [entry for dist in said for entry in dist.items()]
    stored = Distributions(
        np.array([token for token, _ in entries], np.int32),
        np.log([prob for _, prob in entries]).astype(np.float16),
        np.array([len(dist) for dist in said], np.uint16),
        np.array([1 - sum(dist.values()) for dist in said], np.float16),
    )
    nll = [-np.log(dist[token]) for dist, token in zip(said, encoding.ids[1:].tolist(), strict=False)]
    return Reading(encoding, stored, np.array([*nll, 0.0], np.float32))


def flows_of(position: WalkedPosition) -> list[Flow]:
    """Its own path first, the tail last; masses rounded, so that the picture has no last bits of a machine."""
    assert position.own is not None
    flows = [Flow(_plain(position.own.source), "own", {_plain(position.label): round(position.own.mass, 3)})]
    for move in position.movements:
        asked = len(move.targets) > 1 or not move.source
        masses = {_plain(to): round(mass, 3) for to, mass in move.targets}
        flows.append(Flow(_plain(move.source) or "no more said", "target" if asked else "leaves", masses))
    return [*flows, Flow("tail", "tail", {"tail": round(position.unsaid, 3)})]


def picture() -> str:
    """The SVG; the same walk gives the same text."""
    source, target = encoder(SOURCE_WORDS), encoder(TARGET_WORDS)
    by_source, by_target = reading(source, SOURCE_SAYS), reading(target, TARGET_SAYS)
    positions = explain_walk(source, target, TEXT, by_source, by_target, KEPT)
    drawn = _strip(by_source, by_target.encoding.ends.tolist(), positions)
    bottom = 0.0
    for number, (position, story) in enumerate(zip(positions, STORIES, strict=True)):
        lines, low = _panel(MARGIN + number * (PANEL + MARGIN), number, flows_of(position), _told(story, position))
        drawn += lines
        bottom = max(bottom, low)
    drawn += _legend(bottom + 26)
    height = bottom + 54
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img">',
            f"<title>The walk over “{TEXT}”: where a source's probability goes at three positions</title>",
            f'<style>{STYLE}</style><defs><pattern id="tail" width="6" height="6" patternUnits="userSpaceOnUse" '
            'patternTransform="rotate(45)"><line class="stripe" x1="1" y1="0" x2="1" y2="6" stroke-width="2"/>'
            "</pattern></defs>",
            f'<rect class="ground" width="{WIDTH}" height="{height:.0f}" rx="8"/>',
            *drawn,
            "</svg>",
            "",
        ]
    )


def _told(story: Sequence[str], position: WalkedPosition) -> list[str]:
    """A story with the position's own figures."""
    own = position.own
    assert own is not None
    stays = [own.stays] if own.stays < 0.999 else []
    path = " × ".join(map(_percent, [*own.probs, *stays]))
    return [line.format(path=path, stayed=_percent(1 / own.begun), mass=_percent(own.mass)) for line in story]


def _strip(by_source: Reading, target_ends: list[int], positions: Sequence[WalkedPosition]) -> list[str]:
    """The text between both tokenizations of it, and where the target's positions are."""
    rows = {"source": 40, "text": 106, "target": 132}
    drawn = [
        _text(STRIP_LEFT - 28, rows["source"] + 22, "the source's tokens", "end strong"),
        _text(STRIP_LEFT - 28, rows["text"] + 2, "the text", "end strong"),
        _text(STRIP_LEFT - 28, rows["target"] + 22, "the target's tokens", "end strong"),
    ]
    drawn += [_text(STRIP_LEFT + (at + 0.5) * CELL, 110, _plain(char), "char middle") for at, char in enumerate(TEXT)]
    own = np.exp(-by_source.token_nll[:-1]).tolist()
    labels = [position.probability for position in positions]
    sides = (
        (by_source.encoding.ends.tolist(), own, rows["source"], -8, "box path"),
        (target_ends, labels, rows["target"], BOX + 18, "box"),
    )
    for ends, probs, top, below, kind in sides:
        for (begin, end), prob in zip(pairwise(ends), probs, strict=True):
            left, width = STRIP_LEFT + begin * CELL + 2, (end - begin) * CELL - 4
            drawn.append(f'<rect class="{kind}" x="{left}" y="{top}" width="{width}" height="{BOX}" rx="6"/>')
            drawn.append(_text(left + width / 2, top + 22, _plain(TEXT[begin:end]), "token middle"))
            drawn.append(_text(left + width / 2, top + below, _percent(prob), "says middle"))
    for number, begin in enumerate(target_ends[:-1]):
        x = STRIP_LEFT + begin * CELL
        drawn.append(f'<line class="cut" x1="{x}" y1="{rows["source"] - 6}" x2="{x}" y2="{rows["target"] + BOX + 6}"/>')
        drawn += _mark(x, rows["text"] - 3, number)
    return drawn


def _panel(x: float, number: int, flows: list[Flow], story: Sequence[str]) -> tuple[list[str], float]:
    """One position: from what the source may write to the target's next token; and how far down it reaches."""
    title, *lines = story
    drawn = [*_mark(x + 10, PANEL_TOP + 12, number), _text(x + 28, PANEL_TOP + 17, title, "title")]
    drawn += [_text(x, PANEL_TOP + 40 + 17 * row, line, "says") for row, line in enumerate(lines)]
    drawn.append(_text(x + LEFT - 6, NODES_TOP - 12, "the source's tokens", "says end"))
    drawn.append(_text(x + RIGHT + BAR + 6, NODES_TOP - 12, "the target's", "says"))
    totals: dict[str, float] = {}
    for flow in flows:
        for to, mass in flow.masses.items():
            totals[to] = totals.get(to, 0.0) + mass
    totals["tail"] = totals.pop("tail")
    lefts, rights = _tops([sum(flow.masses.values()) for flow in flows]), _tops(list(totals.values()))
    free = dict(zip(totals, rights, strict=False))
    for flow, top in zip(flows, lefts, strict=False):
        size, begin = sum(flow.masses.values()), top
        for to, mass in flow.masses.items():
            drawn.append(_band(x, begin, free[to], mass * UNIT, flow.role))
            begin, free[to] = begin + mass * UNIT, free[to] + mass * UNIT
        drawn.append(_bar(x + LEFT, top, size, flow.role))
        middle = top + size * UNIT / 2 + 4
        drawn.append(_named(x + LEFT - 6, middle, flow.label, size, "end strong" if flow.role == "own" else "end"))
    for place, ((to, mass), top) in enumerate(zip(totals.items(), rights, strict=False)):
        role = "own" if place == 0 else "tail" if to == "tail" else "leaves"
        drawn.append(_bar(x + RIGHT, top, mass, role))
        kind = "strong" if place == 0 else ""
        drawn.append(_named(x + RIGHT + BAR + 6, top + mass * UNIT / 2 + 4, to, mass, kind))
    return drawn, max(lefts[-1], rights[-1])


def _tops(masses: list[float]) -> list[float]:
    """Where nodes of these masses begin, one below the other, and where the next would."""
    return list(accumulate((mass * UNIT + GAP for mass in masses), initial=float(NODES_TOP)))


def _legend(y: float) -> list[str]:
    says = {
        "own": "the text's own source tokens, exact",
        "leaves": "other tokens of the source",
        "target": "divided or filled in by what the target expects",
        "tail": "the tail: not stored",
    }
    drawn, x = [], float(MARGIN)
    for role, words in says.items():
        drawn.append(f'<rect class="band {role}" x="{x:.0f}" y="{y - 11:.0f}" width="22" height="13"/>')
        drawn.append(_text(x + 30, y, words, "says"))
        x += 58 + 7 * len(words)
    return drawn


def _band(x: float, left: float, right: float, height: float, role: str) -> str:
    begin, end = f"{x + LEFT + BAR:.0f}", f"{x + RIGHT:.0f}"
    middle = f"{x + (LEFT + BAR + RIGHT) / 2:.0f}"
    there = f"M{begin} {left:.1f}C{middle} {left:.1f} {middle} {right:.1f} {end} {right:.1f}"
    left, right = left + height, right + height
    back = f"V{right:.1f}C{middle} {right:.1f} {middle} {left:.1f} {begin} {left:.1f}Z"
    return f'<path class="band {role}" d="{there}{back}"/>'


def _bar(x: float, top: float, mass: float, role: str) -> str:
    return f'<rect class="{role}" x="{x:.0f}" y="{top:.1f}" width="{BAR}" height="{mass * UNIT:.1f}"/>'


def _named(x: float, y: float, label: str, mass: float, kind: str) -> str:
    """A node's name, what was consumed of it before in grey, and its mass."""
    spent, bar, rest = label.rpartition("|")
    before = f'<tspan class="spent">{escape(spent)}{bar}</tspan>' if bar else ""
    said = f'<tspan class="says">{_percent(mass)}</tspan>'
    return f'<text class="{kind}" x="{x:.0f}" y="{y:.1f}">{before}{escape(rest)}  {said}</text>'


def _mark(x: float, y: float, number: int) -> list[str]:
    circle = f'<circle class="mark" cx="{x:.0f}" cy="{y:.0f}" r="10"/>'
    return [circle, _text(x, y + 4.5, str(number + 1), "digit middle")]


def _text(x: float, y: float, words: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.0f}" y="{y:.1f}">{escape(words)}</text>'


def _plain(tokens: str) -> str:
    """Tokens as `align.explain.shown` has them, without quotes; spaces in them as dots."""
    quoted = re.findall(r"'([^']*)'", tokens)
    return " ".join(token.replace(" ", "·") for token in quoted) if quoted else tokens.replace(" ", "·")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


if __name__ == "__main__":
    (ROOT / "docs" / "walk.svg").write_text(picture(), encoding="utf-8")
