"""Small skills with checkable answers, in the manner of BIG-Bench Hard: generated text to learn from, and task files.

Each possible question belongs to exactly one pool (`pool_of`, a hash of the question), so that no question of a task
file, of validation or of test is ever seen in training, whatever amounts are asked for.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from typing import Literal, TypedDict

Pool = Literal["task", "validation", "test", "train"]


class Example(TypedDict):
    """One question and its answer, as in the `examples` of a BIG-Bench Hard file."""

    input: str
    target: str


BRACKETS = {"(": ")", "[": "]", "{": "}", "<": ">"}
NUMBER_WORDS = {"one": 1, "two": 2, "three": 3}
CATEGORIES = {
    "fruits": ["apple", "pear", "plum", "fig", "lemon", "melon"],
    "animals": ["cat", "dog", "cow", "pig", "goat", "duck"],
    "tools": ["saw", "drill", "hammer", "rake", "axe", "spade"],
}
# fmt: off
WORDS = [
    "air", "arm", "bag", "bar", "bed", "box", "bus", "cap", "car", "cup", "day", "ear", "egg", "end", "eye", "fan",
    "gas", "hat", "ice", "ink", "jam", "job", "key", "law", "leg", "map", "net", "oil", "pan", "pen", "pot", "rat",
    "sea", "sky", "sun", "tax", "tea", "toy", "van", "zoo",
]
# fmt: on
_BLOCKS_PER_DOCUMENT = 24
_ATTEMPTS_PER_EXAMPLE = 2000


def brackets(rng: random.Random) -> Example:
    """Open brackets, some of them closed again; the answer closes the rest."""
    symbols: list[str] = []
    still_open: list[str] = []
    for _ in range(rng.randrange(3, 8)):
        if still_open and (len(still_open) == 4 or rng.random() < 0.35):
            symbols.append(BRACKETS[still_open.pop()])
        else:
            still_open.append(rng.choice(list(BRACKETS)))
            symbols.append(still_open[-1])
    if not still_open:
        still_open.append(rng.choice(list(BRACKETS)))
        symbols.append(still_open[-1])
    return {"input": " ".join(symbols), "target": " ".join(BRACKETS[symbol] for symbol in reversed(still_open))}


def boolean(rng: random.Random) -> Example:
    """Two to four truth values joined by and / or, some negated, sometimes with one bracketed pair."""
    values = [rng.choice(["True", "False", "not True", "not False"]) for _ in range(rng.randrange(2, 5))]
    truths = [(value == "True") or (value == "not False") for value in values]
    operators = [rng.choice(["and", "or"]) for _ in values[1:]]
    if len(values) > 2 and rng.random() < 0.4:
        place = rng.randrange(len(operators))
        negated = rng.random() < 0.5
        inner = _and_or(truths[place : place + 2], [operators[place]])
        values[place : place + 2] = [f"{'not ' * negated}( {values[place]} {operators[place]} {values[place + 1]} )"]
        truths[place : place + 2] = [inner != negated]
        del operators[place]
    words = [values[0], *(f"{operator} {value}" for operator, value in zip(operators, values[1:], strict=True))]
    return {"input": f"{' '.join(words)} is", "target": str(_and_or(truths, operators))}


def _and_or(truths: list[bool], operators: list[str]) -> bool:
    """The value of truths joined by operators, where `and` binds tighter than `or`."""
    groups = [truths[0]]
    for operator, truth in zip(operators, truths[1:], strict=True):
        if operator == "and":
            groups[-1] = groups[-1] and truth
        else:
            groups.append(truth)
    return any(groups)


def arithmetic(rng: random.Random) -> Example:
    """A sum, difference or product of small numbers, or three one-digit numbers; no answer is negative."""
    form = rng.choice(["+", "-", "*", "three"])
    if form == "+":
        left, right = rng.randrange(21), rng.randrange(21)
        return {"input": f"{left} + {right} =", "target": str(left + right)}
    if form == "-":
        right, left = sorted((rng.randrange(21), rng.randrange(21)))
        return {"input": f"{left} - {right} =", "target": str(left - right)}
    if form == "*":
        left, right = rng.randrange(10), rng.randrange(10)
        return {"input": f"{left} * {right} =", "target": str(left * right)}
    first, second = rng.randrange(10), rng.randrange(10)
    if rng.random() < 0.5:
        third = rng.randrange(10)
        return {"input": f"{first} + {second} + {third} =", "target": str(first + second + third)}
    third = rng.randrange(min(first + second, 9) + 1)
    return {"input": f"{first} + {second} - {third} =", "target": str(first + second - third)}


def counting(rng: random.Random) -> Example:
    """Two to four kinds of things in different numbers; how many of them belong to the category asked for."""
    category = rng.choice(list(CATEGORIES))
    other = rng.choice([name for name in CATEGORIES if name != category])
    wanted = rng.sample(CATEGORIES[category], rng.randrange(1, 4))
    things = [*wanted, *rng.sample(CATEGORIES[other], rng.randrange(0, 2) if len(wanted) > 1 else 1)]
    rng.shuffle(things)
    numbers = {thing: rng.choice(list(NUMBER_WORDS)) for thing in things}
    listed = ", ".join(f"{number} {thing}{'s' * (number != 'one')}" for thing, number in numbers.items())
    total = sum(NUMBER_WORDS[numbers[thing]] for thing in wanted)
    return {"input": f"{listed}. How many {category}?", "target": str(total)}


def sorting(rng: random.Random) -> Example:
    """Three or four different short words, to be put into alphabetical order."""
    words = rng.sample(WORDS, rng.choice([3, 3, 4]))
    return {"input": f"Sort: {' '.join(words)}", "target": " ".join(sorted(words))}


GENERATORS: dict[str, Callable[[random.Random], Example]] = {
    "brackets": brackets,
    "boolean": boolean,
    "arithmetic": arithmetic,
    "counting": counting,
    "sorting": sorting,
}


def pool_of(question: str) -> Pool:
    """The only pool a question may be used in: task 10 %, validation 5 %, test 5 %, train 80 % of all questions."""
    place = int.from_bytes(hashlib.sha256(question.encode()).digest()[:4], "big") % 20
    return "task" if place < 2 else "validation" if place == 2 else "test" if place == 3 else "train"


def examples(skill: str, pool: Pool, seed: str) -> Iterator[Example]:
    """Endless examples of a skill out of one pool; the same question may come again."""
    rng = random.Random(f"{seed}/{skill}/{pool}")
    while True:
        for _ in range(_ATTEMPTS_PER_EXAMPLE):
            example = GENERATORS[skill](rng)
            if pool_of(example["input"]) == pool:
                yield example
                break
        else:
            raise AssertionError(f"skill {skill} has hardly a question in pool {pool}")


def task_examples(skill: str, count: int, seed: int) -> list[Example]:
    """`count` different held-out examples of a skill, or all there are where these are fewer."""
    found: dict[str, Example] = {}
    for attempt, example in enumerate(examples(skill, "task", str(seed))):
        found.setdefault(example["input"], example)
        if len(found) == count or attempt > 200 * count:
            break
    return list(found.values())


def block(example: Example) -> str:
    """How an example stands in training text; a task's prompt is this without the answer."""
    return f"Q: {example['input']}\nA: {example['target']}\n\n"


def documents(skill: str, pool: Pool, total_bytes: int, seed: str) -> Iterator[str]:
    """Documents of several question-and-answer blocks, together at least `total_bytes` long."""
    source = examples(skill, pool, seed)
    made = 0
    while made < total_bytes:
        text = "".join(block(next(source)) for _ in range(_BLOCKS_PER_DOCUMENT))
        made += len(text)
        yield text
