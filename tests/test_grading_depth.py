"The graders of the lesson on depth: right answers pass, each planted mistake is named, nonsense never passes."

import math

import pytest, torch
from torch import nn

from course_lib.depth import Z, correlation_slope, depth_scale, derivative, fixed_point, normal_mean
from course_lib.grading import EXERCISES, READ, grade, load_topics

load_topics()
NAMES = 'slope_at_one', 'depth_scale', 'edge', 'delta_orthogonal'


def kernel(gain_of=lambda gain: gain, at=0, start=nn.init.orthogonal_, bias=0.0, rest=0.0):
    "A start of a convolution, right but for what is given"

    @torch.no_grad()
    def my_delta(conv, gain):
        middle = conv.kernel_size[0] // 2 + at
        conv.weight.fill_(rest)
        matrix = start(torch.empty(conv.weight.shape[:2], dtype=conv.weight.dtype))
        conv.weight[:, :, middle, middle] = gain_of(gain) * matrix
        conv.bias.fill_(bias)

    return my_delta


def whole_kernel(conv, gain):
    nn.init.orthogonal_(conv.weight, gain)
    nn.init.zeros_(conv.bias)


def new_parameter(conv, gain):
    conv.weight = nn.Parameter(conv.weight.detach().clone())


RIGHT = dict(
    slope_at_one=lambda slope_of, q, s: s**2 * normal_mean(slope_of(q**0.5 * Z) ** 2),
    depth_scale=lambda chi: -1 / math.log(chi),
    edge=1.583,
    delta_orthogonal=kernel(),
)
WRONG = [
    ('slope_at_one', lambda f, q, s: normal_mean(f(q**0.5 * Z) ** 2), 'sigma_w is forgotten'),
    ('slope_at_one', lambda f, q, s: s * normal_mean(f(q**0.5 * Z) ** 2), 'sigma_w counts squared'),
    ('slope_at_one', lambda f, q, s: s**2 * normal_mean(f(q**0.5 * Z)), 'the mean of the slope'),
    ('slope_at_one', lambda f, q, s: s**2 * normal_mean(f(q**0.5 * Z)) ** 2, 'the square of the mean'),
    ('slope_at_one', lambda f, q, s: s**2 * q * normal_mean(f(q**0.5 * Z) ** 2), 'q is inside already'),
    ('slope_at_one', lambda f, q, s: s**2 * normal_mean(f(Z) ** 2), 'the variance q is forgotten'),
    ('slope_at_one', lambda f, q, s: s**2 * normal_mean(f(q * Z) ** 2), 'its root belongs on z'),
    ('slope_at_one', lambda f, q, s: s * normal_mean(f(q**0.5 * Z) ** 2) ** 0.5, 'this is the root of it'),
    ('slope_at_one', lambda f, q, s: s**2 * normal_mean(torch.tanh(q**0.5 * Z) ** 2), 'in place of'),
    ('slope_at_one', lambda f, q, s: s**2 * f(q**0.5 * Z) ** 2, 'one number'),
    ('slope_at_one', lambda f, q, s: print(q), 'a `return` missing'),
    ('depth_scale', lambda chi: 1 / math.log(chi), 'it is negative'),
    ('depth_scale', lambda chi: -math.log(chi), 'this is the rate'),
    ('depth_scale', lambda chi: -1 / math.log10(chi), 'the natural logarithm'),
    ('depth_scale', lambda chi: -1 / math.log2(chi), 'half-life'),
    ('depth_scale', lambda chi: -2 / math.log(chi), 'twice the scale'),
    ('depth_scale', lambda chi: -1 / math.log(chi**2), 'half the scale'),
    ('depth_scale', lambda chi: 1 / (1 - chi), 'right near 1 only'),
    ('depth_scale', lambda chi: chi, 'in place of'),
    ('edge', 1.0, 'the edge without biases'),
    ('edge', 1.327, 'variance .05'),
    ('edge', 1.3956, 'it is the variance'),
    ('edge', 2.505, 'the square of it'),
    ('edge', 1.706, 'the root of .3'),
    ('edge', 1.7, 'is not it'),
    ('delta_orthogonal', whole_kernel, 'other taps than the middle one'),
    ('delta_orthogonal', new_parameter, 'replaces the Parameter'),
    ('delta_orthogonal', kernel(at=-1), 'it is empty'),
    ('delta_orthogonal', kernel(rest=0.1), 'other taps than the middle one'),
    ('delta_orthogonal', kernel(start=nn.init.normal_), 'it is not orthogonal'),
    ('delta_orthogonal', kernel(lambda gain: 1.0), 'gain is forgotten'),
    ('delta_orthogonal', kernel(lambda gain: gain**2), 'gain is squared'),
    ('delta_orthogonal', kernel(lambda gain: gain**0.5), 'the root of gain'),
    ('delta_orthogonal', kernel(bias=0.1), 'set it to 0'),
]


@pytest.mark.parametrize('name', NAMES)
def test_right(name):
    assert grade(name, RIGHT[name])
    assert EXERCISES[name].page == 'depth' and EXERCISES[name].read in READ


@pytest.mark.parametrize('name,submission,words', WRONG)
def test_wrong_is_named(name, submission, words):
    report = grade(name, submission)
    assert not report and words in str(report)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('nonsense', ['a word', math.nan, [1, 2], lambda *args: args, lambda: 1, nn.Linear(2, 2)])
def test_nonsense_never_passes(name, nonsense):
    assert not grade(name, nonsense)


def test_slope_mistakes_differ():
    "No mistake gives the right number in both cases, so none passes unnoticed"
    from course_lib.grading.depth import SLOPE_CASES, wrong_slopes

    for f, q, sigma_w in SLOPE_CASES:
        truth = sigma_w**2 * normal_mean(derivative(f)(q**0.5 * Z) ** 2).item()
        found = [w.item() for w in wrong_slopes(f, q, sigma_w).values()]
        assert all(abs(w / truth - 1) > 0.01 for w in found)
        assert len({round(w, 6) for w in found}) == len(found)


def test_edges():
    "The answer and the known wrong ones are what the lesson's functions say"
    for var_b, sigma_w in ((0.3, 1.5828), (0.05, 1.3270), (0.09, 1.3956), (0.3**0.5, 1.7064)):
        q, c = fixed_point(torch.tanh, sigma_w, math.sqrt(var_b))
        assert abs(correlation_slope(1.0, q, torch.tanh, sigma_w) - 1) < 1e-3
    assert math.isinf(depth_scale(torch.relu, 1.5)) and math.isclose(depth_scale(torch.tanh, 0.5), -1 / math.log(0.25))
