"Conversion of the norms of torchvision's models, with random weights: everything else stays what it was."

import copy
import pytest, torch
from torch import nn
import torchvision.models as tv
from course_lib.norms import convert as C

torch.set_num_threads(1)
MODELS = dict(
    resnet18=(lambda: tv.resnet18(), 64),
    mobilenet_v3_small=(lambda: tv.mobilenet_v3_small(), 64),
    densenet121=(lambda: tv.densenet121(), 64),
    efficientnet_b0=(lambda: tv.efficientnet_b0(), 64),
    deeplabv3_resnet50=(
        lambda: tv.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, aux_loss=True),
        48,
    ),
    googlenet=(lambda: tv.googlenet(weights=None, init_weights=False), 96),
    vit=(lambda: tv.VisionTransformer(32, 16, 2, 2, 24, 48), 32),
)


@pytest.fixture(scope='module', params=MODELS)
def case(request):
    torch.manual_seed(0)
    build, size = MODELS[request.param]
    model = build()
    for m in model.modules():  # norms as after training, so that nothing hides behind ones and zeros
        for n in ('weight', 'running_var'):
            if C.norm_kind(m) and getattr(m, n, None) is not None:
                getattr(m, n).data.uniform_(0.5, 1.5)
        for n in ('bias', 'running_mean'):
            if C.norm_kind(m) and getattr(m, n, None) is not None:
                getattr(m, n).data.normal_(0, 0.2)
    return request.param, model, torch.randn(2, 3, size, size)


def outputs(y):
    "All tensors in a model's output"
    if isinstance(y, torch.Tensor):
        return [y]
    return [t for o in (y.values() if isinstance(y, dict) else y) if o is not None for t in outputs(o)]


def skeleton(model):
    "Everything but the norms: names, classes, settings, modes, `requires_grad`, parameters and buffers, in order"
    kept = [
        (n, type(m), m.extra_repr(), m.training, [p.requires_grad for p in m.parameters(recurse=False)])
        for n, m in model.named_modules()
        if C.norm_kind(m) is None and not isinstance(m, nn.Identity)
    ]
    inside = {f'{n}.' for n, m in model.named_modules() if C.norm_kind(m) or isinstance(m, nn.Identity)}
    tensors = {k: v for k, v in model.state_dict().items() if not any(k.startswith(o) for o in inside)}
    return kept, tensors


def assert_same_but_norms(a, b):
    (ka, ta), (kb, tb) = skeleton(a), skeleton(b)
    assert ka == kb and list(ta) == list(tb)
    for k in ta:
        assert torch.equal(ta[k], tb[k]), k
    assert {n for n, m in a.named_modules() if C.norm_kind(m)} == {
        n for n, m in b.named_modules() if C.norm_kind(m) or isinstance(m, nn.Identity)
    }


@pytest.mark.parametrize('to', ['group', 'layer', 'instance', 'rms', 'running', 'frozen', 'none'])
def test_nothing_but_the_norms_changes(case, to):
    name, model, x = case
    kinds = ('layer',) if name == 'vit' else ('batch',)
    if name == 'vit' and to not in ('layer', 'rms', 'none'):
        with pytest.raises(ValueError, match='trailing axes'):
            C.convert_norms(model, to, kinds)
        return
    before = {k: v.clone() for k, v in model.state_dict().items()}
    new, rows = C.convert_norms(model, to, kinds, library='course', report=True)
    assert_same_but_norms(model, new)
    assert len(rows) == len(C.norm_layers(model, kinds)) and not any(r['note'].startswith('left') for r in rows)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())  # the original is untouched
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in new.parameters()}
    if to == 'instance':
        new.eval()
    if (
        to == 'instance' and name == 'deeplabv3_resnet50'
    ):  # it normalizes a 1x1 map, which instance norm refuses, as PyTorch's does
        with pytest.raises(ValueError, match='more than 1 spatial element'):
            new(x)
        return
    out = outputs(new(x))
    sum(y.square().mean() for y in out).backward()
    for n, p in new.named_parameters():
        if p.requires_grad and 'aux' not in n:
            assert p.grad is not None and p.grad.isfinite().all(), n
    if to not in ('group', 'layer', 'instance'):
        return
    theirs = C.convert_norms(model, to, kinds, library='torch').eval()  # PyTorch's classes compute the same
    assert_same_but_norms(model.eval(), theirs)
    model.train()
    with torch.no_grad():
        for a, b in zip(outputs(new.eval()(x)), outputs(theirs(x))):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * b.abs().max().item())


def test_in_place_changes_the_norms_only(case):
    "Not even copies: every other module and parameter is the same object, under the same name"
    name, model, x = case
    kinds = 'layer' if name == 'vit' else 'batch'
    twin = copy.deepcopy(model)
    before = (
        {n: m for n, m in twin.named_modules() if C.norm_kind(m) != kinds},
        {
            n: p
            for m_n, m in twin.named_modules()
            if C.norm_kind(m) != kinds
            for n, p in m.named_parameters(m_n, recurse=False)
        },
    )
    assert C.convert_norms(twin, 'rms', kinds, library='course', inplace=True) is twin
    after = dict(twin.named_modules()), dict(twin.named_parameters())
    for old, new in zip(before, after):
        assert all(new[n] is o for n, o in old.items())
    assert {C.norm_kind(m) for m in C.norm_layers(twin).values()} == {'rms'}


def test_round_trip_is_exact(case):
    name, model, x = case
    to = kinds = 'layer' if name == 'vit' else 'batch'
    ours = C.convert_norms(model, to, (kinds,), library='course')
    back = C.convert_norms(ours, to, (kinds,), library='torch')
    assert str(back) == str(model)
    assert list(back.state_dict()) == list(model.state_dict()) == list(ours.state_dict())
    for k, v in model.state_dict().items():
        assert torch.equal(v, back.state_dict()[k]), k
    with torch.no_grad():
        for a, b, c in zip(*(outputs(m.eval()(x)) for m in (model, ours, back))):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * a.abs().max().item())
            assert torch.equal(a, c)
    model.train()


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12 * 4, 6),
        nn.BatchNorm1d(6),
    )


X = torch.randn(16, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def test_state_is_carried_over():
    m = net().double()
    for _ in range(3):
        m(X.double() + 1)
    m[1].weight.requires_grad_(False)
    m[4].eval()
    m[4].weight.data.uniform_()
    seen = []
    m[1].register_forward_hook(lambda *a: seen.append(1))
    new = C.convert_norms(m, 'running')
    assert (
        new[1].weight.dtype == torch.float64
        and not new[1].weight.requires_grad
        and not new[4].training
        and new[1].training
    )
    for n in ('running_mean', 'running_var', 'weight', 'bias'):
        torch.testing.assert_close(getattr(new[4], n), getattr(m[4], n), rtol=0, atol=0)
    new(X.double())
    assert seen == [1]


def test_shared_modules_stay_shared():
    bn = nn.BatchNorm2d(8)
    m = nn.Sequential(nn.Conv2d(1, 8, 3), bn, nn.Conv2d(8, 8, 3), bn)
    for inplace in (False, True):
        new = C.convert_norms(m, 'group', inplace=inplace)
        assert new[1] is new[3] and isinstance(new[1], nn.GroupNorm) and (new is m) == inplace


def test_groups():
    assert [C.divide_groups(c) for c in (16, 24, 64, 6, 7, 960, 1)] == [1, 2, 4, 1, 1, 60, 1]
    with pytest.raises(ValueError, match='12 channels cannot be divided into 8'):
        C.convert_norms(net(), 'group', num_groups=8)
    assert C.convert_norms(net(), 'group', num_groups=2)[4].num_groups == 2


@pytest.mark.parametrize(
    'call, said',
    [
        (
            lambda: C.convert_norms(nn.Sequential(nn.Linear(2, 2)), 'group'),
            'has no norm of kind batch; it has none at all',
        ),
        (lambda: C.convert_norms(net(), 'group', kinds=('layer',)), 'it has 3 batch'),
        (lambda: C.convert_norms(net(), 'grup'), 'unknown kind'),
        (lambda: C.convert_norms(net(), 'group', library='jax'), 'library'),
        (lambda: C.convert_norms(nn.BatchNorm2d(2), 'group', inplace=True), 'itself'),
        (lambda: C.convert_norms(C.BatchNorm(3), 'batch'), "library='course'"),
        (lambda: C.freeze_norms(nn.Linear(2, 2)), 'no norm'),
        (lambda: C.fold_norms(nn.Linear(2, 2)), 'no norm'),
        (
            lambda: C.fold_norms(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4))),
            '0: no linear map comes right before it',
        ),
        (lambda: C.fold_norms(nn.Sequential(nn.Linear(4, 4), nn.GroupNorm(2, 4))), 'come from each input'),
        (lambda: C.norm_report(nn.Linear(2, 2), X), 'no norm'),
    ],
)
def test_bad_input(call, said):
    with pytest.raises(ValueError, match=said):
        call()


@pytest.mark.parametrize(
    'call, error',
    [
        (lambda m: C.convert_norms(m, 'group', num_groups=5, inplace=True), ValueError),
        (lambda m: C.convert_norms(m, 'layer', 'rms', inplace=True), ValueError),
        (lambda m: C.convert_norms(m, 'no', inplace=True), ValueError),
        (lambda m: C.fold_norms(C.convert_norms(m, 'group', num_groups=2)), ValueError),
        (lambda m: C.freeze_norms(m, ['layer'], affine=True), ValueError),
        (lambda m: C.norm_report(m, dict(image=X)), TypeError),
        (lambda m: C.norm_report(m, X[:, :, :5]), RuntimeError),
        (lambda m: C.recalibrate(m, [], progress=False), ValueError),
    ],
)
def test_what_is_refused_leaves_the_model_as_it_was(call, error):
    m = net()
    m(X)
    m[4].eval()

    def look():
        return [(n, id(o), o.training, len(o._forward_pre_hooks)) for n, o in m.named_modules()], [
            (id(p), p.requires_grad) for p in m.parameters()
        ]

    before, values = look(), {k: v.clone() for k, v in m.state_dict().items()}
    with pytest.raises(error):
        call(m)
    assert look() == before and all(torch.equal(v, m.state_dict()[k]) for k, v in values.items())


def test_lazy_norms_are_named():
    with pytest.raises(ValueError, match='none at all; 0 is lazy: pass a batch'):
        C.convert_norms(nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d()), 'group')


def test_freezing():
    m = net()
    m(X)
    old = [b.clone() for b in m.buffers()]
    with C.freeze_norms(m, affine=True):
        m.train()
        m(X + 1).sum().backward()
        assert all(torch.equal(a, b) for a, b in zip(old, m.buffers()))
        assert m[1].weight.grad is None and m[0].weight.grad is not None
        twin = copy.deepcopy(m).train()
        twin(X + 2)
        assert all(torch.equal(a, b) for a, b in zip(old, twin.buffers()))
    m.train()
    m(X + 1)
    assert not torch.equal(old[0], next(m.buffers())) and m[1].weight.requires_grad


def as_one_batch(model, data):
    "The reference: one training pass over everything, whose statistics replace the running ones"
    ref = copy.deepcopy(model).double().train()
    for m in C.norm_layers(ref, ('batch',)).values():
        m.momentum = 1.0
    ref(torch.cat(data).double())
    return {k: v for k, v in ref.state_dict().items() if 'running' in k}


def test_recalibration_equals_one_pass():
    m = net().double()
    data = [t.double() for t in (X * 3 + 1).split([5, 1, 7, 3])]
    want = as_one_batch(m, data)
    m[2].train(False)
    done = C.recalibrate(m, [(t, None) for t in data], progress=False)
    assert done == [m[1], m[4], m[8]] and m.training and not m[2].training
    for k, v in want.items():
        torch.testing.assert_close(m.state_dict()[k], v, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('progress', [True, False])
def test_recalibration_shows_its_progress(progress, capsys):
    C.recalibrate(net(), [X], progress=progress)
    assert ('recalibrate' in capsys.readouterr().err) == progress


def test_recalibration_from_a_loader_of_float32_against_float64():
    "Batches of any sizes from a shuffling `DataLoader`; the reference is one pass in float64 over all of it"
    m, data = net(), torch.randn(70, 1, 6, 6, generator=torch.Generator().manual_seed(2)) * 3 + 1
    want = as_one_batch(m, [data])
    C.recalibrate(
        m,
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(data, torch.zeros(70)), 16, shuffle=True),
        progress=False,
    )
    for k, v in want.items():
        torch.testing.assert_close(m.state_dict()[k].double(), v, rtol=1e-5, atol=1e-6)


def test_recalibration_of_a_residual_net():
    torch.manual_seed(0)
    m = tv.resnet18().double()
    data = [torch.randn(n, 3, 40, 40).double() * 2 + 1 for n in (3, 2, 4)]
    want = as_one_batch(m, data)
    C.recalibrate(m, data, progress=False)
    for k, v in want.items():
        torch.testing.assert_close(m.state_dict()[k], v, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    'batches, error, said',
    [
        ([], ValueError, 'empty'),
        ([dict(image=X)], TypeError, 'dict'),
        (iter([X]), TypeError, 'not an iterator'),
        ([X, 'x'], TypeError, 'str'),
        ([X[:, :, :5]], RuntimeError, 'mat1'),
    ],
)
def test_recalibration_that_fails_changes_nothing(batches, error, said):
    m = net()
    m(X)
    old = {k: v.clone() for k, v in m.state_dict().items()}
    with pytest.raises(error, match=said):
        C.recalibrate(m, batches, progress=False)
    assert all(torch.equal(v, m.state_dict()[k]) for k, v in old.items()) and m.training


@pytest.mark.parametrize('library', ['torch', 'course'])
@pytest.mark.parametrize('name', ['resnet18', 'mobilenet_v3_small', 'efficientnet_b0', 'googlenet'])
def test_folding(name, library):
    torch.manual_seed(0)
    m = MODELS[name][0]()
    x = torch.randn(2, 3, MODELS[name][1], MODELS[name][1])
    with torch.no_grad():
        for _ in range(2):
            m(x * 2 + 1)
        m = C.convert_norms(m, 'batch', library=library).eval()
        f = C.fold_norms(m, strict=name != 'googlenet')  # googlenet's auxiliary heads do not run in evaluation
        want = copy.deepcopy(m).double()(x.double())
        assert ((f(x) - want).abs().max() / want.abs().max()) < 1e-5
        f64 = C.fold_norms(copy.deepcopy(m).double(), strict=name != 'googlenet')
        assert ((f64(x.double()) - want).abs().max() / want.abs().max()) < 1e-12
    assert not any(C.norm_kind(o) == 'batch' for n, o in f.named_modules() if 'aux' not in n)


def test_folding_linear_transposed_and_bias():
    torch.manual_seed(0)
    m = nn.Sequential(
        nn.ConvTranspose2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(4 * 8 * 8, 5),
        nn.BatchNorm1d(5, affine=False),
    )
    for _ in range(3):
        m(X + 1)
    f = C.fold_norms(m)
    m.eval()
    torch.testing.assert_close(f(X), m(X), rtol=1e-4, atol=1e-5)
    assert isinstance(f[1], nn.Identity) and isinstance(f[4], nn.Identity) and isinstance(m[1], nn.BatchNorm2d)


class Branchy(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(self.lin(x)) if x.sum() > 0 else x


class ReadTwice(Branchy):
    def forward(self, x):
        y = self.lin(x)
        return self.norm(y) + y


@pytest.mark.parametrize('model, said', [(Branchy, 'cannot be traced'), (ReadTwice, 'also read elsewhere')])
def test_folding_refuses(model, said):
    with pytest.raises(ValueError, match=said):
        C.fold_norms(model())


def test_report():
    m = net()
    for _ in range(50):
        m(X)
    rows = C.norm_report(m, X)
    assert [r['name'] for r in rows] == ['1', '4', '8'] and [r['values'] for r in rows] == [16 * 16, 16 * 4, 16]
    assert rows[0]['gap'] < 0.05 and not rows[0]['warning'] and 'only 16' in rows[2]['warning']
    shifted = C.norm_report(m, X * 3 + 5)
    assert shifted[0]['mean_shift'] > 2 and shifted[0]['var_ratio'] > 4 and shifted[0]['gap'] > 0.5
    assert C.norm_report(C.convert_norms(m, 'group', num_groups=2), X)[0]['gap'] is None


def conv_then(norm):
    return nn.Sequential(nn.Conv2d(1, 8, 3), norm)


@pytest.mark.parametrize(
    'kind, norm',
    [
        ('batch', nn.BatchNorm2d(8, momentum=None, eps=0.1)),
        ('batch', nn.BatchNorm2d(8, affine=False, track_running_stats=False)),
        ('instance', nn.InstanceNorm2d(8)),
        ('instance', nn.InstanceNorm2d(8, affine=True, track_running_stats=True)),
        ('group', nn.GroupNorm(2, 8)),
        ('layer', nn.LayerNorm(4, bias=False)),
        ('rms', nn.RMSNorm(4)),
    ],
)
def test_round_trip_of_each_kind(kind, norm):
    m = conv_then(norm)
    ours = C.convert_norms(m, kind, kind, library='course')
    back = C.convert_norms(ours, kind, kind)
    assert type(ours[1]) is not type(norm) and str(back) == str(m) and vars(back[1]).keys() == vars(norm).keys()
    torch.testing.assert_close(ours(X), back(X))


def test_full_backward_hooks_stay():
    m, seen = conv_then(nn.BatchNorm2d(8)), []
    m[1].register_full_backward_hook(lambda m, gi, go: seen.append(type(m)))
    C.convert_norms(m, 'group')(X).sum().backward()
    assert seen == [nn.GroupNorm]


def test_eps_of_an_rmsnorm_may_be_none():
    m = conv_then(nn.RMSNorm(4))
    assert C.convert_norms(m, 'layer', 'rms')[1].eps == torch.finfo(torch.float32).eps
    assert C.convert_norms(m, 'layer', 'rms')(X).shape == (16, 8, 4, 4)


def test_statistics_that_do_not_exist_are_not_frozen_and_new_ones_are_reported():
    with pytest.raises(ValueError, match='keeps no running statistics'):
        C.convert_norms(conv_then(nn.BatchNorm2d(8, track_running_stats=False)), 'frozen')
    rows = C.convert_norms(conv_then(nn.GroupNorm(2, 8)), 'batch', 'group', report=True)[1]
    assert rows[0]['note'] == 'running statistics are new: recalibrate'


class ChannelsLast(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


@pytest.mark.parametrize('inplace', [False, True])
def test_report_names_what_was_left(inplace):
    m = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.GroupNorm(2, 8), ChannelsLast(4))
    rows = C.convert_norms(m, 'group', report=True, inplace=inplace)[1]
    assert {r['name']: r['note'] for r in rows} == {
        '1': 'lost: running_mean, running_var',
        '2': 'left: kind group was not asked for',
        '3': 'left: kind layer was not asked for',
    }


def test_folding_a_grouped_transposed_convolution():
    torch.manual_seed(0)
    m = nn.Sequential(nn.ConvTranspose2d(4, 8, 3, groups=2), nn.BatchNorm2d(8))
    x = torch.randn(4, 4, 5, 5)
    m(x * 2 + 1)
    torch.testing.assert_close(C.fold_norms(m)(x), m.eval()(x), rtol=1e-4, atol=1e-5)


def test_a_norm_over_another_axis_than_the_linear_maps_is_refused():
    m = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    m(torch.randn(16, 4, 6))
    f = C.fold_norms(m)
    torch.testing.assert_close(f(X[:, 0, 0]), m.eval()(X[:, 0, 0]))
    with pytest.raises(ValueError, match='channels on axis 1, the map has its features on axis 2'):
        f(torch.randn(16, 4, 6))


def test_a_recalibrated_running_norm_keeps_its_statistics_in_training():
    m = C.convert_norms(net(), 'running')
    C.recalibrate(m, [X], 'running', progress=False)
    assert m[1].running_count == 1 / m[1].momentum


# batch norm across processes: a batch norm like any other
import torch.distributed as dist
from course_lib.distributed import SyncBatchNorm, as_sync


def sync_net(ours):
    "A network with moved statistics, and the same one with synchronized norms, in float64"
    plain = net().double()
    plain[4].momentum, plain[1].weight.requires_grad = None, False
    for _ in range(3):
        plain(X.double() * 2 + 1)
    plain[8].eval()
    if ours:
        return plain, C.convert_norms(plain, as_sync)
    return plain, nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(plain))


@pytest.fixture(params=[False, True], ids=['torch', 'ours'])
def synced(request):
    return sync_net(request.param)


@pytest.fixture
def group():
    "This process as a group of one, where PyTorch's SyncBatchNorm refuses to train on a CPU"
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    yield dist.new_group([0])
    dist.destroy_process_group()


def same_model(a, b):
    assert str(a) == str(b) and [m.training for m in a.modules()] == [m.training for m in b.modules()]
    assert [p.requires_grad for p in a.parameters()] == [p.requires_grad for p in b.parameters()]
    torch.testing.assert_close(a.state_dict(), b.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(
        copy.deepcopy(a).eval()(X.double()), copy.deepcopy(b).eval()(X.double()), rtol=1e-12, atol=1e-12
    )


def test_a_synchronized_norm_is_a_batch_norm(synced):
    plain, sync = synced
    assert {type(m) for m in C.norm_layers(sync).values()} <= {SyncBatchNorm, nn.SyncBatchNorm}
    assert list(C.norm_layers(sync, 'batch')) == list(C.norm_layers(plain, 'batch')) == ['1', '4', '8']


@pytest.mark.parametrize('library', ['torch', 'course'])
@pytest.mark.parametrize('to', ['batch', 'group', 'layer', 'instance', 'rms', 'running', 'frozen', 'none'])
@pytest.mark.parametrize('inplace', [False, True])
def test_converting_a_synchronized_norm(synced, to, library, inplace):
    "The result is that of converting the plain batch norm"
    plain, sync = synced
    want, notes = C.convert_norms(plain, to, library=library, report=True)
    got, rows = C.convert_norms(sync, to, library=library, report=True, inplace=inplace)
    same_model(got, want) if to != 'instance' else torch.testing.assert_close(
        got.state_dict(), want.state_dict(), rtol=0, atol=0
    )
    assert [r['name'] for r in rows] == ['1', '4', '8'] and (got is sync) == inplace
    alone = 'batch statistics are those of one process now'
    assert [r['note'] for r in rows] == [alone if to in ('batch', 'running') else r['note'] for r in notes]


def test_tools_on_a_synchronized_norm(synced):
    "Freezing, recalibration, folding and the report do what they do with plain batch norm"
    plain, sync = synced
    x = X.double() * 3 - 1
    same = lambda a, b: torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    near = lambda r: {k: pytest.approx(v, rel=1e-9) if isinstance(v, float) else v for k, v in r.items()}
    assert C.norm_report(plain, x) == [near(r) for r in C.norm_report(sync, x)]
    same(C.fold_norms(sync)(x), copy.deepcopy(plain).eval()(x))
    assert [type(m) for m in C.fold_norms(sync)] == [type(m) for m in C.fold_norms(plain)]
    old = copy.deepcopy(sync.state_dict())
    with C.freeze_norms(sync, affine=True):
        sync.train()(x).sum().backward()
        assert sync[4].weight.grad is None and sync[0].weight.grad is not None
    torch.testing.assert_close(sync.state_dict(), old, rtol=0, atol=0)
    for m in (plain, sync):
        C.recalibrate(m, [x[:5], x[5:]], progress=False)
    same(sync.state_dict(), plain.state_dict())
    assert not torch.equal(sync[1].running_mean, old['1.running_mean'])


@pytest.mark.parametrize('ours', [False, True], ids=['torch', 'ours'])
def test_synchronized_norms_in_a_process_group(group, ours):
    "A group cannot be copied, and PyTorch's layer cannot train here: the tools need neither"
    plain, sync = sync_net(ours)
    for m in C.norm_layers(sync).values():
        m.process_group = group
    x = X.double()
    with pytest.raises(TypeError, match='ProcessGroup'):
        copy.deepcopy(sync)
    if not ours:
        with pytest.raises(ValueError, match='expected input tensor to be on GPU'):
            sync(x)
    assert all(r['gap'] is not None for r in C.norm_report(sync, x))
    torch.testing.assert_close(C.fold_norms(sync)(x), plain.eval()(x), rtol=1e-10, atol=1e-12)
    C.recalibrate(sync, [x], progress=False)
    with C.freeze_norms(sync):
        assert sync.train()(x).isfinite().all()
    assert all(as_sync(m).process_group is group for m in C.norm_layers(sync).values())
    mixed = nn.Sequential(sync, nn.GroupNorm(2, 6))  # a copy that keeps its synchronized norms shares their group
    assert C.convert_norms(mixed, 'none', 'group')[0][1].process_group is group
    back = C.convert_norms(sync, 'batch')
    assert str(back) == str(plain) and back.train()(x).isfinite().all()


def test_only_that_name_counts():
    "A class derived from a batch norm is one, under any name; something else of that name is not synchronized"

    class Activated(nn.BatchNorm2d):
        pass

    class Mine(SyncBatchNorm):
        pass

    Other = type('SyncBatchNorm', (nn.LayerNorm,), {})
    norms = Activated(2), Mine(2), Other(2), nn.SyncBatchNorm(2), SyncBatchNorm(2)
    assert [C.norm_kind(m) for m in norms] == ['batch', 'batch', 'layer', 'batch', 'batch']
    assert [C.is_sync(m) for m in norms] == [False, False, False, True, True]


@pytest.mark.parametrize(
    'call, said',
    [
        (lambda m: C.convert_norms(m, 'group', num_groups=5, inplace=True), 'cannot be divided'),
        (
            lambda m: C.convert_norms(m, 'sync', inplace=True),
            'unknown kind.*see nn.SyncBatchNorm.convert_sync_batchnorm',
        ),
        (lambda m: C.convert_norms(m, 'batch', kinds='layer', inplace=True), 'it has 3 batch'),
        (lambda m: C.recalibrate(m, [], progress=False), 'empty'),
        (lambda m: C.freeze_norms(m, 'group'), 'it has 3 batch'),
    ],
)
def test_what_is_refused_leaves_a_synchronized_model_as_it_was(synced, call, said):
    _, m = synced
    look = lambda: [(n, id(o), o.training, len(o._forward_pre_hooks)) for n, o in m.named_modules()]
    before, state = look(), copy.deepcopy(m.state_dict())
    with pytest.raises(ValueError, match=said):
        call(m)
    assert look() == before
    torch.testing.assert_close(m.state_dict(), state, rtol=0, atol=0)


def test_a_synchronized_norm_without_a_convolution_needs_the_courses_library():
    m = nn.Sequential(nn.SyncBatchNorm(3))
    with pytest.raises(ValueError, match="library='course'"):
        C.convert_norms(m, 'batch')
    assert type(C.convert_norms(m, 'batch', library='course')[0]) is C.BatchNorm


# What people bring: norms derived from norms, modes in any order, compiled and tied models, odd batches
import pickle
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from course_lib.norms import freeze as F_, kinds as K
from course_lib.norms.gap import accuracy_by_mode


class SwishBatchNorm1d(nn.BatchNorm1d):
    "A batch norm with an activation and a dropout in it"

    def __init__(self, size):
        super().__init__(size)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(nn.functional.silu(super().forward(x)))


class Bf16BatchNorm3d(nn.BatchNorm3d):
    "A batch norm that computes in float32 whatever it is given"

    def forward(self, x):
        return super().forward(x.float()).to(x.dtype)


class NoEpsFrozenBatchNorm2d(nn.Module):
    "Frozen batch norm of detection libraries: buffers only, its eps is a number in its code"

    def __init__(self, size, eps):
        super().__init__()
        for n in ('weight', 'running_var'):
            self.register_buffer(n, torch.rand(size) + 0.5)
        for n in ('bias', 'running_mean'):
            self.register_buffer(n, torch.randn(size))
        self.floor = eps

    def forward(self, x):
        mean, scale, bias = (
            t[:, None, None]
            for t in (self.running_mean, self.weight * (self.running_var + self.floor).rsqrt(), self.bias)
        )
        return (x - mean) * scale + bias


def derived():
    "A model, inputs for it, and where its batch norms are"
    linear = nn.Sequential(nn.Linear(5, 6), SwishBatchNorm1d(6), nn.Linear(6, 4), nn.BatchNorm1d(4))
    volume = nn.Sequential(nn.Conv3d(1, 4, 2), Bf16BatchNorm3d(4), nn.Conv3d(4, 2, 2), SyncBatchNorm(2))
    return [(linear, torch.randn(12, 5) * 2 + 1, (1, 3)), (volume, torch.randn(6, 1, 5, 5, 5) * 3 - 1, (1, 3))]


@pytest.mark.parametrize('i', [0, 1])
def test_derived_norms_are_frozen_and_recalibrated(i):
    torch.manual_seed(0)
    m, x, norms = derived()[i]
    with C.freeze_norms(m):
        old = [m[j].running_mean.clone() for j in norms]
        m.train()(x).sum().backward()
        assert all(torch.equal(o, m[j].running_mean) for o, j in zip(old, norms))
    C.recalibrate(m, x.split(5), progress=False)
    seen = m[0](x).transpose(0, 1).flatten(1)
    torch.testing.assert_close(m[1].running_mean, seen.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(m[1].running_var, seen.var(1), rtol=1e-4, atol=1e-5)
    assert [r['kind'] for r in C.norm_report(m, x)] == ['batch', 'batch']


@pytest.mark.parametrize('eps', [1e-5, 1e-3])
def test_a_frozen_norm_without_eps_converts_and_folds_to_what_it_computes(eps):
    torch.manual_seed(0)
    m = nn.Sequential(nn.Conv2d(3, 5, 3), NoEpsFrozenBatchNorm2d(5, eps))
    x = torch.randn(2, 3, 8, 8)
    want = m(x)
    for to in ('batch', 'frozen'):
        torch.testing.assert_close(C.convert_norms(m, to, 'frozen').eval()(x), want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(C.fold_norms(m)(x), want, rtol=1e-4, atol=1e-4)


class T5LikeLayerNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.rand(size)), 1e-4

    def forward(self, hidden):
        return self.weight * hidden * (hidden.square().mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()


class PlusOneRMSNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(size)), 1e-6

    def forward(self, x):
        return (1 + self.weight) * nn.functional.rms_norm(x, x.shape[-1:], eps=self.eps)


def test_rmsnorms_of_language_models():
    "One that computes what nn.RMSNorm does becomes one; one with another scale is named and left"
    m, x = nn.Sequential(nn.Linear(6, 6), T5LikeLayerNorm(6), nn.Linear(6, 6), PlusOneRMSNorm(6)), torch.randn(2, 7, 6)
    new, rows = C.convert_norms(m, 'rms', 'rms', report=True)
    assert type(new[1]) is nn.RMSNorm and 'PlusOneRMSNorm' in rows[1]['note']
    torch.testing.assert_close(new(x), m(x))
    assert [(r['kind'], r['values']) for r in C.norm_report(m, x)] == [('rms', 6)] * 2
    with pytest.raises(ValueError, match='PlusOneRMSNorm'):
        C.convert_norms(nn.Sequential(PlusOneRMSNorm(4)), 'layer', 'rms')


def plain():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3), C.BatchNorm(3))


@pytest.mark.parametrize(
    'steps', ['train undo', 'eval undo', 'train eval undo', 'eval train undo', 'set undo', 'undo eval', 'undo train']
)
@pytest.mark.parametrize('start', [True, False])
def test_no_order_of_calls_leaves_a_norm_in_another_mode_than_its_model(steps, start):
    m = plain().train(start)
    frozen, old = C.freeze_norms(m), [b.clone() for b in m.buffers()]
    for step in steps.split():
        if step == 'undo':
            m(X)
            assert all(torch.equal(a, b) for a, b in zip(old, m.buffers()))
            frozen.undo()
        elif step == 'set':
            for o in m.modules():
                o.training = True
        else:
            getattr(m, step)()
    assert len({o.training for o in m.modules()}) == 1
    m(X)
    assert all(torch.equal(a, b) for a, b in zip(old, m.buffers())) != m.training


def test_undo_gives_each_norm_its_own_mode_back():
    m = net()
    m[4].eval()
    with C.freeze_norms(m, affine=True):
        pass
    assert [m[i].training for i in (1, 4, 8)] == [True, False, True] and m[4].weight.requires_grad


def test_freezes_overlap():
    m = plain()
    a, b = C.freeze_norms(m, affine=True), C.freeze_norms(m, affine=True)
    a.undo()
    a.undo()
    m.train()(X)
    assert not m[1].running_mean.any() and not m[1].weight.requires_grad
    b.undo()
    m(X)
    assert m[1].running_mean.any() and m[1].weight.requires_grad and type(m[1]) is nn.BatchNorm2d


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_of_a_frozen_model_are_frozen(copied):
    m = plain()
    with C.freeze_norms(m):
        twin = copied(m)
    twin.train()(X)
    assert not twin[1].running_mean.any() and F_.is_held(twin[1]) and not F_.is_held(m[1])


@pytest.mark.parametrize(
    'compiled', [lambda m: torch.compile(m, backend='eager'), lambda m: (m.compile(backend='eager'), m)[1]]
)
def test_tools_on_a_compiled_model(compiled):
    m = plain()
    c = compiled(m)
    c(X)
    with C.freeze_norms(c):
        old = m[1].running_mean.clone()
        c.train()
        c(X)
        assert torch.equal(old, m[1].running_mean)
    C.recalibrate(c, [X], progress=False)
    torch.testing.assert_close(m[1].running_mean, m[0](X).mean((0, 2, 3)))
    assert len(C.norm_report(c, X)) == 2
    torch.testing.assert_close(C.fold_norms(c)(X), m.eval()(X), rtol=1e-5, atol=1e-5)
    assert isinstance(C.convert_norms(c, 'group')[1], nn.GroupNorm)


@pytest.mark.parametrize('scripted', [torch.jit.script, lambda m: torch.jit.trace(m, X)])
def test_a_scripted_model_says_that_it_is_too_late(scripted):
    s = scripted(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)).eval())
    for tool in (C.freeze_norms, C.fold_norms, lambda m: C.recalibrate(m, [X]), lambda m: C.norm_report(m, X)):
        with pytest.raises(ValueError, match='before scripting'):
            tool(s)


@pytest.mark.parametrize('shape', [(6, 3, 7), (5, 3, 4, 6)])
def test_instance_norm_tracks_the_mean_over_images(shape):
    x = torch.randn(shape) * torch.rand(shape[0], *(1,) * (len(shape) - 1)) * 4 + 3 * torch.randn(
        shape[0], *(1,) * (len(shape) - 1)
    )
    m = (nn.InstanceNorm1d if len(shape) == 3 else nn.InstanceNorm2d)(3, track_running_stats=True)
    ref = copy.deepcopy(m)
    ref.momentum = 1.0
    ref(x)
    C.recalibrate(m, x.split(2), 'instance', progress=False)
    for n in ('running_mean', 'running_var'):
        torch.testing.assert_close(getattr(m, n), getattr(ref, n), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('where', [0, 1, 2])
def test_empty_batches_do_not_count(where):
    m, batches = net(), [X[:3], X[3:]]
    want = C.recalibrate(copy.deepcopy(m), batches, progress=False)
    got = C.recalibrate(m, [*batches[:where], (X[:0], X[:0]), *batches[where:]], progress=False)
    for a, b in zip(want, got):
        torch.testing.assert_close(a.state_dict(), b.state_dict(), rtol=0, atol=0)


def test_a_norm_that_runs_twice_has_no_one_population():
    bn = nn.BatchNorm2d(1)
    m = nn.Sequential(bn, nn.Conv2d(1, 1, 3), bn)
    with pytest.raises(ValueError, match='runs twice'):
        C.recalibrate(m, [X], progress=False)
    assert not bn.running_mean.any()


def test_a_running_norm_is_recalibrated_to_the_biased_variance():
    m = C.convert_norms(net(), 'running')
    C.recalibrate(m, X.split(4), 'running', progress=False)
    seen = m[0](X).transpose(0, 1).flatten(1)
    torch.testing.assert_close(m[1].running_var, seen.var(1, correction=0), rtol=1e-5, atol=1e-6)
    assert (m[1].running_var - seen.var(1)).abs().max() > 1e-4


def test_inference_mode_leaves_a_model_that_learns():
    m = net()
    with torch.inference_mode():
        C.recalibrate(m, [X.clone()], progress=False)
        g, f = C.convert_norms(m, 'group', num_groups=2), C.fold_norms(m)
    for o in (m, g, f):
        o.train()(X).sum().backward()


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)

    def forward(self, image, more):
        return self.norm(input=self.conv(input=image) + more)


@pytest.mark.parametrize('get', [lambda b: dict(more=b[1], image=b[0]), lambda b: (b[0], b[1])])
def test_several_inputs_and_keywords(get):
    m, batch = Keywords(), (X, 3.0)
    C.recalibrate(m, [batch], get_input=get, progress=False)
    torch.testing.assert_close(m.norm.running_mean, (m.conv(X) + 3).mean((0, 2, 3)))
    assert C.norm_report(m, batch, get_input=get)[0]['gap'] < 0.01
    assert 'norm' in str(pytest.raises(ValueError, C.fold_norms, m).value)


def test_recalibration_under_checkpointing():
    class Block(nn.Sequential):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=False)

    m = nn.Sequential(nn.Conv2d(1, 2, 1), Block(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)))
    C.recalibrate(m, [X], progress=False)
    torch.testing.assert_close(m[1][1].running_mean, m[1][0](m[0](X)).mean((0, 2, 3)))
    with C.freeze_norms(m):
        old = m[1][1].running_mean.clone()
        m.train()(X).sum().backward()
        assert torch.equal(old, m[1][1].running_mean)


@pytest.mark.parametrize('inplace', [False, True])
def test_tied_norms_and_their_hooks(inplace):
    m, seen = plain(), []
    m[1].weight.data.uniform_()
    m.extra = nn.LayerNorm(4)
    m.extra.weight = m[1].weight
    h = m[1].register_forward_pre_hook(lambda *a: seen.append(1))
    new = C.convert_norms(m, 'group', inplace=inplace)
    assert new[1].weight is new.extra.weight and (new[1].weight is m[1].weight) == inplace
    h.remove()
    new[1](torch.randn(2, 4, 3, 3))
    assert len(seen) == (0 if inplace else 1)


@pytest.mark.parametrize('state', ['counter', 'no counter'])
def test_statistics_without_a_counter_are_not_new(state):
    m = plain()
    m(X)
    if state == 'no counter':
        m[1].num_batches_tracked.zero_()
    assert C.convert_norms(m, 'running')[1].running_count == 20
    assert C.convert_norms(plain(), 'running')[1].running_count == 0


def test_folding_refuses_a_norm_behind_two_maps():
    "The norm, not the map, runs twice"

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)

        def forward(self, x):
            return self.norm(self.a(x)) + self.norm(self.b(x))

    with pytest.raises(ValueError, match='more than once'):
        C.fold_norms(Shared())


@pytest.mark.parametrize(
    'wrap', [parametrizations.weight_norm, parametrizations.spectral_norm, nn.utils.weight_norm, nn.utils.spectral_norm]
)
@pytest.mark.parametrize('lin', [lambda: nn.Conv1d(3, 6, 2, groups=3), lambda: nn.ConvTranspose2d(4, 6, 2, groups=2)])
@pytest.mark.filterwarnings('ignore')
def test_folding_through_the_effective_weight(wrap, lin):
    torch.manual_seed(0)
    lin = wrap(lin())
    dims = 1 if isinstance(lin, nn.Conv1d) else 2
    m = nn.Sequential(lin, (nn.BatchNorm1d if dims == 1 else nn.BatchNorm2d)(6))
    x = torch.randn(5, lin.in_channels, *(6,) * dims)
    m(x)
    f = C.fold_norms(m)
    torch.testing.assert_close(f(x), m.eval()(x), rtol=1e-5, atol=1e-5)
    m.train()(x)  # the original still has its parametrization


def test_folding_of_a_convolution_that_computes_by_itself():
    class Padded(nn.Conv2d):
        def forward(self, x):
            return super().forward(nn.functional.pad(x, (1, 1, 1, 1), value=1.0))

    class Quiet(nn.Conv2d):
        "Nothing of its own"

    m = nn.Sequential(Padded(1, 4, 3), nn.BatchNorm2d(4), Quiet(4, 3, 3), nn.BatchNorm2d(3))
    m(X)
    with pytest.raises(ValueError, match='Padded'):
        C.fold_norms(m)
    f = C.fold_norms(m, strict=False)
    assert isinstance(f[3], nn.Identity)
    torch.testing.assert_close(f(X), m.eval()(X), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('norm_first', [False, True])
@pytest.mark.parametrize('to', ['rms', 'none'])
def test_a_transformer_layer_without_its_layer_norms(to, norm_first):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
    m, x = C.convert_norms(layer, to, 'layer'), torch.randn(3, 4, 8)
    want = m.eval()(x)
    with torch.no_grad():
        torch.testing.assert_close(m(x), want)


def test_the_gap_of_a_frozen_and_of_a_derived_norm():
    m, x, _ = derived()[0]
    batch = x, torch.randint(0, 4, (12,))
    with C.freeze_norms(m):
        res = accuracy_by_mode(m, [batch])
        assert res['running'] == res['batch']
    assert accuracy_by_mode(m, [batch]) == accuracy_by_mode(m, [batch])  # the dropout inside of the norm is off


def test_looking_moves_no_random_numbers():
    torch.manual_seed(3)
    want = torch.rand(3)
    torch.manual_seed(3)
    K.plain_norm(SwishBatchNorm1d(4))
    C.convert_norms(nn.Sequential(Bf16BatchNorm3d(2)), 'batch')
    assert torch.equal(torch.rand(3), want)
