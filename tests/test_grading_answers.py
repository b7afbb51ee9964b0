"Each wrong number that a grader knows gets its reason, and none of them is near the right one."
import pytest
from graders import check_report

from course_lib.grading import EXERCISES, grade, load_topics
from course_lib.grading.answers import _right_entry, _right_number

load_topics()


def numbers_of(name):
    "(key or None, arguments of `_right_number`) for each number that an exercise asks for"
    for p in EXERCISES[name].properties:
        f = getattr(p.test, 'func', None)
        if f is _right_number:
            yield None, p.test.args
        elif f is _right_entry and getattr(p.test.args[1], 'func', None) is _right_number:
            yield p.test.args[0], p.test.args[1].args


NUMBERS = {name: dict(numbers_of(name)) for name in EXERCISES}
NUMBERS = {name: numbers for name, numbers in NUMBERS.items() if numbers}


def test_there_are_many():
    assert len(NUMBERS) >= 32


@pytest.mark.parametrize('name', NUMBERS)
def test_known_wrong_numbers(name, capsys):
    right = {key: truth for key, (truth, *_) in NUMBERS[name].items()}

    def answer(key, value):
        return value if key is None else right | {key: value}

    for key, (truth, wrong, _) in NUMBERS[name].items():
        assert grade(name, answer(key, truth)) and wrong
        for value, why, *_ in wrong:
            capsys.readouterr()
            assert not grade(name, answer(key, value)), (key, value)
            check_report(capsys.readouterr().out, why)
        assert not grade(name, answer(key, 12345.678))


@pytest.mark.parametrize('name', NUMBERS)
def test_half_filled(name, capsys):
    "What is filled in is graded; what is not is no mistake, and all of it blank is not begun."
    right = {key: truth for key, (truth, *_) in NUMBERS[name].items() if key is not None}
    if len(right) < 2:
        return
    for key in right:
        assert not grade(name, right | {key: ...})
        out = capsys.readouterr().out
        check_report(out, f'– {key}: not filled in yet')
        assert out.count('✓') == len(right)-1 and '✗' not in out, out
    assert not grade(name, dict.fromkeys(right, ...)) and 'not begun' in capsys.readouterr().out
