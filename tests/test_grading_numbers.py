"""Each number that a grader knows to be wrong is answered with its reason: the table `known_numbers.txt`, read by eye.

A line `exercise answer = right`, then a line `wrong: reason` for each. A number or a reason that changes in a grader
changes here, too.
"""

import functools
from pathlib import Path

import pytest

from course_lib.grading import EXERCISES, answers, grade, load_topics

load_topics()


def table():
    "{(exercise, key or None): (right, {wrong: reason})}"
    rows = {}
    for line in (Path(__file__).parent / 'known_numbers.txt').read_text(encoding='utf-8').splitlines():
        if line.startswith(' '):
            value, reason = line.strip().split(': ', 1)
            wrong[float(value)] = reason
        else:
            name, key, _, right = line.split()
            wrong = {}
            rows[name, None if key == '-' else key] = float(right), wrong
    return rows


def known():
    "The same, of the graders"
    for name, exercise in EXERCISES.items():
        for prop in exercise.properties:
            test, key = prop.test, None
            if isinstance(test, functools.partial) and test.func is answers._right_entry:
                key, test = test.args
            if isinstance(test, functools.partial) and test.func is answers._right_number:
                yield (name, key), test.args[1]


TABLE = table()
CASES = [(*at, value, reason) for at, (_, wrong) in TABLE.items() for value, reason in wrong.items()]


def test_each_is_in_the_table():
    assert {at: len(wrong) for at, wrong in known()} == {at: len(wrong) for at, (_, wrong) in TABLE.items()}


@pytest.mark.parametrize('name, key, value, reason', CASES)
def test_reason(name, key, value, reason, capsys):
    "The others are right, and nothing is said of them"
    rest = {k: right for (n, k), (right, _) in TABLE.items() if n == name and k}
    assert not grade(name, rest | {key: value} if key else value)
    out = ' '.join(capsys.readouterr().out.split())
    assert ' '.join(reason.split()) in out.replace('│ ', ''), out


@pytest.mark.parametrize('name', sorted({name for name, _ in TABLE}))
def test_right_numbers(name, capsys):
    "An exercise that asks for more than numbers says so, and nothing else"
    right = {key: value for (n, key), (value, _) in TABLE.items() if n == name}
    more = len(EXERCISES[name].properties) > len(right)
    passed = grade(name, right if None not in right else right[None])
    assert passed or more and 'missing' in capsys.readouterr().out
