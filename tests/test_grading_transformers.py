"The graders of the lesson on transformers: the right submission passes, each planted mistake is named."

import math

import pytest, torch

from graders import said

from course_lib.grading import EXERCISES, grade
from course_lib.grading import transformers as T
from course_lib.transformer import stream_after

RIGHT = dict(
    token_norm=dict(means=20 * 49, values=64, learned=128),
    stream_after=stream_after,
    last_gradient=dict(pre=(7 / 25) ** 0.5, post=1.0, sandwich=(13 / 49) ** 0.5),
    std_width=dict(fitting=2500, narrow=0.02**4 * 64 * 256 / 2, wide=0.02**4 * 1600 * 6400 / 2),
    missing_norm=lambda sizes: max(range(12), key=lambda i: sizes[i + 1] - sizes[i]),
)


@pytest.mark.parametrize('name', RIGHT)
def test_right(name):
    assert grade(name, RIGHT[name])


LAWS = [(place, why) for place, laws in T.WRONG_LAWS.items() for why in laws]


@pytest.mark.parametrize('place,why', LAWS)
def test_wrong_laws(place, why, capsys):
    "Wrong for one place, right for the others"

    def mine(at, n):
        return T.WRONG_LAWS[place][why](n) if at == place else stream_after(at, n)

    assert not grade('stream_after', mine)
    assert why in said(capsys)


@pytest.mark.parametrize(
    'f,words',
    [
        (lambda place, n: [].clear(), 'is a `return` missing'),
        (lambda place, n: 'many', 'not the type str'),
        (lambda place, n: torch.zeros(2), 'not the type Tensor'),
        (lambda place, n: 7 * n, 'in place of 13'),
    ],
)
def test_no_law(f, words, capsys):
    assert not grade('stream_after', f)
    assert words in said(capsys)


def test_a_law_as_tensor():
    assert grade('stream_after', lambda place, n: torch.tensor(stream_after(place, n)))


def largest_factor(sizes):
    return max(range(12), key=lambda i: sizes[i + 1] / sizes[i])


@pytest.mark.parametrize(
    'f,words',
    [
        (lambda sizes: RIGHT['missing_norm'](sizes) + 1, 'one too many'),
        (largest_factor, 'the largest factor'),
        (lambda sizes: 2, 'it says 2, but branch'),
        (lambda sizes: sizes.clear(), 'is a `return` missing'),
    ],
)
def test_not_found(f, words, capsys):
    assert not grade('missing_norm', f)
    assert words in said(capsys)


WRONG_NUMBERS = [
    ('token_norm', 'means', 20, 'one for each image'),
    ('token_norm', 'values', 3136, 'the channels of one token are'),
    ('token_norm', 'learned', 64, 'a scale and a shift'),
    ('last_gradient', 'pre', 7 / 25, 'a root is missing'),
    ('last_gradient', 'pre', 0.5, 'begins with counts'),
    ('last_gradient', 'post', (7 / 25) ** 0.5, 'nothing grows'),
    ('last_gradient', 'sandwich', (7 / 25) ** 0.5, 'a branch adds 1'),
    ('std_width', 'fitting', 50, 'one over the root'),
    ('std_width', 'narrow', 0.02**4 * 64 * 256, 'the ReLU lets half'),
    ('std_width', 'wide', 0.02**2 * 1600 / 2, 'there are two layers'),
]


@pytest.mark.parametrize('name,key,value,words', WRONG_NUMBERS)
def test_wrong_numbers(name, key, value, words, capsys):
    assert not grade(name, RIGHT[name] | {key: value})
    assert words in said(capsys)


def test_formulas_of_the_numbers():
    "What the numbers stand for"
    for place in ('pre', 'post', 'sandwich'):
        factor = (stream_after(place, 12) / stream_after(place, 48)) ** 0.5
        assert math.isclose(RIGHT['last_gradient'][place], factor)
    torch.manual_seed(0)
    for width, key in ((64, 'narrow'), (1600, 'wide')):
        mlp = torch.nn.Sequential(torch.nn.Linear(width, 4 * width), torch.nn.ReLU(), torch.nn.Linear(4 * width, width))
        for m in mlp[::2]:
            torch.nn.init.normal_(m.weight, std=0.02)
            torch.nn.init.zeros_(m.bias)
        share = mlp(torch.randn(256, width)).square().mean().item()
        assert abs(share / RIGHT['std_width'][key] - 1) < 0.2


NONSENSE = [3, 'text', object(), [], {}, float('nan'), lambda: 0, torch.nn.Identity, torch.zeros(3)]


@pytest.mark.parametrize('name', RIGHT)
def test_nonsense_never_passes(name):
    assert name in EXERCISES and not any(grade(name, value) for value in NONSENSE)
