"""Every norm of the course against `torch.nn`: drawn layers, shapes, memory layouts, dtypes, flags and steps.

Each example builds a layer of ours and PyTorch's with the same arguments and the same `state_dict`, takes one to
four steps that switch between training and evaluation, and compares outputs, the gradients of the input and of
every parameter, every buffer, or the kind of error. Values are judged against PyTorch's layer in float64 and in
contiguous memory, since in other layouts PyTorch's own CPU kernels can be wrong: GroupNorm in channels_last takes
E[x^2]-E[x]^2, and batch norm's gradient is wrong where input and gradient of a (1, 2, 2, 1) map differ in strides.

`NORM_EXAMPLES=20000 pytest tests/test_norms.py -s` draws more, with a new seed, and prints what was covered.
"""

import copy, os, warnings
from collections import Counter

import pytest, torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import nn
from course_lib.norms import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm

torch.set_num_threads(1)
OLD = tuple(int(o) for o in torch.__version__.split('.')[:2]) < (2, 12)
EXAMPLES, LONG = int(os.environ.get('NORM_EXAMPLES', 2000)), 'NORM_EXAMPLES' in os.environ
pytestmark = [
    pytest.mark.skipif(OLD, reason='the drawn corner cases crash RMSNorm and GroupNorm of torch 2.11 itself'),
    pytest.mark.timeout(0 if LONG else 900),
]
F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
OURS = dict(batch=BatchNorm, instance=InstanceNorm, group=GroupNorm, layer=LayerNorm, rms=RMSNorm)
BN = {1: nn.BatchNorm1d, 2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}
IN = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm1d, 3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d}
seen = Counter()


def theirs(name, ndim):
    "PyTorch's class for an input of `ndim` axes."
    if name == 'batch':
        return BN.get(ndim, nn.BatchNorm3d)
    if name == 'instance':
        return IN.get(ndim, nn.InstanceNorm3d)
    return dict(group=nn.GroupNorm, layer=nn.LayerNorm, rms=nn.RMSNorm)[name]


# ---- what is drawn

FAULTS = dict(
    batch='channels ndim one empty eps dtype int',
    instance='channels ndim one empty dtype int',
    group='channels ndim one empty dtype int divide',
    layer='channels ndim empty dtype int',
    rms='channels ndim empty dtype int',
)
size, flag = st.sampled_from([1, 1, 2, 3, 4]), st.booleans()
mostly = st.sampled_from([True, True, True, False])


@st.composite
def cases(draw, name):
    "One example: a layer's arguments, an input's shape, dtype and layout, and the steps to take."
    fault = draw(st.sampled_from(['none'] * 9 + FAULTS[name].split()))
    pdt, xdt = draw(st.sampled_from([(F64, F64)] * 7 + [(F32, F32), (F16, F16), (BF16, BF16), (F32, F16), (F32, BF16)]))
    if fault == 'dtype':
        pdt, xdt = draw(st.sampled_from([(F32, F64), (F64, F32), (F16, F32), (BF16, F32)]))
    if fault == 'int':
        pdt, xdt = F32, torch.int64
    n, c, spatial = draw(size), draw(st.integers(1, 6)), draw(st.lists(size, max_size=3))
    kw = dict(eps=draw(st.sampled_from([1e-5, 1e-5, 1e-3, 0.1])), dtype=pdt)
    if fault == 'eps':
        kw['eps'] = draw(st.sampled_from([0.0, -1e-3]))
    if fault in ('channels', 'ndim', 'eps'):
        n, spatial = max(n, 2), [max(s, 2) for s in spatial] or [2]
    if name in ('batch', 'instance'):
        kw |= dict(
            momentum=draw(st.sampled_from([0.1, 0.1, None, 0.0, 0.5, 1.0])),
            affine=draw(flag),
            track_running_stats=draw(flag),
            bias=draw(mostly),
        )
        args = (c,)
    if name == 'instance' and not spatial:
        spatial = [draw(size)]
    if name == 'group':
        groups = draw(st.integers(1, 4))
        c = groups * draw(st.integers(1, 3))
        if fault == 'divide':
            groups, c = groups + 1, (groups + 1) * draw(st.integers(0, 2)) + draw(st.integers(1, groups))
        if fault == 'one':
            c = groups
        args, kw = (groups, c), kw | dict(affine=draw(flag), bias=draw(mostly))
    if fault == 'one':
        n, spatial = 1, [1 for _ in spatial]
    shape = [n, c, *spatial]
    if name in ('layer', 'rms'):
        shape = draw(st.lists(size, min_size=1, max_size=5))
        ns = shape[draw(st.integers(0, len(shape) - 1)) :]
        if fault == 'empty' and len(ns) == len(shape):
            shape = [1, *shape]
        args = (ns[0],) if len(ns) == 1 and draw(flag) else (draw(st.sampled_from([list, tuple, torch.Size]))(ns),)
        kw['elementwise_affine'] = draw(flag)
        if name == 'layer':
            kw['bias'] = draw(mostly)
        elif draw(flag):
            kw['eps'] = None
        if fault == 'channels':
            shape[-1] += 1
        if fault == 'ndim':
            args = ([2, *shape],)
    elif fault == 'channels':
        shape[1] += 1
        if shape[0] == c:
            shape[0] += 1  # (3, 4, 5) for 3 channels could be one (C, H, W) image
    elif fault == 'ndim':
        wrong = [[], [c]] if name == 'group' else [[c], [2, c, 2, 1, 2, 1]]
        shape = draw(st.sampled_from(wrong))
    elif name == 'instance' and len(shape) == 3 and draw(st.sampled_from([False, False, True])):
        shape = shape[1:]  # one image without its batch axis, as InstanceNorm1d
    steps = [(draw(mostly), draw(size)) for _ in range(draw(st.integers(1, 4)))]
    whole = name in ('layer', 'rms') and len(ns) == len(shape)
    if fault != 'none' or whole or len(shape) < (3 if name == 'instance' else 2):
        steps = [(t, None) for t, _ in steps]
    if fault == 'empty':
        shape[draw(st.sampled_from([0, -1])) if len(shape) > 2 and name != 'layer' else 0] = 0
    if fault == 'one':
        steps[0] = True, None
    big = F16 not in (pdt, xdt) and BF16 not in (pdt, xdt)
    return dict(
        name=name,
        fault=fault,
        args=args,
        kw=kw,
        xdt=xdt,
        shape=shape,
        steps=steps,
        layout=draw(st.sampled_from(['contiguous', 'channels_last', 'reversed', 'strided', 'expanded'])),
        scale=draw(st.sampled_from([1.0, 1.0, 0.01, 100.0])),
        offset=draw(st.sampled_from([0.0, 1.0, 3.0] + ([3000.0, -1e4] if big else []))),
        frozen=draw(st.sampled_from(['', '', '', 'x', 'weight', 'bias', 'x weight bias'])),
        seed=draw(st.integers(0, 2**16)),
    )


def laid_out(x, layout):
    "The values of `x` in another order in memory."
    if layout == 'channels_last' and x.ndim in (4, 5):
        return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
    if layout == 'reversed' and x.ndim > 1:
        return x.mT.contiguous().mT if x.ndim < 3 else x.transpose(0, 2).contiguous().transpose(0, 2)
    if layout == 'strided' and x.ndim > 1:
        return torch.stack([x, x], -1)[..., 0]
    if layout == 'expanded' and x.ndim > 1 and x.shape[0]:
        return x[:1].expand_as(x)
    return x


# ---- one step, and how it is judged


def attempt(f):
    "`(result, None)`, or `(None, the kind of error)`."
    try:
        return f(), None
    except (ValueError, TypeError) as e:
        return None, type(e)
    except RuntimeError:
        return None, RuntimeError  # NotImplementedError is one of them
    except (IndexError, ZeroDivisionError):
        return None, IndexError


def step(m, x, g, train, frozen):
    "Outputs and gradients of `(out*g).sum()`, by name."
    m.train(train)
    x = x.detach()
    if x.is_floating_point() and 'x' not in frozen:
        x.requires_grad_()
    for k, p in m.named_parameters():
        p.requires_grad_(k not in frozen)
    out = m(x)
    wrt = {k: v for k, v in dict(x=x, **dict(m.named_parameters())).items() if v.requires_grad}
    assert out.requires_grad == bool(wrt)
    grads = torch.autograd.grad(out, list(wrt.values()), g.to(out.dtype)) if wrt else ()
    return dict(out=out.detach(), **{f'grad of {k}': v for k, v in zip(wrt, grads)})


def spread(c, x, m):
    "Smallest standard deviation that this step divides by, in float64: what the rounding errors are relative to."
    name, k = c['name'], len(c['shape'])
    eps = m.eps if m.eps is not None else torch.finfo(x.dtype).eps
    if name == 'rms':
        return (x.pow(2).mean(tuple(range(k - len(m.normalized_shape), k))).min() + eps).sqrt()
    if name == 'layer':
        v = x.var(tuple(range(k - len(m.normalized_shape), k)), correction=0)
    elif name == 'batch':
        v = x.transpose(0, 1).flatten(1).var(1, correction=0)
    elif name == 'group':
        v = x.reshape(x.shape[0], m.num_groups, -1).var(-1, correction=0)
    else:
        v = x.flatten(2 if k > 2 else 1).var(-1, correction=0)
    if getattr(m, 'running_var', None) is not None:
        v = torch.cat([v.flatten(), m.running_var.double().flatten()])
    return (v.min() + eps).clamp_min(1e-12).sqrt()


def close(what, ours, ref, truth, tol, scale=1.0):
    "Same dtype, shape and device as `ref`, and as near to `truth` as `tol` says."
    assert ours.dtype == ref.dtype and ours.shape == ref.shape, (
        f'{what}: {ours.dtype} {ours.shape}, not {ref.dtype} {ref.shape}'
    )
    if not truth.numel():
        return
    atol = tol * max(1.0, scale, truth.double().abs().max().item())
    torch.testing.assert_close(ours.double(), truth.double(), rtol=0, atol=atol, msg=lambda s: f'{what}: {s}')


def compare(c):
    "Take the example's steps with our layer and with PyTorch's, and compare them."
    name, frozen = c['name'], c['frozen'].split()
    g = torch.Generator().manual_seed(c['seed'])
    ours, bad = attempt(lambda: OURS[name](*c['args'], **c['kw']))
    ref, worse = attempt(lambda: theirs(name, len(c['shape']))(*c['args'], **c['kw']))
    assert bad == worse, f'constructor: {bad}, PyTorch: {worse}'
    if bad:
        return
    assert {k: (v.shape, v.dtype) for k, v in ours.state_dict().items()} == {
        k: (v.shape, v.dtype) for k, v in ref.state_dict().items()
    }
    for p in ref.parameters():
        p.data.copy_(torch.randn(p.shape, generator=g, dtype=F64))
    ours.load_state_dict(ref.state_dict())
    exact = c['xdt'] == F64 and c['kw']['dtype'] == F64
    true = copy.deepcopy(ref).double()
    if name == 'rms' and not exact and ref.eps is None:
        true.eps = torch.finfo(F64 if c['xdt'] == F64 else F32).eps
    for train, n in c['steps']:
        shape = [n, *c['shape'][1:]] if n else c['shape']
        x = torch.randn(shape, generator=g, dtype=F64) * c['scale'] + c['offset']
        x = laid_out(x.to(c['xdt']), c['layout'])
        gr = torch.randn(shape, generator=g, dtype=F64).to(c['xdt'] if c['xdt'].is_floating_point else F32)
        old = copy.deepcopy(ours.state_dict())
        # A running mean kept in float16 is off by 5e-4 of itself, in ours as in PyTorch's; evaluation divides that
        # by the standard deviation: the layer in float64 starts each step from the statistics that PyTorch has kept.
        for a, b in zip(true.buffers(), ref.buffers()):
            a.copy_(b)
        want, worse = attempt(lambda: step(ref, x, gr, train, frozen))
        got, bad = attempt(lambda: step(ours, x, gr, train, frozen))
        if worse is IndexError:
            return  # PyTorch stumbles over an empty batch: nothing to equal
        if (
            shape[:1] == [0]
            and len(shape) == 2
            and c['kw'].get('track_running_stats')
            and name == 'instance'
            and not (train or worse)
        ):
            assert bad is RuntimeError  # (C, L) with C=0: PyTorch does not compare it with its statistics
            return
        assert bad == worse, f'{bad}, PyTorch: {worse}'
        if bad:  # a refused batch leaves no trace
            for k, v in ours.state_dict().items():
                torch.testing.assert_close(v, old[k], rtol=0, atol=0)
            return
        if not x.numel() and name == 'instance':
            return  # PyTorch's running statistics become NaN
        truth = step(true, x.double().contiguous(), gr.double().contiguous(), train, frozen)
        sd = spread(c, x.double(), ref).item() if x.numel() else 1.0
        acc = torch.finfo(F64 if exact else F32).eps
        cond = 1 + (x.double().abs().max().item() / sd if x.numel() and name != 'rms' else 0.0)
        low = max([torch.finfo(d).eps for d in (c['xdt'], c['kw']['dtype'])])
        tol = 64 * acc * cond + (8 * low if low > 1e-6 else 0) + 1e-10
        assert got.keys() == want.keys()
        for k in got:
            close(k, got[k], want[k], truth[k], tol, 16 / sd if k == 'grad of x' else 1.0)
        for (k, a), b, t in zip(ours.named_buffers(), ref.buffers(), true.buffers()):
            close(k, a, b, t, tol, x.double().abs().max().item() if x.numel() else 1.0)
        if c['layout'] == 'channels_last' and x.ndim in (4, 5) and x.numel():
            assert got['out'].is_contiguous(
                memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d
            )
    ref.load_state_dict(ours.state_dict())


@pytest.mark.parametrize('name', OURS)
def test_equals_torch(name):
    "The same as PyTorch's layer in everything that can be seen from outside."

    @settings(
        max_examples=EXAMPLES // len(OURS),
        deadline=None,
        database=None,
        derandomize=not LONG,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    @given(cases(name))
    def run(c):
        seen.update(
            [
                ('layer', name),
                ('fault', c['fault']),
                ('axes', len(c['shape'])),
                ('layout', c['layout']),
                ('dtypes', f"{c['kw']['dtype']} {c['xdt']}".replace('torch.', '')),
                ('steps', len(c['steps'])),
            ]
        )
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            compare(c)

    run()


def test_covered():
    "The draw was not vacuous: every layer, fault, number of axes, layout and dtype was reached, and often."
    if set(dict.fromkeys(v for k, v in seen if k == 'layer')) != set(OURS):
        pytest.skip('needs the whole file')
    kinds = ('layer', 'fault', 'axes', 'layout', 'dtypes', 'steps')
    for kind in kinds:
        print(f'\n{kind}:', {v: n for (k, v), n in sorted(seen.items(), key=str) if k == kind}, end='')
    assert sum(n for (k, _), n in seen.items() if k == 'layer') >= EXAMPLES
    for fault in set(' '.join(FAULTS.values()).split()):
        assert seen['fault', fault] >= EXAMPLES // 400
    for axes in range(2, 6):
        assert seen['axes', axes] >= EXAMPLES // 20
