"A check is graded by what it does on a defect and on right versions."
import pytest
from graders import check_report

from course_lib.grading import grade
from course_lib.grading.debugging import BUGS


def too_strict(candidate):
    raise AssertionError('no')


@pytest.mark.parametrize('name', BUGS)
def test_bug(name, capsys):
    bug, right, test, _ = BUGS[name]
    assert grade(name, (test, right))
    assert not grade(name, (test, bug))                     # not repaired
    assert not grade(name, (lambda o: 0, right))            # sees nothing
    capsys.readouterr()
    for check, said in ((lambda o: 0, 'silent on the defect'), (too_strict, 'asks for more than the defect')):
        assert not grade(name, (check, right))
        check_report(capsys.readouterr().out, said)
    assert not grade(name, (test, ...)) and 'not begun' in capsys.readouterr().out
