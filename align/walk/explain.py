"""Explains a walk over one text: how probable the source makes each next target token, and where the rest of its
probability goes. From what two models say to plain values; `align.walk.explained_lines` shows them to a person.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fusionx.align.explain import shown
from fusionx.align.positions import Status
from fusionx.align.vocabulary.edit_distance import text_of
from fusionx.align.walk.lexicon import Lexicon
from fusionx.align.walk.part import PartWalk, WalkedPart, spoken
from fusionx.align.walk.state import Said, Trail
from fusionx.contract.shards.codec import Distributions
from fusionx.contract.shards.parts import Ragged
from fusionx.contract.tokens.encoder import Encoder
from fusionx.contract.tokens.encoding import Encoding

_TRAIL_ROWS = 1 << 16
_ROUNDING = 1e-9
"""What a token gets and gives back leaves so much."""
_BEFORE = 20
"""Characters of the text so far."""


OF_TAIL = "(tail)"
"""In place of a source token: what is not among the entries."""


@dataclass(frozen=True)
class Reading:
    """What a model says about one text of T tokens. said: T distributions. token_nll: float32 [T], nats, of the next
    tokens."""

    encoding: Encoding
    said: Distributions
    token_nll: npt.NDArray[np.floating]


@dataclass(frozen=True)
class Movement:
    """Mass (of 1) that goes one way. source: the tokens written, "" where only what agreed so far is known.

    targets: who receives it, most first; several where the source leaves open which, so that the target's own
    distribution divides it. earlier: the source token began before the text so far ended.
    """

    source: str
    targets: list[tuple[str, float]]
    earlier: bool

    @property
    def mass(self) -> float:
        return sum(mass for _, mass in self.targets)


@dataclass(frozen=True)
class OwnPath:
    """The text's own source tokens, from where the target stands to the end of its next token.

    begun: what of the source's probability is on this path at its start: a share where the first token began earlier;
    more than 1 where some of it left for a longer target token than the last. probs: the exact probability of every
    token that begins here. stays: the share that does not go on to a longer target token. mass: of 1, the product.
    """

    source: str
    earlier: bool
    begun: float
    probs: list[float]
    stays: float
    mass: float


@dataclass(frozen=True)
class WalkedPosition:
    """One target position. label: its next token, with its probability by the source (NaN where nothing is known) and
    by the target itself. own: None where nothing is known. movements: the most mass first. unsaid: mass that no entry
    holds, the source's or the fill-in's, or no target token can take. cut: what the k entries kept leave out.
    """

    index: int
    before: str
    label: str
    probability: float
    target_probability: float
    status: Status
    own: OwnPath | None
    movements: list[Movement]
    unsaid: float
    cut: float


class _Place(NamedTuple):
    """Bytes so far, the last source position up to there, and the first that has reached the next token's end."""

    begin: int
    first: int
    last: int


def explain_walk(
    source: Encoder, target: Encoder, text: str, by_source: Reading, by_target: Reading, k: int
) -> list[WalkedPosition]:
    """Every target position of `text` but the last, which has no next token. k: entries to keep of each."""
    part = PartWalk(
        Lexicon(source, target),
        *_rows(by_target.encoding),
        *_rows(by_source.encoding),
        by_source.said,
        by_source.token_nll,
    )
    same = source.fingerprint == target.fingerprint
    walked, trail = _walked(part, None if same else spoken(by_target.said, target.vocab_size), k)
    starts = np.append(0, np.cumsum(walked.counts, dtype=np.int64))
    size, data = int(trail.size[0]), text.encode()
    written = _Written(source, by_source)
    positions = []
    for index, label in enumerate(by_target.encoding.ids[1:].tolist()):
        place = written.place(*by_target.encoding.ends[index : index + 2].tolist())
        rows = np.flatnonzero(trail.position[:size] == index)  # the last of them is that of the text's own path
        moved = float(trail.mass[rows].sum(dtype=np.float64))
        kept = float(walked.probs[starts[index] : starts[index + 1]].sum(dtype=np.float64))
        so_far = data[: place.begin].decode("utf-8", "backslashreplace")
        positions.append(
            WalkedPosition(
                index,
                ("…" if len(so_far) > _BEFORE else "") + repr(so_far[-_BEFORE:])[1:-1],
                shown(target.table, label),
                float(walked.label[index]),
                float(np.exp(-by_target.token_nll[index])),
                Status(int(walked.status[index])),
                written.own(place, trail, rows) if len(rows) else None,
                _movements(written, target, trail, rows[:-1], place),
                max(1.0 - moved, 0.0),
                max(moved - kept, 0.0),
            )
        )
    return positions


def _rows(encoding: Encoding) -> tuple[Ragged, Ragged]:
    offsets = np.array([0, len(encoding.ids)])
    return Ragged(encoding.ids, offsets), Ragged(encoding.ends, offsets)


def _walked(part: PartWalk, fill: Said | None, k: int) -> tuple[WalkedPart, Trail]:
    """The walk with its whole trail."""
    rows = _TRAIL_ROWS
    while True:
        trail = Trail.of(rows)
        walked = part.distributions(fill, k, trail)
        if trail.size[0] < rows:
            return walked, trail
        rows *= 4


class _Written:
    """The text as the source wrote it."""

    def __init__(self, source: Encoder, reading: Reading) -> None:
        self._table = source.table
        self._ids, self._ends = reading.encoding.ids.tolist(), reading.encoding.ends
        self._probs = np.exp(-reading.token_nll.astype(np.float64)).tolist()

    def place(self, begin: int, end: int) -> _Place:
        first, last = (int(at) - 1 for at in np.searchsorted(self._ends, (begin, end), side="right"))
        reached = last >= 0 and self._ends[last] == end
        return _Place(begin, first, last if reached else min(last + 1, len(self._ends) - 1))

    def begins_earlier(self, step: int, place: _Place) -> bool:
        """Whether what the source writes at `step` begins before the text so far ends."""
        return bool(self._ends[step] < place.begin)

    def own(self, place: _Place, trail: Trail, rows: npt.NDArray[np.int64]) -> OwnPath:
        """The text's own tokens from a place on; `rows` of the trail are the position's."""
        steps = range(place.first, place.last)
        tokens = " ".join(self._token(self._ids[step + 1], step, place) for step in steps)
        earlier = self.begins_earlier(place.first, place)
        probs = [self._probs[step] for step in steps][earlier:]
        mass = float(trail.mass[rows[-1]])
        left = rows[(trail.step[rows] == place.last) & (trail.source[rows] >= 0)]
        before = mass + float(trail.mass[left].sum(dtype=np.float64))
        scale = float(np.prod(probs))
        return OwnPath(tokens, earlier, before / scale if scale else 0.0, probs, mass / before if before else 1.0, mass)

    def otherwise(self, token: int, step: int, place: _Place) -> str:
        """The own tokens before `step`, and another one there."""
        own = [self._token(self._ids[before + 1], before, place) for before in range(place.first, step)]
        return " ".join([*own, self._token(token, step, place)])

    def _token(self, token: int, step: int, place: _Place) -> str:
        """A token, with a bar where the target stands in it."""
        if not self.begins_earlier(step, place):
            return shown(self._table, token)
        piece, own = self._table.filled_bytes[token], self._table.filled_bytes[self._ids[step + 1]]
        # A prefix space that the tokenizer adds is a byte of the token and none of the text.
        unwritten = len(own) - (self._ends[step + 1] - self._ends[step])
        spent = place.begin - self._ends[step] + unwritten
        halves = [text_of(piece[:spent]), text_of(piece[spent:])]
        return shown(self._table, token) if None in halves else repr("|".join(half or "" for half in halves))


def _movements(
    written: _Written, target: Encoder, trail: Trail, rows: npt.NDArray[np.int64], place: _Place
) -> list[Movement]:
    """Of one position's rows of the trail, but for its own path."""
    received: defaultdict[tuple[int, int], defaultdict[int, float]] = defaultdict(lambda: defaultdict(float))
    for row in rows.tolist():
        token = int(trail.source[row])
        step = int(trail.step[row]) if token >= 0 else place.first
        received[step, token][int(trail.target[row])] += float(trail.mass[row])
    movements = []
    for (step, token), masses in received.items():
        targets = sorted(masses.items(), key=lambda item: (-item[1], item[0]))
        named = [(shown(target.table, to), mass) for to, mass in targets if mass > _ROUNDING]
        if named:
            text = written.otherwise(token, step, place) if token >= 0 else ("", OF_TAIL)[token == -2]
            earlier = token == -1 or (token >= 0 and written.begins_earlier(step, place))
            movements.append(Movement(text, named, earlier))
    return sorted(movements, key=lambda movement: -movement.mass)
