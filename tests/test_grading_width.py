"The graders of the lesson on width: the right submission passes, each planted mistake is named."

import pytest, torch

from graders import said

from course_lib.grading import EXERCISES, grade
from course_lib.width import mup_groups, mup_start


def first_that_grows(widths, changes):
    return next(name for name, sizes in changes.items() if sizes[-1] > 2 * sizes[0])


def by_hand(net, base, lr, powers=(0, 1, 1), start=0.5, bias=0):
    "Powers of the ratio of widths that divide the rates of three layers and of the biases, and the output weights."
    ratio = net[0].out_features / base[0].out_features
    with torch.no_grad():
        net[4].weight /= ratio**start
    groups = [dict(params=[net[i].weight], lr=lr / ratio**p) for i, p in zip((0, 2, 4), powers)]
    return torch.optim.Adam([*groups, dict(params=[net[i].bias for i in (0, 2, 4)], lr=lr / ratio**bias)])


def with_the_lesson(net, base, lr):
    return torch.optim.Adam(mup_groups(mup_start(net, base), base, lr))


RIGHT = dict(
    coin_sums=dict(coins=100, agree=10_000, coins_16=4, agree_16=16),
    sgd_powers=dict(input=1, hidden=0, output=-1),
    attention_scale=dict(strangers=4, friends=16, left=4, power=-1),
    forgotten_layer=first_that_grows,
    carry_rate=by_hand,
)


@pytest.mark.parametrize('name', RIGHT)
def test_right(name):
    assert grade(name, RIGHT[name])


def test_the_lesson_is_right():
    assert grade('carry_rate', with_the_lesson)


WRONG_NUMBERS = [
    ('coin_sums', 'coins', 0, 'that is the mean'),
    ('coin_sums', 'agree', 100, 'nothing cancels'),
    ('coin_sums', 'coins_16', 16, 'variances add'),
    ('coin_sums', 'agree_16', 4, 'for the coins'),
    ('sgd_powers', 'input', 0, "that is Adam's"),
    ('sgd_powers', 'input', -1, 'the rate must grow'),
    ('sgd_powers', 'hidden', -1, "that is Adam's"),
    ('sgd_powers', 'output', -0.5, 'not with its root'),
    ('attention_scale', 'strangers', 16, 'signs are coins'),
    ('attention_scale', 'friends', 4, 'all terms agree'),
    ('attention_scale', 'left', 1, 'for the strangers'),
    ('attention_scale', 'power', -0.5, "that is PyTorch's"),
]


@pytest.mark.parametrize('name,key,value,words', WRONG_NUMBERS)
def test_wrong_numbers(name, key, value, words, capsys):
    assert not grade(name, RIGHT[name] | {key: value})
    assert words in said(capsys)


WRONG_CARRIES = [
    (dict(powers=(1, 1, 1)), 'has 196 inputs at any width'),
    (dict(powers=(-1, 1, 1)), 'that is for SGD'),
    (dict(powers=(0, 0, 1)), 'sixteen times as many terms'),
    (dict(powers=(0, 0.5, 1)), 'not with its root'),
    (dict(powers=(0, 1, 0)), 'sixteen times as many terms'),
    (dict(bias=1), 'a bias has one input'),
    (dict(start=0), 'the ordinary start'),
    (dict(start=1), 'starts 0.0156 times as large'),
    (dict(powers=(0, 2, 1)), "times the base's"),
]


@pytest.mark.parametrize('changes,words', WRONG_CARRIES)
def test_wrong_carries(changes, words, capsys):
    assert not grade('carry_rate', lambda net, base, lr: by_hand(net, base, lr, **changes))
    assert words in said(capsys)


@pytest.mark.parametrize(
    'f,words',
    [
        (lambda net, base, lr: net, 'not the type Sequential'),
        (lambda net, base, lr: torch.optim.Adam(base.parameters(), lr), 'not every parameter'),
        (lambda net, base, lr: torch.optim.Adam(net[0].parameters(), lr), 'not every parameter'),
        (lambda net, base, lr: torch.optim.Adam(net.parameters(), lr / 16), 'the network is the base'),
        (lambda net, base, lr: torch.optim.Adam(net.parameters(), lr), 'times as far as at 64'),
    ],
)
def test_not_carried(f, words, capsys):
    assert not grade('carry_rate', f)
    assert words in said(capsys)


@pytest.mark.parametrize(
    'f,words',
    [
        (lambda widths, changes: '4', 'is to blame'),
        (lambda widths, changes: '0', 'moves as far at every width'),
        (lambda widths, changes: 'hidden', 'the layers are'),
        (lambda widths, changes: 2, 'a string, not the type int'),
        (lambda widths, changes: changes.clear(), 'not the type NoneType'),
    ],
)
def test_not_found(f, words, capsys):
    assert not grade('forgotten_layer', f)
    assert words in said(capsys)


NONSENSE = [3, 'text', object(), [], {}, float('nan'), lambda: 0, torch.nn.Identity, torch.zeros(3)]


@pytest.mark.parametrize('name', RIGHT)
def test_nonsense_never_passes(name):
    assert name in EXERCISES and not any(grade(name, value) for value in NONSENSE)
