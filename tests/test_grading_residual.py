"The graders of the lesson on residual nets: the right submission passes, each planted mistake is named."

import math, os

os.environ['COURSE_SAMPLE'] = '1'

import pytest, torch

from graders import said

from course_lib.grading import EXERCISES, grade, sample_images
from course_lib.grading import residual as R
from course_lib.residual import fixup_start, stream_formula, weigh_last

sample_images()  # before any grader's clock runs
RIGHT = dict(
    stream_law=stream_formula,
    double_stream=lambda n: (2 ** (1 / n) - 1) ** 0.5,
    branch_share=dict(size=100, share=0.01, by_hand=0.25, left=2**-10),
    two_branches=dict(scale=96**-0.5, growth=(1 + 1 / 96) ** 96),
)


@pytest.mark.parametrize('name', RIGHT)
def test_right(name):
    assert grade(name, RIGHT[name])


@pytest.mark.parametrize('why', R.WRONG_STREAMS)
def test_wrong_streams(why, capsys):
    assert not grade('stream_law', R.WRONG_STREAMS[why])
    assert why in said(capsys)


@pytest.mark.parametrize(
    'f,words',
    [
        (lambda scales: scales.clear(), 'is a `return` missing'),
        (lambda scales: stream_formula(scales)[-1], 'a list is wanted'),
        (lambda scales: [1.0, *stream_formula(scales)], 'a number too many'),
        (lambda scales: [1.0], '2 blocks, but 1 numbers'),
        (lambda scales: [7.0] * len(scales), 'in place of 8'),
        (lambda scales: 'ab', 'a list of numbers is wanted'),
    ],
)
def test_no_stream(f, words, capsys):
    assert not grade('stream_law', f)
    assert words in said(capsys)


@pytest.mark.parametrize('why', R.WRONG_DOUBLINGS)
def test_wrong_doublings(why, capsys):
    wrong = R.WRONG_DOUBLINGS[why]
    assert not grade('double_stream', lambda n: torch.tensor(wrong(n)))  # in float32
    assert why in said(capsys)
    assert not grade('double_stream', wrong)
    assert why in said(capsys)


def test_other_doublings(capsys):
    assert grade('double_stream', lambda n: torch.tensor(-((2 ** (1 / n) - 1) ** 0.5), dtype=torch.float64))
    assert not grade('double_stream', lambda n: 2.0)
    assert '3 blocks multiply the mean square by 125' in said(capsys)
    assert not grade('double_stream', lambda n: [].clear())
    assert 'is a `return` missing' in said(capsys)


def test_formulas_of_the_numbers():
    "What the numbers of the exercises stand for"
    harmonic = [l**-0.5 for l in range(1, 100)]
    assert math.isclose(stream_formula(harmonic)[-1], 100)
    assert math.isclose(stream_formula([96**-0.5] * 96)[-1], RIGHT['two_branches']['growth'])
    for name in ('branch_share', 'two_branches'):
        assert len(EXERCISES[name].properties) == len(RIGHT[name])


def set_scale(net):
    for m in net.modules():
        if isinstance(m, R.ScaledBlock):
            m.scale = 0.1


def hook(net):
    net[2].register_forward_hook(lambda m, i, o: o)
    weigh_last(net, 0.0)


@torch.no_grad()
def all_zero(net):
    for p in net.parameters():
        p.zero_()


@torch.no_grad()
def double_heads(net):
    net[-1].bias.fill_(1.0)


MENDS = [
    (lambda net: weigh_last(net, 1.0), 'no parameter has changed'),
    (set_scale, 'are no parameters'),
    (hook, 'a hook changes'),
    (lambda net: net.append(torch.nn.Identity()), 'the layers are no longer the same'),
    (all_zero, 'all images look alike'),
    (double_heads, 'the stream explodes'),
]


@pytest.mark.parametrize('f,words', MENDS)
def test_wrong_mends(f, words, capsys):
    assert not grade('mend_hundred', f)
    assert words in said(capsys)


def test_mends():
    "A scale in the weights learns, zeros in the last layers learn, zeros everywhere do not"
    R.mended_learns(1)(lambda net: weigh_last(net, 50**-0.5))
    R.mended_learns(2)(fixup_start)
    with pytest.raises(R.Miss, match='60 % are asked for'):
        R.mended_learns(1)(all_zero)


NONSENSE = [3, 'text', object(), [], {}, float('nan'), lambda: 0, torch.nn.Identity, torch.zeros(3)]


@pytest.mark.parametrize('name', [*RIGHT, 'mend_hundred'])
def test_nonsense_never_passes(name):
    assert not any(grade(name, value) for value in NONSENSE)
