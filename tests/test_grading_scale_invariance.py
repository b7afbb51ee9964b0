"The graders of the exercises on scale invariance: what is right passes, each planted mistake is named."

import math

import pytest
import torch
from torch import nn

from course_lib.grading import EXERCISES, grade, load_topics
from course_lib.scale_invariance import effective_rate, growing_rate, settled_angle, settled_length

load_topics()
RATE = """
def Sub(lr, weight_decay, step):
    shrink = 1-lr*weight_decay
    return lr/shrink**(2*step+1)
"""
GROUPS = """
def Sub(net, decay):
    many = [p for p in net.parameters() if p.ndim>1]
    one = [p for p in net.parameters() if p.ndim==1]
    return [dict(params=many, weight_decay=decay), dict(params=one, weight_decay=0)]
"""
RIGHT = dict(growing_schedule=RATE, decay_groups=GROUPS)
NUMBERS = dict(
    next_length=dict(product=0.0, length=math.hypot(2, 0.5 * 3), gradient=3 / 10),
    effective_rates=dict(
        rate=effective_rate(0.1, 5),
        angle=effective_rate(0.1, 5) * 2,
        doubled=effective_rate(0.1, 10),
    ),
    same_run=dict(weight_decay=0.05 / 4, length=3 * 2, gradient=1 / 2),
    settled_numbers=dict(
        angle=settled_angle(0.1, 5e-4),
        turn=settled_angle(1.6, 5e-4) / settled_angle(0.1, 5e-4),
        stretch=settled_length(1.6, 5e-4, 1.0) / settled_length(0.1, 5e-4, 1.0),
    ),
    norm_scales=dict(inner=1, last=10, product=0),
)
PLANTED = [
    ('growing_schedule', '(2*step+1)', 'step', 'exponent -1 in place of -2'),
    ('growing_schedule', '(2*step+1)', '(step+1)', 'the square is forgotten'),
    ('growing_schedule', '(2*step+1)', '(2*step)', 'one is shrunk, so the other needs lr/a already'),
    ('growing_schedule', '(2*step+1)', '(2*step+2)', 'in step 0 the rate is lr/a, not lr/a**2'),
    ('growing_schedule', 'lr/shrink**', 'lr*shrink**', 'so the rate has to grow'),
    ('growing_schedule', 'lr/shrink**(2*step+1)', 'lr', 'without decay the weights grow'),
    ('growing_schedule', '1-lr*weight_decay', '1-weight_decay', 'not by 1-weight_decay'),
    ('growing_schedule', '1-lr*weight_decay', '1/(1+lr*weight_decay)', 'multiplying by 1+lr*weight_decay'),
    ('growing_schedule', '1-lr*weight_decay', '2.718281828459045**(-lr*weight_decay)', 'exp is what many small ones'),
    ('growing_schedule', '(2*step+1)', '(3*step+1)', 'in place of'),
    ('growing_schedule', 'return', '_ =', 'is a `return` missing?'),
    ('growing_schedule', 'return lr', "return 'x'*0 or [lr]; lr", 'a number is wanted'),
    ('decay_groups', 'weight_decay=decay', 'weight_decay=0', 'it is a weight, and is not decayed'),
    ('decay_groups', 'weight_decay=0', 'weight_decay=decay', 'belongs to a norm and is decayed'),
    ('decay_groups', 'weight_decay=0', 'weight_decay=decay/10', "each group's weight_decay should be"),
    ('decay_groups', ', dict(params=one, weight_decay=0)', '', 'it would not be trained'),
    ('decay_groups', 'p.ndim==1', 'p.ndim<3', 'a parameter is in two groups'),
    ('decay_groups', 'return [', 'return {}, [', 'a list of dictionaries is wanted'),
    ('decay_groups', '[p for p in net.parameters() if p.ndim>1]', "['0.weight']", "the network's own parameters"),
]


def submission(source):
    names = dict(nn=nn, torch=torch)
    exec(source, names)
    return names['Sub']


@pytest.fixture(autouse=True)
def no_progress(tmp_path, monkeypatch):
    monkeypatch.setenv('COURSE_PROGRESS', str(tmp_path))
    monkeypatch.delenv('COURSE_SOLUTIONS', raising=False)


@pytest.mark.parametrize('name', RIGHT)
def test_right_code(name, capsys):
    assert grade(name, submission(RIGHT[name])), capsys.readouterr().out


@pytest.mark.parametrize('name', NUMBERS)
def test_right_numbers(name, capsys):
    "The answers follow from the lesson's formulas."
    assert grade(name, NUMBERS[name]), capsys.readouterr().out


@pytest.mark.parametrize('name, old, new, said', PLANTED)
def test_planted_mistake(name, old, new, said, capsys):
    assert old in RIGHT[name]
    assert not grade(name, submission(RIGHT[name].replace(old, new)))
    assert said in ' '.join(capsys.readouterr().out.split())


def test_biases_are_named(capsys):
    "Norms by their class, but not the biases of other layers."

    def by_class(net, decay):
        norms = [p for m in net if isinstance(m, (nn.BatchNorm2d, nn.GroupNorm)) for p in m.parameters()]
        others = [p for p in net.parameters() if all(p is not q for q in norms)]
        return [dict(params=others, weight_decay=decay), dict(params=norms, weight_decay=0)]

    assert not grade('decay_groups', by_class)
    assert 'it has one axis, and is decayed' in ' '.join(capsys.readouterr().out.split())


def test_scales_in_front_of_a_norm(capsys):
    "What the exercise says is so: only the last norm's scales and shifts are seen; a wrong number is named."
    torch.manual_seed(0)
    layers = []
    for n_in, n_out in ((1, 4), (4, 6)):
        norm = nn.BatchNorm2d(n_out, eps=1e-20, track_running_stats=False)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0, 0.5)
        layers += [nn.Conv2d(n_in, n_out, 3, bias=False), norm, nn.ReLU()]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(6 * 64, 3, bias=False)).double()
    x = torch.randn(8, 1, 12, 12, dtype=torch.float64)
    first, last = list(net[1].parameters()), list(net[4].parameters())
    nn.functional.cross_entropy(net(x), torch.arange(8) % 3).backward()
    products = [sum((p * p.grad).sum().item() for p in own) for own in (first, last)]
    assert abs(products[0]) < 1e-12 < 1e-4 < abs(products[1])
    before = net(x)
    for own, factor in ((first, 1), (last, 10)):
        with torch.no_grad():
            for p in own:
                p *= 10
        torch.testing.assert_close(net(x), factor * before)
    assert not grade('norm_scales', dict(inner=10, last=10, product=0))
    assert 'the next norm takes it away' in ' '.join(capsys.readouterr().out.split())


def test_schedules_that_do_the_same():
    "Written in another way, or as a tensor, it is as right."
    assert grade('growing_schedule', lambda lr, wd, step: torch.tensor(growing_rate(lr, wd, step), dtype=torch.float64))
    assert grade('growing_schedule', lambda lr, wd, t: lr * math.exp(-(2 * t + 1) * math.log(1 - lr * wd)))


@pytest.mark.parametrize('name', [k for k, e in EXERCISES.items() if e.page == 'scale_invariance'])
def test_no_nonsense_passes(name):
    for value in (3, 'text', object(), [], {}, (1, 2), float('nan'), lambda: 0, nn.Identity, torch.zeros(3)):
        assert not grade(name, value)
