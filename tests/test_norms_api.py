"""Ours in the place of `torch.nn`'s norms wherever PyTorch can put a module: gradient checks, PyTorch's own test
inputs, checkpoints, `torch.compile`, `torch.export`, `functional_call`, `vmap`, autocast, a whole ResNet. And what
`RunningBatchNorm` promises, which has no counterpart in `torch.nn`."""

import copy, inspect, io, itertools, pickle, re, sys, types, unittest, warnings

import pytest, torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from course_lib.norms import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm, RunningBatchNorm

torch.set_num_threads(1)
F64 = torch.float64
close = lambda a, b, tol=1e-9: assert_close(a, b, rtol=tol, atol=tol)

NEW_BIAS = 'bias' in inspect.signature(nn.BatchNorm2d).parameters  # torch 2.12 and newer: `bias=`, and it is shown

# name: ours, PyTorch's, arguments, shape of an input
LAYERS = {
    'layer': (LayerNorm, nn.LayerNorm, ([3, 2],), {}, (4, 2, 3, 2)),
    'layer_plain': (LayerNorm, nn.LayerNorm, (5,), dict(elementwise_affine=False), (3, 5)),
    'rms': (RMSNorm, nn.RMSNorm, (5,), {}, (4, 5)),
    'rms_plain': (RMSNorm, nn.RMSNorm, ([2, 5],), dict(elementwise_affine=False, eps=1e-3), (3, 2, 5)),
    'batch': (BatchNorm, nn.BatchNorm2d, (4,), {}, (3, 4, 2, 3)),
    'batch_rows': (
        BatchNorm,
        nn.BatchNorm1d,
        (3,),
        dict(momentum=None) | (dict(bias=False) if NEW_BIAS else {}),
        (5, 3),
    ),
    'batch_volume': (BatchNorm, nn.BatchNorm3d, (2,), dict(affine=False), (2, 2, 2, 1, 2)),
    'batch_forgetful': (BatchNorm, nn.BatchNorm1d, (2,), dict(track_running_stats=False), (3, 2, 4)),
    'instance': (InstanceNorm, nn.InstanceNorm2d, (3,), {}, (2, 3, 3, 2)),
    'instance_state': (
        InstanceNorm,
        nn.InstanceNorm2d,
        (3,),
        dict(affine=True, track_running_stats=True),
        (2, 3, 3, 2),
    ),
    'group': (GroupNorm, nn.GroupNorm, (2, 4), {}, (3, 4, 2, 3)),
    'group_rows': (GroupNorm, nn.GroupNorm, (1, 4), dict(affine=False), (3, 4)),
    'running': (RunningBatchNorm, None, (3,), {}, (4, 3, 2, 2)),
    'running_rows': (RunningBatchNorm, None, (3,), {}, (5, 3)),
}
STATE = [k for k, v in LAYERS.items() if any(True for _ in v[0](*v[2], **v[3]).buffers())]
PAIRS = [k for k, v in LAYERS.items() if v[1]]
every, stateful, paired = (pytest.mark.parametrize('name', ks) for ks in (LAYERS, STATE, PAIRS))


def make(name, dtype=F64, seed=0, theirs=False):
    "A layer with random parameters, and the shape of its input."
    ours, ref, args, kw, shape = LAYERS[name]
    torch.manual_seed(seed)
    m = (ref if theirs else ours)(*args, **kw).to(dtype)
    for p in m.parameters():
        nn.init.normal_(p, 1.0)
    return m, shape


def data(shape, dtype=F64, seed=1):
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=g, dtype=F64) * 2 + 1).to(dtype)


def warm(m, shape, steps=2):
    "The layer after a few training batches."
    for i in range(steps):
        m.train()(data(shape, seed=90 + i))
    return m


def grads(m, x, seed=3):
    "Output, and the gradients of a random projection of it."
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    out = m(x)
    ps = [p for p in m.parameters() if p.requires_grad]
    g = torch.empty_like(out).copy_(data(out.shape, out.dtype, seed))  # laid out in memory as `out` is
    return [out.detach(), *torch.autograd.grad(out, [x, *ps], g)]


def pure(m):
    "The layer as a function of input and parameters: its buffers are the same at each call."
    names, bufs = [k for k, _ in m.named_parameters()], {k: v.clone() for k, v in m.named_buffers()}
    return lambda x, *ps: functional_call(m, {**dict(zip(names, ps)), **{k: v.clone() for k, v in bufs.items()}}, (x,))


# ---- gradients


@every
@pytest.mark.parametrize('train', [True, False])
def test_gradcheck(name, train):
    "First and second derivatives, in both modes, of a layer that has already seen batches."
    m, shape = make(name)
    f = pure(warm(m, shape).train(train))
    args = [data(shape).requires_grad_(), *(p.detach().clone().requires_grad_() for p in m.parameters())]
    torch.autograd.gradcheck(f, args)
    torch.autograd.gradgradcheck(f, args)


@every
@pytest.mark.parametrize('train', [True, False])
def test_forward_mode(name, train):
    "Forward-mode derivatives (`torch.func.jvp`) too, and hence `torch.func.hessian`."
    m, shape = make(name)
    f = pure(warm(m, shape).train(train))
    args = [data(shape).requires_grad_(), *(p.detach().clone().requires_grad_() for p in m.parameters())]
    torch.autograd.gradcheck(f, args, check_forward_ad=True, check_backward_ad=False)


# ---- PyTorch's own database of module inputs


def database():
    if 'expecttest' not in sys.modules:  # PyTorch's test utilities import it; nothing here uses it
        sys.modules['expecttest'] = types.SimpleNamespace(TestCase=unittest.TestCase)
    from torch.testing._internal import common_modules as cm

    ours = {
        nn.BatchNorm1d: BatchNorm,
        nn.BatchNorm2d: BatchNorm,
        nn.BatchNorm3d: BatchNorm,
        nn.GroupNorm: GroupNorm,
        nn.LayerNorm: LayerNorm,
        nn.RMSNorm: RMSNorm,
        nn.InstanceNorm1d: InstanceNorm,
        nn.InstanceNorm2d: InstanceNorm,
        nn.InstanceNorm3d: InstanceNorm,
    }
    return cm, [(i, ours[i.module_cls]) for i in cm.module_db if i.module_cls in ours]


def test_module_database():
    "Every input that PyTorch tests its own norms with gives the same with ours, in both modes and two dtypes."
    cm, infos = database()
    assert len(infos) == 9
    done = 0
    for (info, ours), dtype, train in itertools.product(infos, (torch.float32, F64), (True, False)):
        for mi in info.module_inputs_func(info, 'cpu', dtype, True, train):
            c, x = mi.constructor_input, mi.forward_input.args[0]
            ms = [cls(*c.args, **c.kwargs).to(dtype).train(train) for cls in (ours, info.module_cls)]
            for _ in range(2):
                close(grads(ms[0], x), grads(ms[1], x), 1e-9 if dtype == F64 else 1e-4)
                close(ms[0].state_dict(), ms[1].state_dict(), 1e-9 if dtype == F64 else 1e-5)
                done += 1
            if mi.reference_fn and x.numel() and dtype == torch.float32:
                close(ms[0](x), mi.reference_fn(ms[0], x), 1e-4)
    assert done > 350


def test_module_database_errors():
    "And every input that PyTorch expects its norms to refuse, at the same moment, with the same error."
    cm, infos = database()
    done = 0
    for info, ours in infos:
        for ei in (
            info.module_error_inputs_func(info, 'cpu', torch.float32, False, True)
            if info.module_error_inputs_func
            else []
        ):
            c, f = ei.module_error_input.constructor_input, ei.module_error_input.forward_input
            if ei.error_on == cm.ModuleErrorEnum.CONSTRUCTION_ERROR:
                with pytest.raises(ei.error_type, match=ei.error_regex):
                    ours(*c.args, **c.kwargs)
            else:
                m = ours(*c.args, **c.kwargs)
                with pytest.raises(ei.error_type, match=ei.error_regex):
                    m(*f.args)
            done += 1
    if not done and not NEW_BIAS:
        pytest.skip('this torch lists no inputs that its norms refuse')
    assert done >= 8


# ---- the surface


@paired
def test_signature_and_repr(name):
    "The same parameters, defaults and kinds; the same `extra_repr`."
    ours, ref, *_ = LAYERS[name]
    has_bias = 'bias' in inspect.signature(ref).parameters
    sig = lambda c: [
        (p.name, p.default, p.kind) for p in inspect.signature(c).parameters.values() if has_bias or p.name != 'bias'
    ]
    text = lambda m: re.sub(r', bias=(True|False)', '', m.extra_repr()) if not NEW_BIAS else m.extra_repr()
    assert sig(ours) == sig(ref)
    assert text(make(name)[0]) == text(make(name, theirs=True)[0])
    assert ours.__constants__ == ref.__constants__


@paired
def test_state_dict_both_ways(name):
    "Ours into PyTorch's and back, strictly, mid-training; the versions that old checkpoints are recognized by agree."
    (a, shape), (b, _) = make(name, seed=1), make(name, seed=2, theirs=True)
    warm(a, shape)
    assert list(a.state_dict()) == list(b.state_dict()) and a._version == b._version
    b.load_state_dict(a.state_dict(), strict=True)
    for x in (data(shape, seed=5), data(shape, seed=6)):
        close(grads(a, x), grads(b, x))
    c = make(name, seed=3)[0]
    c.load_state_dict(b.state_dict(), strict=True)
    for train in (False, True):
        close(grads(c.train(train), data(shape)), grads(b.train(train), data(shape)))


def test_old_checkpoint():
    "A checkpoint from before `num_batches_tracked` existed loads, as PyTorch's does."
    for m in (nn.BatchNorm2d(3), BatchNorm(3)):
        sd = m.state_dict()
        del sd['num_batches_tracked'], sd._metadata
        m.load_state_dict(sd, strict=True)
        assert m.num_batches_tracked == 0


@every
def test_copies(name):
    "A deep copy, a pickle and a saved checkpoint, made mid-training, go on exactly as the original does."
    m, shape = make(name)
    warm(m, shape)
    f = io.BytesIO()
    torch.save(m.state_dict(), f)
    f.seek(0)
    loaded = make(name, seed=9)[0]
    loaded.load_state_dict(torch.load(f, weights_only=True))
    others = [copy.deepcopy(m), pickle.loads(pickle.dumps(m)), loaded]
    grads(m, data(shape, seed=50))  # with a graph alive or gone, it is all the same
    for o in others:
        grads(o, data(shape, seed=50))
    for train in (True, False):
        want = grads(m.train(train), data(shape, seed=51))
        for o in others:
            assert_close(grads(o.train(train), data(shape, seed=51)), want, rtol=0, atol=0)
    for o in others:
        assert_close(o.state_dict(), m.state_dict(), rtol=0, atol=0)


@every
def test_buffers_are_detached_state(name):
    "No buffer carries a gradient, so a copy works in the middle of a graph and memory does not grow."
    m, shape = make(name)
    out = m(data(shape).requires_grad_())
    for b in m.buffers():
        assert not b.requires_grad and b.grad_fn is None
    copy.deepcopy(m)
    out.sum().backward()
    m(data(shape, seed=7).requires_grad_()).sum().backward()  # a second step does not reach into the first one's graph


@every
def test_moves(name):
    "`.to(dtype)`, `device=`, `dtype=` and `reset_parameters`, as in any module."
    ours, _, args, kw, shape = LAYERS[name]
    assert all(t.device.type == 'meta' for t in ours(*args, **kw, device='meta').state_dict().values())
    m = ours(*args, **kw, dtype=F64)
    assert {t.dtype for t in m.state_dict().values()} <= {F64, torch.int64}
    fresh = {k: v.clone() for k, v in m.state_dict().items()}
    for p in m.parameters():
        nn.init.normal_(p)
    warm(m, shape).reset_parameters()
    assert_close(dict(m.state_dict()), fresh)


@every
def test_no_device_sync(name):
    "A training step reads no value back from the device, so that a GPU never waits for Python."

    class Reads(TorchDispatchMode):
        n = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            Reads.n += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
            return func(*args, **(kwargs or {}))

    m, shape = make(name)
    with Reads():
        grads(m, data(shape)), grads(m, data(shape)), grads(m.eval(), data(shape))
    assert Reads.n == 0


# ---- torch.compile and torch.export


class Compiled(nn.Module):
    "A module whose forward is compiled, in one graph or not at all."

    def __init__(self, m, **kw):
        super().__init__()
        torch._dynamo.reset()
        self.m, self.f = m, [torch.compile(m, fullgraph=True, **kw)]

    def forward(self, x):
        return self.f[0](x)


def six_steps(m, run, shape):
    "Outputs, gradients and buffers over steps that switch between training and evaluation."
    res = []
    for i, train in enumerate([True, True, True, False, True, False]):
        m.train(train)
        res.append([*grads(run, data(shape, seed=20 + i)), *(b.clone() for b in m.buffers())])
    return res


def guards_see_the_mode():
    "Does a compiled `nn.BatchNorm2d` notice `eval()`? With torch 2.11 on Python 3.13.0 it does not."
    m, x = nn.BatchNorm2d(3), torch.randn(4, 3, 5, 5)
    run = Compiled(m, backend='eager')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        m.train(), run(x), m.eval()
        return torch.allclose(run(x), m(x))


@pytest.fixture(scope='module')
def modes_seen():
    if not guards_see_the_mode():
        pytest.skip("this torch's guards on this Python miss `eval()`: nn.BatchNorm2d fails alike")


@every
def test_compile_training(name):
    "The gradients, outputs and buffers of eager float64 at each of six training steps, whatever torch's guards see."
    (m, shape), twin = make(name), make(name)[0]
    run = Compiled(twin, backend='aot_eager')
    for i in range(6):
        x = data(shape, seed=20 + i)
        close([*grads(run, x), *twin.buffers()], [*grads(m, x), *m.buffers()])


@every
def test_compile(name, modes_seen):
    "One graph, without a break, and at each of six steps the outputs, gradients and buffers of eager float64."
    (m, shape), twin = make(name), make(name)[0]
    close(six_steps(twin, Compiled(twin, backend='aot_eager'), shape), six_steps(m, m, shape))


@pytest.mark.parametrize('name', ['layer', 'rms', 'batch', 'instance_state', 'group', 'running'])
def test_compile_inductor(name, modes_seen):
    "The same with generated code, which fuses the elementwise passes."
    (m, shape), twin = make(name), make(name)[0]
    close(six_steps(twin, Compiled(twin), shape), six_steps(m, m, shape))


@pytest.mark.parametrize('name', ['batch', 'instance_state', 'group', 'running'])
def test_compile_changing_batch(name):
    "A batch size that changes from step to step compiles too, from one example up."
    (m, shape), twin = make(name), make(name)[0]
    run = Compiled(twin, backend='aot_eager')
    for i, n in enumerate([4, 2, 7, 1, 3, 16]):
        x = data((n, *shape[1:]), seed=i)
        close(grads(run, x), grads(m, x))
    close(twin.state_dict(), m.state_dict())


@every
@pytest.mark.parametrize('train,strict', [(True, False), (False, False), (True, True)])
def test_export(name, train, strict):
    "`torch.export` takes the layer whole, and the exported program keeps its state as the layer does."
    m, shape = make(name)
    m.train(train)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        ep = torch.export.export(copy.deepcopy(m), (data(shape),), strict=strict).module()
    for i in range(2):
        close(ep(data(shape, seed=i)), m(data(shape, seed=i)))
    kept, state = dict(ep.named_buffers()), dict(m.named_buffers())
    assert kept.keys() == state.keys() or strict  # strict export drops a buffer that is never read
    close(kept, {k: state[k] for k in kept})


# ---- torch.func


@every
def test_functional_call(name):
    "Parameters and buffers from outside; the buffers given are the ones updated, as in `torch.nn`."
    m, shape = make(name)
    other = make(name, seed=4)[0]
    ps, bs = dict(other.named_parameters()), {k: v.clone() for k, v in other.named_buffers()}
    before = {k: v.clone() for k, v in m.state_dict().items()}
    for i in range(2):
        close(functional_call(m, (ps, bs), (data(shape, seed=i),)), other(data(shape, seed=i)))
    close(bs, dict(other.named_buffers()))
    assert_close(dict(m.state_dict()), before, rtol=0, atol=0)


@every
def test_vmap_of_models(name):
    "Four models trained as one: stacked parameters, stacked buffers, each as if it were alone."
    ms = [make(name, seed=i)[0] for i in range(4)]
    shape = make(name)[1]
    params, bufs = stack_module_state(ms)
    base = copy.deepcopy(ms[0]).to('meta')

    def loss(p, b, x):
        return functional_call(base, (p, b), (x,)).pow(3).mean()

    for i in range(3):
        x = torch.stack([data(shape, seed=10 * i + j) for j in range(4)])
        got = vmap(torch.func.grad(loss, argnums=(0, 2)))(params, bufs, x)
        for j, m in enumerate(ms):
            xj = x[j].clone().requires_grad_()
            want = torch.autograd.grad(m(xj).pow(3).mean(), [xj, *m.parameters()])
            close(got[1][j], want[0])
            for (k, _), w in zip(m.named_parameters(), want[1:]):
                close(got[0][k][j], w)
    for j, m in enumerate(ms):
        close({k: v[j] for k, v in bufs.items()}, dict(m.named_buffers()))


@every
def test_per_example_gradients(name):
    "`vmap(grad)` over inputs, in evaluation: one gradient for each example."
    m, shape = make(name)
    warm(m, shape).eval()
    one = lambda x: functional_call(m, {}, (x[None],)).pow(2).sum()
    x = data(shape)
    xs = x.clone().requires_grad_()
    close(vmap(torch.func.grad(one))(x), torch.autograd.grad(sum(one(r) for r in xs), xs)[0])


# ---- memory format, autocast, a whole network


@pytest.mark.parametrize('name', ['layer', 'batch', 'batch_volume', 'instance', 'instance_state', 'group', 'running'])
@pytest.mark.parametrize('train', [True, False])
def test_channels_last(name, train):
    "channels_last in, channels_last out, forward and backward, with the same values."
    m, shape = make(name)
    fmt = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    warm(m, shape).train(train)
    x = data(shape)
    want = grads(copy.deepcopy(m), x)
    got = grads(m, x.contiguous(memory_format=fmt))
    close(got, want)
    assert got[0].is_contiguous(memory_format=fmt) and got[1].is_contiguous(memory_format=fmt)


@every
def test_autocast(name):
    "Under autocast a bfloat16 activation comes back as bfloat16, near float32's, and statistics stay float32."
    (m, shape), ref = make(name, torch.float32), make(name, torch.float32)[0]
    x = data(shape, torch.bfloat16)
    with torch.autocast('cpu', torch.bfloat16):
        out, *gs = grads(m, x)
    assert out.dtype == gs[0].dtype == torch.bfloat16
    assert {t.dtype for t in [*gs[1:], *m.buffers()]} <= {torch.float32, torch.int64}
    want = grads(ref, x.float())
    for a, b in zip([out, *gs], want):
        assert_close(a.float(), b, rtol=0.02, atol=0.02 * max(1.0, b.abs().max().item()))
    for a, b in zip(m.buffers(), ref.buffers()):
        assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_resnet18():
    "torchvision's ResNet with our BatchNorm in every place: the checkpoint loads, ten steps are the same."
    from torchvision.models import resnet18

    torch.manual_seed(0)
    theirs = resnet18(num_classes=10, norm_layer=nn.BatchNorm2d).double()
    ours = resnet18(num_classes=10, norm_layer=BatchNorm).double()
    assert {type(m) for m in ours.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)} == {
        BatchNorm
    }  # tools see them
    ours.load_state_dict(theirs.state_dict(), strict=True)
    # 64 x 64, so that the last map is 2 x 2. At 32 x 32 it is 1 x 1, four values a channel, and training is chaotic:
    # an input changed by 1e-15 changes PyTorch's own parameters by .2 within these ten steps.
    x, y = data((4, 3, 64, 64)), torch.tensor([0, 3, 7, 9])
    for train in (False, True):
        close(ours.train(train)(x), theirs.train(train)(x), 1e-10)
    for m in (ours, theirs):
        opt = torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9)
        for i in range(10):
            nn.functional.cross_entropy(m(data((4, 3, 64, 64), seed=i)), y).backward()
            opt.step()
            opt.zero_grad()
    close(ours.state_dict(), theirs.state_dict(), 1e-10)
    close(ours.eval()(x), theirs.eval()(x), 1e-10)


# ---- bad arguments, and the remedy in the message


@pytest.mark.parametrize(
    'make_error, error, words',
    [
        (lambda: GroupNorm(4, 6), ValueError, r'num_channels( \(6\))? must be divisible by num_groups( \(4\))?'),
        (lambda: BatchNorm(3)(torch.ones(1, 3)), ValueError, 'more than 1 value per channel'),
        (lambda: InstanceNorm(3)(torch.ones(2, 3, 1, 1)), ValueError, 'more than 1 spatial element'),
        (lambda: BatchNorm(3, eps=-1e-5)(torch.ones(4, 3)), ValueError, 'eps must be positive'),
        (lambda: BatchNorm(3)(torch.ones(4, 5)), RuntimeError, '3.*5|5.*3'),
        (lambda: RunningBatchNorm(3)(torch.ones(4, 5)), RuntimeError, '3.*5|5.*3'),
        (lambda: InstanceNorm(3, affine=True)(torch.ones(4, 5, 2)), ValueError, '3.*5|5.*3'),
        (lambda: GroupNorm(2, 4)(torch.ones(4, 6)), RuntimeError, '4.*6|6.*4'),
        (lambda: LayerNorm(4)(torch.ones(3, 5)), RuntimeError, '4.*5|5.*4'),
        (lambda: RMSNorm(4)(torch.ones(3, 5)), RuntimeError, '4.*5|5.*4'),
        (lambda: BatchNorm(3)(torch.ones(3)), ValueError, '(?i)expected 2-?D'),
    ],
)
def test_errors_say_what_was_wrong(make_error, error, words):
    with pytest.raises(error, match=words):
        make_error()


# ---- RunningBatchNorm


def running(dtype=torch.float32, n=3, **kw):
    return RunningBatchNorm(n, **kw).to(dtype)


def test_running_far_from_zero():
    "Mean 3000, standard deviation 1, in float32: right to 1e-3 at every step, in training and after it."
    m32, m64 = running(), running(F64)
    for i in range(40):
        x = torch.randn((8, 3, 5, 5), generator=torch.Generator().manual_seed(i)) + 3000
        a, b = m32(x), m64(x.double())
        assert_close(a, b.float(), rtol=0, atol=1e-3)
    assert_close(m32.eval()(x), m64.eval()(x.double()).float(), rtol=0, atol=1e-3)
    assert 0.8 < m32(x).std() < 1.2


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('params', ['float32', 'same'])
def test_running_half(dtype, params):
    "Half precision: finite where the square overflows, near to float64, and in the input's dtype."
    m, ref = running(torch.float32 if params == 'float32' else dtype), running(F64)
    for i, (mean, sd) in enumerate([(0, 1), (300, 10), (3000, 30), (0, 300)]):
        x = (torch.randn((8, 3, 5, 5), generator=torch.Generator().manual_seed(i)) * sd + mean).to(dtype)
        got, want = grads(m, x), grads(ref, x.double())
        assert got[0].dtype == got[1].dtype == dtype and all(t.isfinite().all() for t in [*got, *m.buffers()])
        if params == 'float32':
            assert_close(got[0].double(), want[0], rtol=0.02, atol=0.02)


def test_running_any_batch_size():
    "Every batch size from one example, in any order, of any rank; a constant channel; a single value for each channel."
    for shape in ((3,), (3, 1), (3, 4), (3, 2, 2), (3, 1, 1), (3, 2, 1, 2)):
        m = running()
        for i, n in enumerate([1, 2, 1, 64, 3, 1, 512]):
            x = data((n, *shape), torch.float32, seed=i)
            x[:, 0] = 5.0
            assert all(t.isfinite().all() for t in grads(m, x)), (n, shape)
        assert all(t.isfinite().all() for t in [*grads(m.eval(), x), *m.buffers()])


def test_running_before_the_first_batch():
    "Evaluation before any training is defined, and leaves no trace."
    m = running()
    before = copy.deepcopy(m.state_dict())
    assert all(t.isfinite().all() for t in grads(m.eval(), data((4, 3, 2, 2), torch.float32)))
    assert_close(m.state_dict(), before, rtol=0, atol=0)


def test_running_eval_backward():
    "The gradient in evaluation is that of fixed statistics, again and again, and right after a training step."
    m = running(F64)
    m(data((4, 3, 2, 2)).requires_grad_())  # its graph is dropped without a backward
    for i in range(3):
        x = data((4, 3, 2, 2), seed=i).requires_grad_()
        m.eval()(x).sum().backward()
        slope = m(x.detach() + 1.0) - m(x.detach())
        close(x.grad, slope)


def test_running_keeps_the_batchs_share():
    "The gradient through this batch's share of the statistics is kept: it differs from that of fixed statistics."
    m = running(F64)
    for i in range(5):
        m(data((4, 3, 2, 2), seed=i))
    full = grads(copy.deepcopy(m), data((4, 3, 2, 2), seed=9))[1]
    fixed = grads(copy.deepcopy(m).eval(), data((4, 3, 2, 2), seed=9))[1]
    assert (full - fixed).abs().max() > 1e-3


def test_running_trains_and_evaluates_alike():
    "After many small batches of one distribution training and evaluation nearly agree, unlike batch norm's."
    m, bn = running(), BatchNorm(3)
    for i in range(400):
        x = data((2, 3, 2, 2), torch.float32, seed=i)
        m(x), bn(x)
    gap = lambda m: (m.train()(x) - m.eval()(x)).abs().mean()
    assert gap(m) < 0.5 * gap(bn)


@pytest.mark.parametrize('reentrant', [False, True])
def test_running_checkpointed(reentrant):
    "Activation checkpointing runs forward again: gradients and pool are those of the plain step, twice in a row."

    def steps(run):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 2), running(n=4), nn.ReLU(), nn.Conv2d(4, 4, 2), running(n=4)).to(F64)
        res = []
        for i in range(3):
            x = data((4, 3, 4, 4), seed=i).requires_grad_()
            y = run(net, x)
            res += [y.detach(), *torch.autograd.grad(y.pow(3).sum(), [x])] if not reentrant else [y.detach()]
            run(net, x.detach().requires_grad_()).pow(3).sum().backward()
        return [*res, *(p.grad for p in net.parameters()), *net.state_dict().values()]

    plain = steps(lambda net, x: net(x))
    for a, b in zip(steps(lambda net, x: torch.utils.checkpoint.checkpoint(net, x, use_reentrant=reentrant)), plain):
        close(a, b)


@pytest.mark.parametrize('n, most', [(1, 11), (2, 11), (4, 12), (8, 14)])
def test_running_gradient_of_a_nearly_constant_batch(n, most):
    "Few images may differ by little by chance: their gradient is multiplied by 10 or so, not by 316."
    x = (1e-4 * data((n, 3, 5, 5))).requires_grad_()
    g = data(x.shape, seed=2)
    assert torch.autograd.grad(running(F64)(x), x, g)[0].norm() < most * g.norm()
    a, b = running(F64), nn.BatchNorm2d(3).double()
    close(a(data((n, 3, 5, 5))), b(data((n, 3, 5, 5))))
    full = running(F64)
    for i in range(200):
        full(0.02 * data((2, 3, 5, 5), seed=i))  # a full pool of variance .0016 has no floor
    assert 0.8 < full(0.02 * data((2, 3, 5, 5), seed=1)).std() < 1.2


def test_running_loads_statistics_without_a_count():
    "They stand for a full pool; those of a batch norm that saw no batch stand for nothing."
    bn, m = nn.BatchNorm2d(3), running()
    m.load_state_dict(bn.state_dict(), strict=True)
    assert m.running_count == 0
    bn(data((4, 3, 2, 2), torch.float32))
    m.load_state_dict(bn.state_dict(), strict=True)
    assert m.running_count == 20 and 'running_count' not in bn.state_dict()
    close(m.running_var, bn.running_var)
    m.load_state_dict({k: v for k, v in bn.state_dict().items() if 'batches' not in k})
    assert m.running_count == 20
    assert not bn.load_state_dict(m.state_dict(), strict=False).missing_keys


def test_torch_tools():
    "`update_bn`, `convert_sync_batchnorm` and `isinstance` see ours; the pool and frozen statistics are left alone."
    from torch.optim.swa_utils import update_bn
    from course_lib.norms.convert import FrozenBatchNorm

    x = [data((8, 3, 4, 4), torch.float32, seed=i) for i in range(3)]
    for cls, seen in ((BatchNorm, True), (RunningBatchNorm, False), (FrozenBatchNorm, False)):
        net, ref = nn.Sequential(cls(3)), nn.Sequential(nn.BatchNorm2d(3))
        net[0].running_var.fill_(7)
        assert isinstance(net[0], nn.modules.batchnorm._BatchNorm) == seen
        assert (type(nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net))[0]) is nn.SyncBatchNorm) == seen
        update_bn(x, net), update_bn(x, ref)
        if seen:
            close(dict(net.named_buffers()), dict(ref.named_buffers()), 1e-5)
        if cls is FrozenBatchNorm:
            assert (net[0].running_var == 7).all()
    assert (
        isinstance(LayerNorm(3), nn.LayerNorm)
        and isinstance(GroupNorm(1, 3), nn.GroupNorm)
        and isinstance(RMSNorm(3), nn.RMSNorm)
    )


@paired
def test_keyword(name):
    "`norm(input=x)`, as PyTorch names it (RMSNorm: `x`)."
    m, shape = make(name)
    word = 'x' if name.startswith('rms') else 'input'
    close(copy.deepcopy(m)(**{word: data(shape)}), make(name, theirs=True)[0](**{word: data(shape)}))


def test_running_one_graph():
    "`torch._dynamo` counts one graph and no break."
    torch._dynamo.reset()
    why = torch._dynamo.explain(running())(data((4, 3, 2, 2), torch.float32))
    assert (why.graph_count, why.graph_break_count) == (1, 0)


@pytest.mark.parametrize('name', STATE)
def test_vmap_has_rules(name):
    "No operation of a training step falls back to one model after the other under `vmap`: PyTorch would warn of it."
    ms, shape = [make(name, seed=i)[0] for i in range(2)], make(name)[1]
    params, bufs = stack_module_state(ms)
    base = copy.deepcopy(ms[0]).to('meta')
    loss = lambda p, b, x: functional_call(base, (p, b), (x,)).pow(2).mean()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        vmap(torch.func.grad(loss))(params, bufs, torch.stack([data(shape, seed=i) for i in range(2)]))
        with pytest.raises(UserWarning, match='batching rule'):
            vmap(lambda a, b: a.lerp_(b, 0.1))(torch.zeros(2, 3), torch.ones(2, 3))


def test_instance_norm_casts_its_buffers():
    "Without a weight PyTorch's instance norm takes float64 beside float32 buffers; batch norm does not"
    theirs, ours = (make(2, track_running_stats=True) for make in (nn.InstanceNorm2d, InstanceNorm))
    try:
        theirs(torch.randn(3, 2, 4, 4).double())
    except RuntimeError as e:
        pytest.skip(f'here it does not: {e}')
    theirs.reset_running_stats()
    for training in (True, True, False):
        x = torch.randn(3, 2, 4, 4).double()
        assert_close(ours.train(training)(x), theirs.train(training)(x))
        assert_close(ours.running_var, theirs.running_var)
    for make in (nn.BatchNorm2d, BatchNorm):
        with pytest.raises(RuntimeError):
            make(2, affine=False)(x)


def test_instance_norm_of_an_empty_map_of_one():
    "(0, 1) is one image of no channel and one position: refused as `nn.InstanceNorm1d` does"
    for make in (nn.InstanceNorm1d, InstanceNorm):
        with pytest.raises(ValueError, match='more than 1 spatial element'):
            make(1)(torch.zeros(0, 1))


@pytest.mark.parametrize(
    'ours, theirs, shape',
    [
        (LayerNorm(3), nn.LayerNorm(3), (0, 3)),
        (LayerNorm((3, 4, 4)), nn.LayerNorm((3, 4, 4)), (0, 3, 4, 4)),
        (RMSNorm(3), nn.RMSNorm(3), (0, 3)),
        (GroupNorm(3, 3), nn.GroupNorm(3, 3), (0, 3, 4, 4)),
        (InstanceNorm(3, affine=True), nn.InstanceNorm2d(3), (0, 3, 4, 4)),  # with affine PyTorch's raises IndexError
        (BatchNorm(3), nn.BatchNorm2d(3), (0, 3, 4, 4)),
        (RunningBatchNorm(3), nn.BatchNorm2d(3), (0, 3, 4, 4)),
    ],
)
@pytest.mark.filterwarnings('error')
def test_empty_batch_without_a_warning(ours, theirs, shape):
    x = torch.zeros(shape, requires_grad=True)
    out = ours(x)
    assert out.shape == theirs(x).shape and out.dtype == x.dtype
    out.sum().backward()
    for p in ours.parameters():
        assert p.grad.eq(0).all()
