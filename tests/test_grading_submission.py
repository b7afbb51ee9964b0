"A submission may do anything."
import signal
import time

import pytest
import torch
from graders import SCHEDULE, check_report, submission

from course_lib.grading import grade
from course_lib.grading.submission import TimeUp, run_quietly


def forever(*_, **__):
    while True:
        pass


def forgiving(*_, **__):
    while True:
        try:
            forever()
        except Exception:
            pass


@pytest.mark.parametrize('f', [forever, forgiving])
def test_endless(f, capsys):
    assert not grade('schedule', f, seconds=.5)
    assert 'does not end' in capsys.readouterr().out


def test_sleeping(capsys):
    assert not grade('schedule', lambda opt, steps: time.sleep(1000), seconds=.3)
    assert 'does not end' in capsys.readouterr().out


def test_signals_are_put_back():
    "The handlers that were set before, and an alarm that was, go on; a late press of Stop hits nobody."
    before = signal.getsignal(signal.SIGINT)
    if hasattr(signal, 'setitimer'):
        left, every = signal.getitimer(signal.ITIMER_REAL)
        signal.setitimer(signal.ITIMER_REAL, left or 500, every)
    error, _ = run_quietly(forever, .1)
    assert isinstance(error, TimeUp) and signal.getsignal(signal.SIGINT) is before
    time.sleep(.2)
    if hasattr(signal, 'setitimer'):
        after, _ = signal.getitimer(signal.ITIMER_REAL)
        signal.setitimer(signal.ITIMER_REAL, after if left else 0, every)
        assert 0 < after <= (left or 500)


def test_stop_is_the_users_own():
    "Who presses Stop while a submission runs stops the cell, and not only the submission."
    def interrupted():
        signal.raise_signal(signal.SIGINT)
        forever()
    with pytest.raises(KeyboardInterrupt):
        run_quietly(interrupted, 60.)


def test_ends_just_in_time():
    "Submissions that end about when their time is over: each is done or stopped, nothing rings later."
    for i in range(40):
        end = time.process_time() + .04 + .001*i

        def busy():
            while time.process_time() < end:
                pass
        error, _ = run_quietly(busy, .05)
        assert error is None or isinstance(error, TimeUp)


def noisy(opt, steps):
    print('x'*100 + '\n'*100_000)
    return submission(SCHEDULE)(opt, steps)


def deep(opt, steps):
    return deep(opt, steps)


def chaos(opt, steps):
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(1)
    torch.set_grad_enabled(False)
    raise KeyError('x')


@pytest.mark.parametrize('f, said', [(noisy, 'It printed'), (deep, 'RecursionError'), (chaos, 'KeyError')])
def test_anything(f, said, capsys):
    state = torch.get_rng_state()
    grade('schedule', f)
    check_report(capsys.readouterr().out, said)
    assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()
    assert torch.equal(state, torch.get_rng_state())
