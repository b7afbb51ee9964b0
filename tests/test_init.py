"""Initialization: twenty seeds through deep stacks, fans against measured variance, planted faults."""

import copy, math
from functools import partial

import pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from course_lib.diagnose import layers_in_order, signal_report
from course_lib.init import fans, gain, init_weights, scale_branches, set_weight
from course_lib.models import GeneralRelu, ResBlock, get_model

torch.set_num_threads(1)
ACTS = dict(relu=nn.ReLU, leaky=partial(nn.LeakyReLU, 0.1), tanh=nn.Tanh, selu=nn.SELU)
SEEDS = range(20)


def stack_std(layer, act, x, depth, seed):
    "Std of the last layer's output; one layer is used again and again, with new weights each time."
    torch.manual_seed(seed)
    f = act()
    with torch.no_grad():
        for i in range(depth):
            init_weights(layer, nonlinearity=act if i else 'linear')  # the first layer has data before it
            x = layer(x if i == 0 else f(x))
    return x.std().item()


@pytest.mark.parametrize('act', ACTS)
def test_fifty_linear_layers(act):
    n = 1024 if act in ('relu', 'leaky') else 512  # a ReLU stack's fluctuations shrink with depth/width only
    stds = [stack_std(nn.Linear(n, n), ACTS[act], torch.randn(16, n), 50, s) for s in SEEDS]
    assert 0.5 < min(stds) and max(stds) < 2, stds


@pytest.mark.parametrize('act', ACTS)
def test_thirty_convolutions(act):
    c = 512 if act in ('relu', 'leaky') else 64  # circular, as zeros at the border take part of the fan in away
    conv = nn.Conv2d(c, c, 3, padding=1, padding_mode='circular')
    stds = [stack_std(conv, ACTS[act], torch.randn(4, c, 3, 3), 30, s) for s in SEEDS]
    assert 0.5 < min(stds) and max(stds) < 2, stds


@pytest.mark.parametrize('leak, sub, std', [(0.0, 0.0, 1.0), (0.1, 0.4, 1.0), (0.1, 0.4, 0.75), (0.3, 0.2, 2.0)])
def test_gain_of_a_shifted_relu(leak, sub, std):
    "The integral gives what can be worked out: E[z^2; z>0] is 1/2, E[z; z>0] is 1/sqrt(2 pi)."
    mean_square = (1 + leak**2) / 2 * std**2 - 2 * sub * (1 - leak) / math.sqrt(2 * math.pi) * std + sub**2
    assert abs(gain(GeneralRelu(leak=leak, sub=sub), std).item() * mean_square**0.5 / std - 1) < 1e-4


KINDS = {(d, t): getattr(nn, f'Conv{"Transpose" if t else ""}{d}d') for d in (1, 2, 3) for t in (False, True)}


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 2),
    st.booleans(),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 2),
    st.integers(0, 99),
)
def test_fans_are_what_is_measured(dim, transposed, ks, stride, groups, dilation, seed):
    "Unit variance in, weights of variance 1/fan: unit variance out, forward and backward, away from the border."
    torch.manual_seed(seed)
    m = KINDS[dim, transposed](32, 64, ks, stride=stride, groups=groups, dilation=dilation, bias=False)
    size = 200 if dim == 1 else 36
    x = torch.randn(8, 32, *[size] * dim, requires_grad=True)
    for i in (0, 1):
        nn.init.normal_(m.weight, std=fans(m)[i] ** -0.5)
        y = m(x)
        got = y.pow(2) if i == 0 else torch.autograd.grad(y, x, torch.randn_like(y))[0].pow(2)
        cut = ks * dilation if (i == 1) != transposed else 0  # the other direction has no border
        inner = got[(slice(None), slice(None), *[slice(cut, got.shape[2] - cut)] * dim)]
        size_in = inner.shape[2] // stride * stride  # whole periods of the stride
        inner = inner[(slice(None), slice(None), *[slice(0, size_in)] * dim)]
        assert abs(inner.mean() - 1) < 0.15


@pytest.mark.parametrize('uniform', [False, True])
def test_init_weights_leaves_others_alone(uniform):
    torch.manual_seed(0)
    model = nn.ModuleDict(
        dict(
            net=nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.Sequential(nn.Flatten(), nn.Linear(64, 256))),
            emb=nn.Embedding(5, 4),
            norm=nn.LayerNorm(7),
            bi=nn.Bilinear(2, 3, 4),
            rnn=nn.LSTM(3, 4),
        )
    )
    for p in model.parameters():
        nn.init.normal_(p)
    old = copy.deepcopy(model.state_dict())
    assert model.apply(partial(init_weights, leaky=0.1, uniform=uniform)) is model
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, old[k])}
    assert changed == {'net.0.weight', 'net.0.bias', 'net.2.1.weight', 'net.2.1.bias'}
    for m in (model.net[0], model.net[2][1]):
        assert (m.bias == 0).all() and abs(m.weight.std() / math.sqrt(2 / 1.01 / fans(m)[0]) - 1) < 0.05
        assert (m.weight.abs().max() <= m.weight.std() * 3**0.5 * 1.1) == uniform


def test_init_weights_corner_cases():
    m = weight_norm(nn.Linear(200, 100))
    init_weights(m)
    assert abs(m.weight.std() - 0.1) < 0.01  # through the parametrization
    init_weights(nn.utils.skip_init(nn.Linear, 0, 3))  # nothing to draw, no division by zero
    h = nn.Conv2d(64, 64, 3, dtype=torch.bfloat16)
    init_weights(h)
    assert h.weight.dtype == torch.bfloat16 and h.weight.isfinite().all()
    m = nn.Linear(300, 100, bias=False)
    for mode, n in dict(fan_in=300, fan_out=100, fan_avg=200).items():
        init_weights(m, mode=mode, nonlinearity='linear')
        assert abs(m.weight.std() * n**0.5 - 1) < 0.05
    init_weights(m, nonlinearity=nn.Tanh)
    assert abs(m.weight.std() * 300**0.5 / gain('tanh').item() - 1) < 0.05
    with pytest.raises(ValueError, match="mode must be 'fan_in'"):
        init_weights(m, mode='in')
    with pytest.raises(ValueError, match='no activation named'):
        init_weights(m, nonlinearity='rleu')


@pytest.mark.parametrize('wrap', [nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings('ignore')
def test_a_weight_that_is_computed_anew_is_refused(wrap):
    m = wrap(nn.Linear(20, 20))
    m(torch.randn(4, 20))
    with pytest.raises(ValueError, match='computes it anew'):
        m.apply(init_weights)
    with pytest.raises(ValueError, match='computes it anew'):
        set_weight(m, torch.zeros(20, 20))


def test_gain_takes_every_kind_of_activation():
    same = [gain(f).item() for f in ('relu', nn.ReLU, nn.ReLU(inplace=True), partial(nn.LeakyReLU, 0.0), torch.relu)]
    assert max(same) - min(same) < 1e-9 and abs(same[0] - 2**0.5) < 1e-5
    p = nn.PReLU(init=0.25)
    assert abs(gain(p).item() - (2 / 1.0625) ** 0.5) < 1e-5 and p.weight.dtype == torch.float32


def test_scale_branches_bounds_the_variance():
    torch.manual_seed(0)
    for L in (10, 40):
        blocks = nn.Sequential(*[ResBlock(32, 32, act=None) for _ in range(L)]).apply(
            partial(init_weights, nonlinearity='linear')
        )
        scale_branches([b.convs[-1][0] for b in blocks])
        with torch.no_grad():
            assert 1 < blocks(torch.randn(8, 32, 16, 16)).std() < 2
    with pytest.raises(ValueError, match='no branches'):
        scale_branches([])


# ---- signal_report
def batch(n=64):
    return torch.randn(n, 1, 28, 28), torch.arange(n) % 10


def state(model):
    return [o.clone() for o in (*model.parameters(), *model.buffers())], [m.training for m in model.modules()]


def test_report_changes_nothing():
    torch.manual_seed(0)
    model = get_model(norm=nn.BatchNorm2d).eval()
    before, rng = state(model), torch.get_rng_state()
    report = signal_report(model, batch()[0])
    rng2 = torch.get_rng_state()
    for a, b in zip(before[0], state(model)[0]):
        assert torch.equal(a, b)
    assert before[1] == state(model)[1] and all(p.grad is None for p in model.parameters())
    assert len(report) == 5 and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    torch.set_rng_state(rng)
    torch.randn(64, 1, 28, 28)
    assert torch.equal(rng2, torch.get_rng_state())


def test_report_is_quiet_on_a_healthy_net():
    torch.manual_seed(0)
    assert signal_report(get_model(norm=nn.BatchNorm2d).apply(init_weights), batch()).flags == {}


FAULTS = dict(
    small=lambda m: m[1][0].weight.mul_(1e-3),
    large=lambda m: m[1][0].weight.mul_(1e3),
    dead=lambda m: m[1][0].bias.fill_(-1e3),
    nonfinite=lambda m: m[1][0].weight.fill_(torch.nan),
    alike=lambda m: m[1][0].bias.normal_(std=1e3),
)


@pytest.mark.parametrize('fault', FAULTS)
def test_report_finds_planted_faults(fault):
    torch.manual_seed(0)
    model = get_model().apply(init_weights)
    assert '1.0' not in signal_report(model, batch()).flags
    with torch.no_grad():
        FAULTS[fault](model)
    report = signal_report(model, batch())
    assert fault in report.flags['1.0'] and f'{fault}: ' in repr(report)


def test_report_finds_what_training_suffers_from():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(26 * 26 * 8, 10)
    )
    assert signal_report(model, batch()).flags == {'0': ['idle_bias']}
    assert 'fast' in signal_report(model, batch(), lr=1e3).flags['4']
    blocked = nn.Sequential(nn.Linear(9, 9), nn.Threshold(1e9, 0.0), nn.Linear(9, 9))
    assert signal_report(blocked, torch.randn(8, 9)).flags['0'] == ['dead']
    deep = nn.Sequential(*[o for _ in range(20) for o in (nn.Linear(64, 64), nn.Sigmoid())], nn.Linear(64, 10))
    flags = signal_report(deep, (torch.randn(32, 64), torch.arange(32) % 10)).flags
    assert 'slow' in flags['0'] and 'alike' in flags['38']
    with pytest.raises(ValueError, match='no linear layer or convolution'):
        signal_report(nn.PReLU(), torch.randn(2, 2))


def test_layers_in_order_of_execution():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.b, self.unused, self.a = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.a(self.b(self.a(x)))

    assert list(layers_in_order(Odd(), torch.randn(2, 4)).items()) == [('a', 2), ('b', 1), ('unused', 0)]
