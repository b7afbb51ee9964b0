"""Models beyond their page: every combination of arguments, course norms, pickling, the LeNet experiment."""

import copy, pickle
from functools import partial
from itertools import product
from pathlib import Path

import pytest, torch
from torch import nn
from hypothesis import given, settings, strategies as st
from torch.testing import assert_close

from course_lib.models import GeneralRelu, LeNet, ResBlock, get_model, layer_table, n_params, out_size, pooled_net

ROOT = Path(__file__).resolve().parents[1]
NORMS = dict(
    none=None, batch=nn.BatchNorm2d, group=partial(nn.GroupNorm, 2), instance=partial(nn.InstanceNorm2d, affine=True)
)
opt = lambda s: st.none() | s


@settings(max_examples=100, deadline=None)
@given(opt(st.floats(0, 0.9)), opt(st.floats(-2, 2)), opt(st.floats(-1, 5)), st.integers(0, 99))
def test_general_relu_trains_with_any_knobs(leak, sub, maxv, seed):
    if maxv is not None and maxv <= -(sub or 0):
        with pytest.raises(ValueError, match='GeneralRelu: maxv'):
            GeneralRelu(leak, sub, maxv)
        return
    x = torch.randn(20, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()
    kept, y = x.detach().clone(), GeneralRelu(leak, sub, maxv)(x)
    want = torch.where(x > 0, x, (leak or 0) * x) - (sub or 0)
    slope = torch.where(x > 0, 1.0, leak or 0.0)
    if maxv is not None:
        slope, want = torch.where(want > maxv, 0.0, slope), want.clamp_max(maxv)
    y.sum().backward()
    assert_close(y, want)
    assert_close(x.grad, slope.double())
    assert_close(x.detach(), kept, atol=0, rtol=0)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_general_relu_keeps_dtype_and_layout(dtype):
    x = torch.randn(2, 3, 4, 5).to(dtype).to(memory_format=torch.channels_last)
    y = GeneralRelu(0.1, 0.4, 2.0)(x)
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    assert eval(repr(GeneralRelu(0.1, 0.4, 2.0))).sub == 0.4


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 3),
    st.sampled_from([1, 3, 5]),
    st.integers(1, 9),
    st.sampled_from([None, nn.BatchNorm2d, partial(nn.GroupNorm, 1)]),
    st.sampled_from([None, nn.ReLU]),
)
def test_residual_shapes_always_add_up(ni, nf, stride, ks, size, norm, act):
    block = ResBlock(ni, nf, stride, ks, act, norm).eval()
    o = out_size(size, ks, stride)
    assert block(torch.randn(2, ni, size, size)).shape == (2, nf, o, o)


@pytest.mark.parametrize('size', [1, 2, 3, 8, 16, 17, 28, 32, 33, 64])
@pytest.mark.parametrize('depth', [1, 2, 4, 6])
def test_get_model_gives_classes_or_says_why_not(size, depth):
    nfs = (3, *(4,) * depth)
    try:
        model = get_model(nfs=nfs, size=size, n_out=7)
    except ValueError as e:
        assert size > 2 ** (depth + 1) and 'get_model: the last map is' in str(e)
    else:
        assert size <= 2 ** (depth + 1)
        assert model(torch.randn(2, 3, size, size)).shape == (2, 7)


@pytest.mark.parametrize('norm,norm_1x1', list(product(NORMS, (True, False))))
def test_norms_and_biases_go_where_they_should(norm, norm_1x1):
    model = get_model(nfs=(1, 8, 16, 32, 64, 64), norm=NORMS[norm], norm_1x1=norm_1x1)
    for i, block in enumerate(model[:5]):
        normed = norm != 'none' and (norm_1x1 or i < 4)
        assert len(block) == 2 + normed and (block[0].bias is None) == normed
    assert len(model[5]) == 1 and model[5][0].bias is not None
    if norm == 'instance' and norm_1x1:
        return
    model(torch.randn(4, 1, 28, 28)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_course_norms_fit():
    norms = pytest.importorskip('course_lib.norms')
    x = torch.randn(4, 1, 28, 28)
    for f in (
        norms.BatchNorm,
        norms.RunningBatchNorm,
        partial(norms.GroupNorm, 4),
        partial(norms.InstanceNorm, affine=True),
    ):
        model = get_model(norm=f)
        assert model[0][0].bias is None and model(x).shape == (4, 10)
    assert LeNet(norms.BatchNorm, norms.BatchNorm)(x).shape == (4, 10)


def test_state_dict_keys_do_not_move():
    "Weights that were saved once load for ever: names are part of the interface."
    assert list(get_model(nfs=(1, 8), size=4, norm=nn.BatchNorm2d).state_dict()) == [
        '0.0.weight',
        *[f'0.1.{k}' for k in nn.BatchNorm2d(8).state_dict()],
        '1.0.weight',
        '1.0.bias',
    ]
    assert list(ResBlock(1, 2).state_dict()) == [
        f'{k}.{o}' for k in ('convs.0.0', 'convs.1.0', 'shortcut.0') for o in ('weight', 'bias')
    ]


def test_models_copy_and_pickle():
    for m in (
        get_model(partial(GeneralRelu, 0.1, 0.4), norm=nn.BatchNorm2d),
        LeNet(nn.BatchNorm2d, nn.BatchNorm1d),
        ResBlock(1, 2, 2),
    ):
        m, x = m.eval(), torch.randn(2, 1, 28, 28)
        assert_close(pickle.loads(pickle.dumps(m))(x), m(x))
        assert_close(copy.deepcopy(m)(x), m(x))


def test_table_counts():
    "Multiplications as torch counts them."
    from torch.utils.flop_counter import FlopCounterMode

    x = torch.randn(1, 1, 28, 28)
    for m in (
        get_model(),
        LeNet(),
        pooled_net(),
        pooled_net(late=True),
        nn.Sequential(ResBlock(1, 8, 2), nn.Conv2d(8, 8, 3, groups=4)),
    ):
        with FlopCounterMode(display=False) as f:
            m(x)
        rows = layer_table(m, x)
        assert 2 * sum(r['mults'] for r in rows) == f.get_total_flops()
        assert sum(r['params'] for r in rows) == n_params(m)
