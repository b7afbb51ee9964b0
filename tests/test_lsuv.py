"""LSUV: every network of the course and random ones, with the four activations; what can't be done changes nothing.

`LSUV_EXAMPLES=2000 pytest tests/test_lsuv.py` draws more random networks.
"""

import copy, os
from functools import partial

import pytest, torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from course_lib.activations import WEIGHTED
from course_lib.lsuv import lsuv_init, orthonormal
from course_lib.models import GeneralRelu, LeNet, ResBlock, get_model

torch.set_num_threads(1)
ACTS = dict(relu=nn.ReLU, sigmoid=nn.Sigmoid, tanh=nn.Tanh, general=partial(GeneralRelu, leak=0.1, sub=0.4))


def measured(model, x):
    "Std and mean of each layer's output, by hooks of this test's own"
    out, m = {}, copy.deepcopy(model).train()
    for o in m.modules():
        if isinstance(o, nn.modules.dropout._DropoutNd):
            o.eval()
    for n, o in m.named_modules():
        if isinstance(o, WEIGHTED):
            o.register_forward_hook(
                lambda o, i, y, n=n: out.update({n: (y.float().std(correction=0).item(), y.float().mean().item())})
            )
    with torch.no_grad():
        m(x)
    return out


def check(model, x, **kwargs):
    report = lsuv_init(model, x, **kwargs)
    stats = measured(model, x)
    assert [o['layer'] for o in report][: len(stats)] == list(stats)
    for o in report:
        if o['note'].startswith('left alone'):
            continue
        std, mean = stats[o['layer']]
        assert abs(std - 1) < 0.05, o
        if model.get_submodule(o['layer']).bias is not None:
            assert abs(mean) < 0.05, o
    assert all(p.isfinite().all() for p in model.parameters())
    return report


def resnet18(act):
    from torchvision.models import resnet18

    model = resnet18(num_classes=10)
    for m in list(model.modules()):
        if hasattr(m, 'relu'):
            m.relu = act()
    return model


NETS = dict(
    course=(get_model, (64, 1, 28, 28)),
    lenet=(lambda act: LeNet(act=act), (64, 1, 28, 28)),
    resnet18=(resnet18, (8, 3, 64, 64)),
)


@pytest.mark.parametrize('act', ACTS)
@pytest.mark.parametrize('net', NETS)
def test_unit_variance(net, act):
    torch.manual_seed(0)
    f, shape = NETS[net]
    report = check(f(ACTS[act]), torch.randn(shape))
    assert all(o['note'] in ('', 'no bias, so the mean stays') for o in report)


@pytest.mark.parametrize('per_channel', [False, True])
def test_options_and_inputs(per_channel):
    torch.manual_seed(0)
    for kw in (dict(norm=nn.BatchNorm2d), dict(norm=partial(nn.GroupNorm, 2)), dict()):
        check(get_model(**kw), torch.rand(32, 1, 28, 28) * 255, per_channel=per_channel)
    model = get_model()
    lsuv_init(model, torch.randn(256, 1, 28, 28), per_channel=True)
    x = torch.randn(256, 1, 28, 28)
    assert model[0][0](x).mean((0, 2, 3)).abs().max() < 0.1


# ---- random nets
@st.composite
def nets(draw):
    "A random convolutional net that maps (N, 3, 16, 16) to (N, k)"
    c, layers = 3, []
    act = lambda: ACTS[draw(st.sampled_from(list(ACTS)))]()
    norms = dict(
        none=None,
        batch=nn.BatchNorm2d,
        group=partial(nn.GroupNorm, 1),
        instance=partial(nn.InstanceNorm2d, affine=True),
    )
    for _ in range(draw(st.integers(1, 5))):
        nf, bias = draw(st.sampled_from([4, 8, 12])), draw(st.booleans())
        kind = draw(st.sampled_from(['conv', 'conv', 'transposed', 'grouped', 'res', 'spectral', 'weight_norm']))
        if kind == 'transposed':
            m = nn.ConvTranspose2d(c, nf, 3, padding=1, bias=bias)
        elif kind == 'grouped' and c % 4 == 0:
            m = nn.Conv2d(c, nf, 3, padding=1, groups=4, bias=bias)
        elif kind == 'res':
            m = ResBlock(c, nf, act=nn.ReLU)
        elif kind == 'spectral':
            m = spectral_norm(nn.Conv2d(c, nf, 3, padding=1, bias=bias))
        elif kind == 'weight_norm':
            m = weight_norm(nn.Conv2d(c, nf, 3, padding=1, bias=bias))
        else:
            m = nn.Conv2d(c, nf, draw(st.sampled_from([1, 3])), padding=draw(st.integers(0, 1)), bias=bias)
        norm = norms[draw(st.sampled_from(list(norms)))]
        layers += [m] + ([norm(nf)] if norm else []) + [act()] + ([nn.Dropout(0.5)] if draw(st.booleans()) else [])
        c = nf
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * c, draw(st.integers(1, 5)))]
    return nn.Sequential(*layers, *head)


INPUTS = dict(
    n=st.sampled_from([1, 2, 8, 8, 8]),
    size=st.sampled_from([0.0, 1e-42, 1e-20, 1e-3, 1.0, 1.0, 1.0, 1e3, 1e20, 1e38]),
    offset=st.sampled_from([0.0, 0.0, 1.0, -100.0]),
    broken=st.sampled_from([False] * 9 + [True]),
)


@settings(max_examples=int(os.environ.get('LSUV_EXAMPLES', 60)), deadline=None, suppress_health_check=list(HealthCheck))
@given(
    nets(),
    st.fixed_dictionaries(INPUTS),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float32, torch.bfloat16]),
    st.integers(0, 2**31),
)
def test_never_a_weight_that_is_not_finite(model, inp, per_channel, dtype, seed):
    torch.manual_seed(seed)
    x = torch.randn(inp['n'], 3, 16, 16) * inp['size'] + inp['offset']
    if inp['broken']:
        x[0, 0, 0, 0] = torch.nan
    model, x = model.to(dtype), x.to(dtype)
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    try:
        report = lsuv_init(model, x, per_channel=per_channel)
    except (ValueError, RuntimeError) as e:
        for k, v in model.state_dict().items():
            torch.testing.assert_close(v, before[k], rtol=0, atol=0, equal_nan=True)
        assert not isinstance(e, RuntimeError) or 'not implemented' in str(e)
        return
    finally:
        assert modes == [m.training for m in model.modules()]
        assert not any(m._forward_hooks for m in model.modules())
    assert all(p.isfinite().all() for p in model.parameters())
    buffers = {k for k, _ in model.named_buffers()}
    for k, v in model.state_dict().items():
        if k in buffers:
            assert torch.equal(v, before[k])
    stats = measured(model, x)
    for o in report:
        std, mean = stats[o['layer']]
        assert abs(std - 1) < 0.05 or o['note'] == 'unit variance not reached', o
        if o['note'] == '':
            assert abs(mean) < 0.05, o


# ---- errors, each of which leaves the model as it was
def unchanged_after(model, x, match):
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=match):
        lsuv_init(model, x)
    for k, v in model.state_dict().items():
        assert torch.equal(v, before[k])


def test_errors():
    torch.manual_seed(0)
    x = torch.randn(8, 1, 28, 28)
    bad = x.clone()
    bad[0, 0, 0, :3] = torch.nan
    unchanged_after(get_model(), bad, 'holds 3 values that are not finite')
    unchanged_after(get_model(), x[:1], 'at least 2 examples')
    unchanged_after(get_model(), x * 0, "layer '0.0' is dead")
    unchanged_after(nn.Sequential(nn.Flatten(), nn.ReLU()), x, 'no linear layer or convolution')
    dead = nn.Sequential(nn.Flatten(), nn.Linear(784, 20), nn.Threshold(1e9, 0.0), nn.Linear(20, 10))
    unchanged_after(dead, x, "layer '3' is dead")
    unchanged_after(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), x * 1e38, "not finite")


def test_what_is_left_alone():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.twice, self.unused, self.frozen, self.last = (nn.Linear(9, 9) for _ in range(4))
            self.frozen.requires_grad_(False)

        def forward(self, x):
            return self.last(self.frozen(self.twice(torch.tanh(self.twice(x)))))

    torch.manual_seed(0)
    model = Odd()
    before = copy.deepcopy(model.state_dict())
    notes = {o['layer']: o['note'] for o in lsuv_init(model, torch.randn(64, 9))}
    assert notes == dict(
        twice='left alone: runs 2 times', frozen='left alone: frozen', last='', unused='left alone: does not run'
    )
    changed = [k for k, v in model.state_dict().items() if not torch.equal(v, before[k])]
    assert changed == ['last.weight', 'last.bias']


def test_a_layer_is_frozen_when_all_of_it_is():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 9), nn.Tanh(), nn.Linear(9, 9))
    model[0].bias.requires_grad_(False)
    model[2].requires_grad_(False)
    assert [o['note'] for o in lsuv_init(model, torch.randn(64, 9))] == ['', 'left alone: frozen']


def test_a_norm_that_forbids_unit_variance_is_reported():
    torch.manual_seed(0)
    model = nn.Sequential(spectral_norm(nn.Linear(50, 50)), nn.ReLU(), nn.Linear(50, 10))
    notes = [o['note'] for o in lsuv_init(model, torch.randn(64, 50) * 100)]
    assert notes == ['unit variance not reached', '']


def test_orthonormal():
    torch.manual_seed(0)
    eye = lambda w: torch.testing.assert_close(w @ w.T, torch.eye(len(w)), atol=1e-5, rtol=0)
    eye(orthonormal(nn.Linear(20, 10)))
    eye(orthonormal(nn.Linear(10, 20)).T)
    eye(orthonormal(nn.Conv2d(8, 16, 3)).flatten(1))
    for o in orthonormal(nn.Conv2d(8, 16, 3, groups=4)).chunk(4):
        eye(o.flatten(1))
    eye(orthonormal(nn.ConvTranspose2d(8, 16, 3)).transpose(0, 1).flatten(1))
    assert orthonormal(nn.Conv2d(8, 8, 3, groups=8, dtype=torch.bfloat16)).dtype == torch.float32
