"""Every generated answer is right by an independent checker, and no pool shares a question with another."""

from __future__ import annotations

import ast
import itertools
import operator
import re

import pytest

from fusionx.pipelines.demo import skills

ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


def check_brackets(question: str, answer: str) -> bool:
    text = (question + answer).replace(" ", "")
    while True:
        shorter = re.sub(r"\(\)|\[\]|\{\}|<>", "", text)
        if shorter == text:
            return text == ""
        text = shorter


def check_boolean(question: str, answer: str) -> bool:
    return str(truth(ast.parse(question.removesuffix(" is"), mode="eval").body)) == answer


def truth(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return bool(node.value)
    if isinstance(node, ast.UnaryOp):
        return not truth(node.operand)
    assert isinstance(node, ast.BoolOp)
    return (all if isinstance(node.op, ast.And) else any)([truth(value) for value in node.values])


def check_arithmetic(question: str, answer: str) -> bool:
    return str(number(ast.parse(question.removesuffix(" ="), mode="eval").body)) == answer and int(answer) >= 0


def number(node: ast.expr) -> int:
    if isinstance(node, ast.Constant):
        assert isinstance(node.value, int)
        return node.value
    assert isinstance(node, ast.BinOp)
    return ARITHMETIC[type(node.op)](number(node.left), number(node.right))


def check_counting(question: str, answer: str) -> bool:
    listed, category = question.removesuffix("?").split(". How many ")
    total = 0
    for item in listed.split(", "):
        count, thing = item.split(" ")
        if thing.removesuffix("s") in skills.CATEGORIES[category]:
            total += ["one", "two", "three"].index(count) + 1
    return str(total) == answer


def check_sorting(question: str, answer: str) -> bool:
    words = question.removeprefix("Sort: ").split(" ")
    return answer.split(" ") in [
        list(order) for order in itertools.permutations(words) if all(a < b for a, b in itertools.pairwise(order))
    ]


CHECKERS = {
    "brackets": check_brackets,
    "boolean": check_boolean,
    "arithmetic": check_arithmetic,
    "counting": check_counting,
    "sorting": check_sorting,
}


@pytest.mark.parametrize("skill", skills.GENERATORS)
def test_answers_are_right(skill: str) -> None:
    for pool in ("train", "task"):
        for example in itertools.islice(skills.examples(skill, pool, "check"), 500):
            assert CHECKERS[skill](example["input"], example["target"]), example


@pytest.mark.parametrize("skill", skills.GENERATORS)
def test_held_out_questions_are_in_no_training_text(skill: str) -> None:
    tasks = skills.task_examples(skill, 100, seed=0)
    assert len({example["input"] for example in tasks}) == len(tasks) == 100
    asked = {}
    for pool in ("train", "validation", "test"):
        text = "".join(skills.documents(skill, pool, 30_000, "0"))
        asked[pool] = {line.removeprefix("Q: ") for line in text.splitlines() if line.startswith("Q: ")}
        assert not asked[pool] & {example["input"] for example in tasks}
    assert not asked["train"] & asked["validation"]
    assert not asked["train"] & asked["test"]


def test_generation_depends_on_the_seed_alone() -> None:
    assert list(skills.documents("sorting", "train", 5000, "1")) == list(
        skills.documents("sorting", "train", 5000, "1")
    )
    assert skills.task_examples("counting", 20, 1) != skills.task_examples("counting", 20, 2)
