"""The checks of the page on checks on more layers, and what takes too long for its page."""

import copy
import inspect

import pytest, torch
from torch import nn

from course_lib import checks
from course_lib.checks import (
    Recipe,
    check_compile,
    check_gradcheck,
    check_layer,
    check_layouts,
    check_outputs,
    explain,
    name_differences,
    normalize_as,
    recipes,
    sample_input,
)
from course_lib.twins import random_affine

SHAPES = {2: (5, 6), 3: (5, 6, 4), 4: (5, 6, 3, 2), 5: (4, 6, 3, 2, 2)}


def norms():
    for n, bn in ((2, nn.BatchNorm1d), (3, nn.BatchNorm1d), (4, nn.BatchNorm2d), (5, nn.BatchNorm3d)):
        for kw in (dict(), dict(momentum=None), dict(affine=False), dict(track_running_stats=False)):
            yield n, bn(6, **kw)
    for n, inn in ((3, nn.InstanceNorm1d), (4, nn.InstanceNorm2d), (5, nn.InstanceNorm3d)):
        for kw in (dict(), dict(affine=True), dict(affine=True, track_running_stats=True)):
            yield n, inn(6, **kw)
    for n in (2, 3, 4):
        for kw in (dict(), dict(elementwise_affine=False), dict(bias=False)):
            yield n, nn.LayerNorm(SHAPES[n][-1], **kw)
        yield n, nn.RMSNorm(SHAPES[n][-1], eps=1e-6)
    for n in (3, 4, 5):
        for g in (1, 2, 6):
            yield n, nn.GroupNorm(g, 6)


@pytest.mark.parametrize('n,layer', list(norms()), ids=lambda o: repr(o))
def test_every_norm_equals_itself(n, layer):
    check_layer(layer, copy.deepcopy(layer), sample_input(*SHAPES[n]), skip=['gradcheck'])


@pytest.mark.parametrize(
    'layer', [nn.Linear(3, 4), nn.Conv2d(6, 2, 2), nn.PReLU(6), nn.Sequential(nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4))]
)
def test_layers_that_are_no_norms(layer):
    x = sample_input(5, 3) if isinstance(layer, nn.Linear) else sample_input(5, 6, 3, 2)
    check_layer(layer, copy.deepcopy(layer), x, cases=[(x[:, :1],)])

    class Off(nn.Module):
        def __init__(self, m):
            super().__init__()
            self.m = copy.deepcopy(m)

        def forward(self, x):
            return self.m(x) + 0.01

    with pytest.raises(AssertionError, match='none of those known here'):
        check_outputs(Off(layer), layer, x)


class Unbiased(nn.InstanceNorm2d):
    def forward(self, x):
        var, mean = torch.var_mean(x, (2, 3), correction=1, keepdim=True)
        return (x - mean) / (var + self.eps).sqrt()


class Centred(nn.RMSNorm):
    def forward(self, x):
        return super().forward(x - x.mean(-1, keepdim=True))


class ScalarLayerNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return normalize_as(x, Recipe((3,))) * self.weight + self.bias


@pytest.mark.parametrize(
    'layer,reference,words',
    [
        (nn.GroupNorm(3, 6), nn.GroupNorm(2, 6), 'wrong axes: statistics over (2, 3, 4) in 3 groups'),
        (nn.GroupNorm(1, 6), nn.GroupNorm(6, 6), 'wrong axes'),
        (Unbiased(6), nn.InstanceNorm2d(6), "Bessel's correction: the variance is divided by n-1"),
        (nn.InstanceNorm2d(6), Unbiased(6), "Bessel's correction missing"),
        (Centred(2, eps=1e-5), nn.RMSNorm(2, eps=1e-5), 'the mean is subtracted'),
        (nn.LayerNorm(2, eps=1e-3), nn.LayerNorm(2), 'eps is 0.001, the reference'),
        (ScalarLayerNorm(), nn.LayerNorm(2), 'a scalar affine'),
        (nn.LayerNorm(2, bias=False), nn.LayerNorm(2), 'an affine too many or too few'),
        (nn.BatchNorm2d(6, momentum=0.9), nn.BatchNorm2d(6), 'momentum the wrong way round'),
        (nn.BatchNorm2d(6, momentum=0.3), nn.BatchNorm2d(6), "momentum is 0.3, the reference's 0.1"),
        (nn.BatchNorm2d(6, track_running_stats=False), nn.BatchNorm2d(6), 'Missing key'),
        (nn.InstanceNorm2d(6), nn.InstanceNorm2d(6, track_running_stats=True), 'Missing key'),
    ],
)
def test_mistakes_between_real_layers(layer, reference, words):
    with pytest.raises(AssertionError) as e:
        check_layer(layer, reference, sample_input(5, 6, 3, 2))
    assert words in str(e.value), str(e.value)


@pytest.mark.parametrize('n', SHAPES)
def test_each_recipe_is_found(n):
    x = sample_input(*SHAPES[n])
    for r in list(recipes(x))[::7]:
        assert explain(x, normalize_as(x, r)) == [r]
        assert name_differences(r, r) == []


def test_nothing_outside_is_changed():
    layer, x = nn.BatchNorm2d(6), sample_input(5, 6, 3, 2)
    state, before, rng = copy.deepcopy(layer.state_dict()), x.clone(), torch.get_rng_state()
    check_layer(layer, nn.BatchNorm2d(6), x, skip=['gradcheck'])
    assert torch.equal(x, before) and x.grad is None and layer.training
    assert all(
        torch.equal(v, layer.state_dict()[k]) and v.dtype == layer.state_dict()[k].dtype for k, v in state.items()
    )
    assert all(p.grad is None for p in layer.parameters())
    assert torch.equal(rng, torch.get_rng_state())


def test_float32_only_layer_is_told_so():
    class Narrow(nn.LayerNorm):
        def forward(self, x):
            return super().forward(x.double()).float().to(x.dtype)

    with pytest.raises(AssertionError, match='computed in float32'):
        check_outputs(Narrow(2), nn.LayerNorm(2), sample_input(5, 6, 3, 2))


def test_errors_of_the_layer_itself_come_through():
    class Broken(nn.LayerNorm):
        def forward(self, x):
            raise KeyError('no such thing')

    with pytest.raises(KeyError):
        check_outputs(Broken(2), nn.LayerNorm(2), sample_input(5, 6, 3, 2))


def test_second_derivatives():
    class Square(torch.autograd.Function):
        "x**2 whose backward is right and cannot be differentiated rightly."

        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, g):
            return 2 * ctx.saved_tensors[0].detach() * g

    x = sample_input(3, 2)
    check_gradcheck(Square.apply, x)
    with pytest.raises(AssertionError, match='gradgradcheck fails'):
        check_gradcheck(Square.apply, x, second=True)


class Tracked(nn.Module):
    "Scales by a running statistic and by the batch's own; `in_place` decides how the buffer is updated."

    def __init__(self, in_place):
        super().__init__()
        self.in_place = in_place
        self.register_buffer('scale', torch.ones(6))

    def forward(self, x):
        var = x.var((0, 2, 3), correction=0)
        old = self.scale.clone()
        if self.in_place:
            self.scale.lerp_(var.detach(), 0.1)
        else:
            self.scale = old.lerp(var.detach(), 0.1)
        return x * (old.lerp(var, 0.1) * old)[:, None, None]


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.timeout(600)
def test_compile():
    x = sample_input(5, 6, 3, 2)
    check_compile(Tracked(False), x)
    with pytest.raises(AssertionError, match='changed in place while its old value is needed'):
        check_compile(Tracked(True), x)
    with pytest.raises(AssertionError, match='cannot be compiled into one graph'):
        check_compile(Branching(), x)


class NearlyRight(nn.BatchNorm2d):
    "Off by a millionth where the input is not contiguous"

    def forward(self, x):
        return super().forward(x) * (1 if x.is_contiguous() else 1 + 1e-6)


def test_a_millionth_is_found():
    with pytest.raises(AssertionError, match='memory order'):
        check_layouts(NearlyRight(6), nn.BatchNorm2d(6), sample_input(*SHAPES[4]))
    for name in checks.__all__:
        parameters = inspect.signature(getattr(checks, name)).parameters if name.startswith('check_') else {}
        if 'tol' in parameters:
            assert parameters['tol'].default == 1e-9, name


class LateMistake(nn.BatchNorm1d):
    "Its mean goes wrong in the fifth step"

    def forward(self, x):
        out = super().forward(x)
        if self.num_batches_tracked == 5:
            self.running_mean += 1
        return out


def test_steps_arrive():
    x, only = sample_input(*SHAPES[2]), {'skip': set(checks.CHECKS) - {'buffers'}}
    assert check_layer(LateMistake(6), nn.BatchNorm1d(6), x, **only) == ['buffers']
    with pytest.raises(AssertionError, match='running_mean'):
        check_layer(LateMistake(6), nn.BatchNorm1d(6), x, steps=5, **only)


def test_parameters_are_drawn_in_double_precision():
    "A layer that rounds its parameters to float32 is seen"
    weight = random_affine(nn.BatchNorm1d(6).double()).weight
    assert (weight != weight.float()).any()
