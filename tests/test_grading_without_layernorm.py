"The graders of the lesson on transformers without layer norm: the right submission passes, each planted one is named."

import pytest, torch
import torch.nn.functional as F

from graders import said

from course_lib.grading import EXERCISES, grade
from course_lib.grading import without_layernorm as W


def by_statistics(received):
    words = []
    for x in received:
        if (x.square().mean(1) - 1).abs().max() < 0.01:
            words.append('layer' if x.mean(1).abs().max() < 0.01 else 'rms')
        else:
            words.append('dyt' if x.abs().max() <= 1 else 'none')
    return words


RIGHT = dict(
    dyt_ends=dict(slope=3 * 0.5, right=3 + 1, left=1 - 3),
    qk_bound=dict(largest=8**0.5, times=4),
    adaln_zero=W.adaln_zero,
    tell_norms=by_statistics,
)


@pytest.mark.parametrize('name', RIGHT)
def test_right(name):
    assert grade(name, RIGHT[name])


WRONG_NUMBERS = [
    ('dyt_ends', 'slope', 0.5, 'the weight multiplies'),
    ('dyt_ends', 'slope', 2.5, 'the bias shifts the curve'),
    ('dyt_ends', 'right', 1, 'the tanh tends to 1'),
    ('dyt_ends', 'right', 2.5, 'leaves its ends'),
    ('dyt_ends', 'left', -4, 'the bias is added on the left'),
    ('dyt_ends', 'left', 2, 'the tanh tends to -1'),
    ('qk_bound', 'largest', 8, 'divides by the root of 8'),
    ('qk_bound', 'largest', 1, 'the length is the root of 8'),
    ('qk_bound', 'times', 2, 'and the key too'),
]


@pytest.mark.parametrize('name,key,value,words', WRONG_NUMBERS)
def test_wrong_numbers(name, key, value, words, capsys):
    assert not grade(name, RIGHT[name] | {key: value})
    assert words in said(capsys)


@pytest.mark.parametrize('why', W.WRONG_ADALN)
def test_wrong_sums(why, capsys):
    def mine(x, branch, shift, scale, gate):
        given = (o[:, None] for o in (shift, scale, gate))
        return W.WRONG_ADALN[why](x, branch, *given, F.layer_norm(x, x.shape[-1:]))

    assert not grade('adaln_zero', mine)
    assert why in said(capsys)


def without_axis(x, branch, shift, scale, gate):
    return x + gate * branch((1 + scale) * F.layer_norm(x, x.shape[-1:]) + shift)


@pytest.mark.parametrize(
    'f,words',
    [
        (without_axis, 'an axis is missing'),
        (lambda x, *_: [].clear(), 'is a `return` missing'),
        (lambda x, *_: x[0], 'wrong shape'),
        (lambda x, *_: x.clone(), 'not the sum of x and the gated branch'),
    ],
)
def test_no_sum(f, words, capsys):
    assert not grade('adaln_zero', f)
    assert words in said(capsys)


def says_instead(kind, word):
    "The right words, but for one kind"
    return lambda received: [word if found == kind else found for found in by_statistics(received)]


@pytest.mark.parametrize('kind,word', W.CONFUSED)
def test_confused(kind, word, capsys):
    assert not grade('tell_norms', says_instead(kind, word))
    text = ' '.join(said(capsys).split())
    assert W.CONFUSED[kind, word][:60] in text


@pytest.mark.parametrize(
    'f,words',
    [
        (lambda received: received.clear(), 'is a `return` missing'),
        (lambda received: by_statistics(received)[1:], 'a word for each of 6'),
        (lambda received: 'layer', 'a list is wanted'),
        (says_instead('none', 'nothing'), "it says 'nothing' of branch 3"),
        (says_instead('none', 7), "it says '7' of branch 3"),
        (says_instead('none', torch.zeros(2)), 'of branch 3'),
    ],
)
def test_not_told(f, words, capsys):
    assert not grade('tell_norms', f)
    assert words in said(capsys)


NONSENSE = [3, 'text', object(), [], {}, float('nan'), lambda: 0, torch.nn.Identity, torch.zeros(3)]


@pytest.mark.parametrize('name', RIGHT)
def test_nonsense_never_passes(name):
    assert name in EXERCISES and not any(grade(name, value) for value in NONSENSE)
