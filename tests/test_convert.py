"Conversion of the norms of torchvision's models, with random weights: everything else stays what it was."
import copy
import pytest, torch
from torch import nn
import torchvision.models as tv
from course_lib.norms import convert as C

torch.set_num_threads(1)
MODELS = dict(
    resnet18=(lambda: tv.resnet18(), 64), mobilenet_v3_small=(lambda: tv.mobilenet_v3_small(), 64),
    densenet121=(lambda: tv.densenet121(), 64), efficientnet_b0=(lambda: tv.efficientnet_b0(), 64),
    deeplabv3_resnet50=(lambda: tv.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, aux_loss=True), 48),
    googlenet=(lambda: tv.googlenet(weights=None, init_weights=False), 96),
    vit=(lambda: tv.VisionTransformer(32, 16, 2, 2, 24, 48), 32))

@pytest.fixture(scope='module', params=MODELS)
def case(request):
    torch.manual_seed(0)
    build,size = MODELS[request.param]
    model = build()
    for m in model.modules():   # norms as after training, so that nothing hides behind ones and zeros
        for n in ('weight','running_var'):
            if C.norm_kind(m) and getattr(m, n, None) is not None: getattr(m, n).data.uniform_(.5, 1.5)
        for n in ('bias','running_mean'):
            if C.norm_kind(m) and getattr(m, n, None) is not None: getattr(m, n).data.normal_(0, .2)
    return request.param, model, torch.randn(2, 3, size, size)

def outputs(y):
    "All tensors in a model's output"
    if isinstance(y, torch.Tensor): return [y]
    return [t for o in (y.values() if isinstance(y, dict) else y) if o is not None for t in outputs(o)]

def skeleton(model):
    "Everything but the norms: names, classes, settings, modes, `requires_grad`, parameters and buffers, in order"
    kept = [(n, type(m), m.extra_repr(), m.training, [p.requires_grad for p in m.parameters(recurse=False)])
            for n,m in model.named_modules() if C.norm_kind(m) is None and not isinstance(m, nn.Identity)]
    inside = {f'{n}.' for n,m in model.named_modules() if C.norm_kind(m) or isinstance(m, nn.Identity)}
    tensors = {k:v for k,v in model.state_dict().items() if not any(k.startswith(o) for o in inside)}
    return kept, tensors

def assert_same_but_norms(a, b):
    (ka,ta),(kb,tb) = skeleton(a),skeleton(b)
    assert ka==kb and list(ta)==list(tb)
    for k in ta: assert torch.equal(ta[k], tb[k]), k
    assert {n for n,m in a.named_modules() if C.norm_kind(m)} == {n for n,m in b.named_modules() if C.norm_kind(m) or isinstance(m, nn.Identity)}

@pytest.mark.parametrize('to', ['group','layer','instance','rms','running','frozen','none'])
def test_nothing_but_the_norms_changes(case, to):
    name,model,x = case
    kinds = ('layer',) if name=='vit' else ('batch',)
    if name=='vit' and to not in ('layer','rms','none'):
        with pytest.raises(ValueError, match='trailing axes'): C.convert_norms(model, to, kinds)
        return
    before = {k:v.clone() for k,v in model.state_dict().items()}
    new,rows = C.convert_norms(model, to, kinds, library='course', report=True)
    assert_same_but_norms(model, new)
    assert len(rows)==len(C.norm_layers(model, kinds)) and not any(r['note'].startswith('left') for r in rows)
    assert all(torch.equal(before[k], v) for k,v in model.state_dict().items())   # the original is untouched
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in new.parameters()}
    if to=='instance': new.eval()
    if to=='instance' and name=='deeplabv3_resnet50':   # it normalizes a 1x1 map, which instance norm refuses, as PyTorch's does
        with pytest.raises(ValueError, match='more than 1 spatial element'): new(x)
        return
    out = outputs(new(x))
    sum(y.square().mean() for y in out).backward()
    for n,p in new.named_parameters():
        if p.requires_grad and 'aux' not in n: assert p.grad is not None and p.grad.isfinite().all(), n
    if to not in ('group','layer','instance'): return
    theirs = C.convert_norms(model, to, kinds, library='torch').eval()   # PyTorch's classes compute the same
    assert_same_but_norms(model.eval(), theirs)
    model.train()
    with torch.no_grad():
        for a,b in zip(outputs(new.eval()(x)), outputs(theirs(x))): torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3*b.abs().max().item())

def test_in_place_changes_the_norms_only(case):
    "Not even copies: every other module and parameter is the same object, under the same name"
    name,model,x = case
    kinds = 'layer' if name=='vit' else 'batch'
    twin = copy.deepcopy(model)
    before = {n:m for n,m in twin.named_modules() if C.norm_kind(m)!=kinds},{n:p for m_n,m in twin.named_modules() if C.norm_kind(m)!=kinds for n,p in m.named_parameters(m_n, recurse=False)}
    assert C.convert_norms(twin, 'rms', kinds, library='course', inplace=True) is twin
    after = dict(twin.named_modules()),dict(twin.named_parameters())
    for old,new in zip(before, after): assert all(new[n] is o for n,o in old.items())
    assert {C.norm_kind(m) for m in C.norm_layers(twin).values()}=={'rms'}

def test_round_trip_is_exact(case):
    name,model,x = case
    to = kinds = 'layer' if name=='vit' else 'batch'
    ours = C.convert_norms(model, to, (kinds,), library='course')
    back = C.convert_norms(ours, to, (kinds,), library='torch')
    assert str(back)==str(model)
    assert list(back.state_dict())==list(model.state_dict())==list(ours.state_dict())
    for k,v in model.state_dict().items(): assert torch.equal(v, back.state_dict()[k]), k
    with torch.no_grad():
        for a,b,c in zip(*(outputs(m.eval()(x)) for m in (model, ours, back))):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4*a.abs().max().item())
            assert torch.equal(a, c)
    model.train()

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1,8,3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8,12,3), nn.BatchNorm2d(12), nn.ReLU(),
                         nn.Flatten(), nn.Linear(12*4, 6), nn.BatchNorm1d(6))
X = torch.randn(16, 1, 6, 6, generator=torch.Generator().manual_seed(1))

def test_state_is_carried_over():
    m = net().double()
    for _ in range(3): m(X.double()+1)
    m[1].weight.requires_grad_(False); m[4].eval(); m[4].weight.data.uniform_()
    seen = []
    m[1].register_forward_hook(lambda *a: seen.append(1))
    new = C.convert_norms(m, 'running')
    assert new[1].weight.dtype==torch.float64 and not new[1].weight.requires_grad and not new[4].training and new[1].training
    for n in ('running_mean','running_var','weight','bias'): torch.testing.assert_close(getattr(new[4], n), getattr(m[4], n), rtol=0, atol=0)
    new(X.double()); assert seen==[1]

def test_shared_modules_stay_shared():
    bn = nn.BatchNorm2d(8)
    m = nn.Sequential(nn.Conv2d(1,8,3), bn, nn.Conv2d(8,8,3), bn)
    for inplace in (False, True):
        new = C.convert_norms(m, 'group', inplace=inplace)
        assert new[1] is new[3] and isinstance(new[1], nn.GroupNorm) and (new is m)==inplace

def test_groups():
    assert [C.divide_groups(c) for c in (16,24,64,6,7,960,1)] == [1,2,4,1,1,60,1]
    with pytest.raises(ValueError, match='12 channels cannot be divided into 8'): C.convert_norms(net(), 'group', num_groups=8)
    assert C.convert_norms(net(), 'group', num_groups=2)[4].num_groups==2

@pytest.mark.parametrize('call, said', [
    (lambda: C.convert_norms(nn.Sequential(nn.Linear(2,2)), 'group'), 'has no norm of kind batch; it has none at all'),
    (lambda: C.convert_norms(net(), 'group', kinds=('layer',)), 'it has 3 batch'),
    (lambda: C.convert_norms(net(), 'grup'), 'unknown kind'), (lambda: C.convert_norms(net(), 'group', library='jax'), 'library'),
    (lambda: C.convert_norms(nn.BatchNorm2d(2), 'group', inplace=True), 'itself'),
    (lambda: C.convert_norms(C.BatchNorm(3), 'batch'), "library='course'"),
    (lambda: C.freeze_norms(nn.Linear(2,2)), 'no norm'), (lambda: C.fold_norms(nn.Linear(2,2)), 'no norm'),
    (lambda: C.fold_norms(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4,4))), '0: no linear map comes right before it'),
    (lambda: C.fold_norms(nn.Sequential(nn.Linear(4,4), nn.GroupNorm(2,4))), 'come from each input'),
    (lambda: C.norm_report(nn.Linear(2,2), X), 'no norm')])
def test_bad_input(call, said):
    with pytest.raises(ValueError, match=said): call()

@pytest.mark.parametrize('call, error', [
    (lambda m: C.convert_norms(m, 'group', num_groups=5, inplace=True), ValueError), (lambda m: C.convert_norms(m, 'layer', 'rms', inplace=True), ValueError),
    (lambda m: C.convert_norms(m, 'no', inplace=True), ValueError), (lambda m: C.fold_norms(C.convert_norms(m, 'group', num_groups=2)), ValueError),
    (lambda m: C.freeze_norms(m, ['layer'], affine=True), ValueError), (lambda m: C.norm_report(m, dict(image=X)), TypeError),
    (lambda m: C.norm_report(m, X[:,:,:5]), RuntimeError), (lambda m: C.recalibrate(m, [], progress=False), ValueError)])
def test_what_is_refused_leaves_the_model_as_it_was(call, error):
    m = net()
    m(X)
    m[4].eval()
    def look(): return [(n, id(o), o.training, len(o._forward_pre_hooks)) for n,o in m.named_modules()],[(id(p), p.requires_grad) for p in m.parameters()]
    before,values = look(),{k:v.clone() for k,v in m.state_dict().items()}
    with pytest.raises(error): call(m)
    assert look()==before and all(torch.equal(v, m.state_dict()[k]) for k,v in values.items())

def test_lazy_norms_are_named():
    with pytest.raises(ValueError, match='none at all; 0 is lazy: pass a batch'): C.convert_norms(nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d()), 'group')

def test_freezing():
    m = net()
    m(X)
    old = [b.clone() for b in m.buffers()]
    with C.freeze_norms(m, affine=True):
        m.train(); m(X+1).sum().backward()
        assert all(torch.equal(a,b) for a,b in zip(old, m.buffers()))
        assert m[1].weight.grad is None and m[0].weight.grad is not None
        twin = copy.deepcopy(m).train(); twin(X+2)
        assert all(torch.equal(a,b) for a,b in zip(old, twin.buffers()))
    m.train(); m(X+1)
    assert not torch.equal(old[0], next(m.buffers())) and m[1].weight.requires_grad

def as_one_batch(model, data):
    "The reference: one training pass over everything, whose statistics replace the running ones"
    ref = copy.deepcopy(model).double().train()
    for m in C.norm_layers(ref, ('batch',)).values(): m.momentum = 1.
    ref(torch.cat(data).double())
    return {k:v for k,v in ref.state_dict().items() if 'running' in k}

def test_recalibration_equals_one_pass():
    m = net().double()
    data = [t.double() for t in (X*3+1).split([5,1,7,3])]
    want = as_one_batch(m, data)
    m[2].train(False)
    done = C.recalibrate(m, [(t, None) for t in data], progress=False)
    assert done==[m[1],m[4],m[8]] and m.training and not m[2].training
    for k,v in want.items(): torch.testing.assert_close(m.state_dict()[k], v, rtol=1e-9, atol=1e-12)

@pytest.mark.parametrize('progress', [True, False])
def test_recalibration_shows_its_progress(progress, capsys):
    C.recalibrate(net(), [X], progress=progress)
    assert ('recalibrate' in capsys.readouterr().err)==progress

def test_recalibration_from_a_loader_of_float32_against_float64():
    "Batches of any sizes from a shuffling `DataLoader`; the reference is one pass in float64 over all of it"
    m,data = net(),torch.randn(70, 1, 6, 6, generator=torch.Generator().manual_seed(2))*3+1
    want = as_one_batch(m, [data])
    C.recalibrate(m, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(data, torch.zeros(70)), 16, shuffle=True), progress=False)
    for k,v in want.items(): torch.testing.assert_close(m.state_dict()[k].double(), v, rtol=1e-5, atol=1e-6)

def test_recalibration_of_a_residual_net():
    torch.manual_seed(0)
    m = tv.resnet18().double()
    data = [torch.randn(n,3,40,40).double()*2+1 for n in (3,2,4)]
    want = as_one_batch(m, data)
    C.recalibrate(m, data, progress=False)
    for k,v in want.items(): torch.testing.assert_close(m.state_dict()[k], v, rtol=1e-6, atol=1e-9)

@pytest.mark.parametrize('batches, error, said', [
    ([], ValueError, 'empty'), ([dict(image=X)], TypeError, 'dict'), (iter([X]), TypeError, 'not an iterator'),
    ([X, 'x'], TypeError, 'str'), ([X[:,:,:5]], RuntimeError, 'mat1')])
def test_recalibration_that_fails_changes_nothing(batches, error, said):
    m = net()
    m(X)
    old = {k:v.clone() for k,v in m.state_dict().items()}
    with pytest.raises(error, match=said): C.recalibrate(m, batches, progress=False)
    assert all(torch.equal(v, m.state_dict()[k]) for k,v in old.items()) and m.training

@pytest.mark.parametrize('library', ['torch','course'])
@pytest.mark.parametrize('name', ['resnet18','mobilenet_v3_small','efficientnet_b0','googlenet'])
def test_folding(name, library):
    torch.manual_seed(0)
    m = MODELS[name][0]()
    x = torch.randn(2, 3, MODELS[name][1], MODELS[name][1])
    with torch.no_grad():
        for _ in range(2): m(x*2+1)
        m = C.convert_norms(m, 'batch', library=library).eval()
        f = C.fold_norms(m, strict=name!='googlenet')   # googlenet's auxiliary heads do not run in evaluation
        want = copy.deepcopy(m).double()(x.double())
        assert ((f(x)-want).abs().max()/want.abs().max())<1e-5
        f64 = C.fold_norms(copy.deepcopy(m).double(), strict=name!='googlenet')
        assert ((f64(x.double())-want).abs().max()/want.abs().max())<1e-12
    assert not any(C.norm_kind(o)=='batch' for n,o in f.named_modules() if 'aux' not in n)

def test_folding_linear_transposed_and_bias():
    torch.manual_seed(0)
    m = nn.Sequential(nn.ConvTranspose2d(1,4,3,bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4*8*8,5), nn.BatchNorm1d(5, affine=False))
    for _ in range(3): m(X+1)
    f = C.fold_norms(m)
    m.eval()
    torch.testing.assert_close(f(X), m(X), rtol=1e-4, atol=1e-5)
    assert isinstance(f[1], nn.Identity) and isinstance(f[4], nn.Identity) and isinstance(m[1], nn.BatchNorm2d)

class Branchy(nn.Module):
    def __init__(self): super().__init__(); self.lin,self.norm = nn.Linear(4,4),nn.BatchNorm1d(4)
    def forward(self, x): return self.norm(self.lin(x)) if x.sum()>0 else x
class ReadTwice(Branchy):
    def forward(self, x): y = self.lin(x); return self.norm(y)+y

@pytest.mark.parametrize('model, said', [(Branchy, 'cannot be traced'), (ReadTwice, 'also read elsewhere')])
def test_folding_refuses(model, said):
    with pytest.raises(ValueError, match=said): C.fold_norms(model())

def test_report():
    m = net()
    for _ in range(50): m(X)
    rows = C.norm_report(m, X)
    assert [r['name'] for r in rows]==['1','4','8'] and [r['values'] for r in rows]==[16*16, 16*4, 16]
    assert rows[0]['gap']<.05 and not rows[0]['warning'] and 'only 16' in rows[2]['warning']
    shifted = C.norm_report(m, X*3+5)
    assert shifted[0]['mean_shift']>2 and shifted[0]['var_ratio']>4 and shifted[0]['gap']>.5
    assert C.norm_report(C.convert_norms(m, 'group', num_groups=2), X)[0]['gap'] is None

def conv_then(norm): return nn.Sequential(nn.Conv2d(1, 8, 3), norm)

@pytest.mark.parametrize('kind, norm', [
    ('batch', nn.BatchNorm2d(8, momentum=None, eps=.1)), ('batch', nn.BatchNorm2d(8, affine=False, track_running_stats=False)),
    ('instance', nn.InstanceNorm2d(8)), ('instance', nn.InstanceNorm2d(8, affine=True, track_running_stats=True)),
    ('group', nn.GroupNorm(2, 8)), ('layer', nn.LayerNorm(4, bias=False)), ('rms', nn.RMSNorm(4))])
def test_round_trip_of_each_kind(kind, norm):
    m = conv_then(norm)
    ours = C.convert_norms(m, kind, kind, library='course')
    back = C.convert_norms(ours, kind, kind)
    assert type(ours[1]) is not type(norm) and str(back)==str(m) and vars(back[1]).keys()==vars(norm).keys()
    torch.testing.assert_close(ours(X), back(X))

def test_full_backward_hooks_stay():
    m,seen = conv_then(nn.BatchNorm2d(8)),[]
    m[1].register_full_backward_hook(lambda m, gi, go: seen.append(type(m)))
    C.convert_norms(m, 'group')(X).sum().backward()
    assert seen==[nn.GroupNorm]

def test_eps_of_an_rmsnorm_may_be_none():
    m = conv_then(nn.RMSNorm(4))
    assert C.convert_norms(m, 'layer', 'rms')[1].eps==torch.finfo(torch.float32).eps
    assert C.convert_norms(m, 'layer', 'rms')(X).shape==(16,8,4,4)

def test_statistics_that_do_not_exist_are_not_frozen_and_new_ones_are_reported():
    with pytest.raises(ValueError, match='keeps no running statistics'):
        C.convert_norms(conv_then(nn.BatchNorm2d(8, track_running_stats=False)), 'frozen')
    rows = C.convert_norms(conv_then(nn.GroupNorm(2, 8)), 'batch', 'group', report=True)[1]
    assert rows[0]['note']=='running statistics are new: recalibrate'

class ChannelsLast(nn.LayerNorm): pass

@pytest.mark.parametrize('inplace', [False, True])
def test_report_names_what_was_left(inplace):
    m = nn.Sequential(nn.Conv2d(1,8,3), nn.BatchNorm2d(8), nn.GroupNorm(2,8), ChannelsLast(4))
    rows = C.convert_norms(m, 'group', report=True, inplace=inplace)[1]
    assert {r['name']:r['note'] for r in rows}=={'1': 'lost: running_mean, running_var', '2': 'left: kind group was not asked for',
        '3': 'left: ChannelsLast is derived from a norm and may work on other axes'}

def test_folding_a_grouped_transposed_convolution():
    torch.manual_seed(0)
    m = nn.Sequential(nn.ConvTranspose2d(4, 8, 3, groups=2), nn.BatchNorm2d(8))
    x = torch.randn(4, 4, 5, 5)
    m(x*2+1)
    torch.testing.assert_close(C.fold_norms(m)(x), m.eval()(x), rtol=1e-4, atol=1e-5)

def test_a_norm_over_another_axis_than_the_linear_maps_is_refused():
    m = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    m(torch.randn(16, 4, 6))
    f = C.fold_norms(m)
    torch.testing.assert_close(f(X[:,0,0]), m.eval()(X[:,0,0]))
    with pytest.raises(ValueError, match='channels on axis 1, the map has its features on axis 2'): f(torch.randn(16, 4, 6))

def test_a_recalibrated_running_norm_keeps_its_statistics_in_training():
    m = C.convert_norms(net(), 'running')
    C.recalibrate(m, [X], 'running', progress=False)
    assert m[1].running_count==1/m[1].momentum


# batch norm across processes: a batch norm like any other
import torch.distributed as dist
from course_lib.distributed import SyncBatchNorm, as_sync

def sync_net(ours):
    "A network with moved statistics, and the same one with synchronized norms, in float64"
    plain = net().double()
    plain[4].momentum,plain[1].weight.requires_grad = None,False
    for _ in range(3): plain(X.double()*2+1)
    plain[8].eval()
    if ours: return plain, C.convert_norms(plain, as_sync)
    return plain, nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(plain))

@pytest.fixture(params=[False, True], ids=['torch','ours'])
def synced(request): return sync_net(request.param)

@pytest.fixture
def group():
    "This process as a group of one, where PyTorch's SyncBatchNorm refuses to train on a CPU"
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    yield dist.new_group([0])
    dist.destroy_process_group()

def same_model(a, b):
    assert str(a)==str(b) and [m.training for m in a.modules()]==[m.training for m in b.modules()]
    assert [p.requires_grad for p in a.parameters()]==[p.requires_grad for p in b.parameters()]
    torch.testing.assert_close(a.state_dict(), b.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(copy.deepcopy(a).eval()(X.double()), copy.deepcopy(b).eval()(X.double()), rtol=1e-12, atol=1e-12)

def test_a_synchronized_norm_is_a_batch_norm(synced):
    plain,sync = synced
    assert {type(m) for m in C.norm_layers(sync).values()}<={SyncBatchNorm, nn.SyncBatchNorm}
    assert list(C.norm_layers(sync, 'batch'))==list(C.norm_layers(plain, 'batch'))==['1','4','8']

@pytest.mark.parametrize('library', ['torch','course'])
@pytest.mark.parametrize('to', ['batch','group','layer','instance','rms','running','frozen','none'])
@pytest.mark.parametrize('inplace', [False, True])
def test_converting_a_synchronized_norm(synced, to, library, inplace):
    "The result is that of converting the plain batch norm"
    plain,sync = synced
    want,notes = C.convert_norms(plain, to, library=library, report=True)
    got,rows = C.convert_norms(sync, to, library=library, report=True, inplace=inplace)
    same_model(got, want) if to!='instance' else torch.testing.assert_close(got.state_dict(), want.state_dict(), rtol=0, atol=0)
    assert [r['name'] for r in rows]==['1','4','8'] and (got is sync)==inplace
    alone = 'batch statistics are those of one process now'
    assert [r['note'] for r in rows]==[alone if to in ('batch','running') else r['note'] for r in notes]

def test_tools_on_a_synchronized_norm(synced):
    "Freezing, recalibration, folding and the report do what they do with plain batch norm"
    plain,sync = synced
    x = X.double()*3-1
    same = lambda a,b: torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    near = lambda r: {k: pytest.approx(v, rel=1e-9) if isinstance(v, float) else v for k,v in r.items()}
    assert C.norm_report(plain, x)==[near(r) for r in C.norm_report(sync, x)]
    same(C.fold_norms(sync)(x), copy.deepcopy(plain).eval()(x))
    assert [type(m) for m in C.fold_norms(sync)]==[type(m) for m in C.fold_norms(plain)]
    old = copy.deepcopy(sync.state_dict())
    with C.freeze_norms(sync, affine=True):
        sync.train()(x).sum().backward()
        assert sync[4].weight.grad is None and sync[0].weight.grad is not None
    torch.testing.assert_close(sync.state_dict(), old, rtol=0, atol=0)
    for m in (plain,sync): C.recalibrate(m, [x[:5], x[5:]], progress=False)
    same(sync.state_dict(), plain.state_dict())
    assert not torch.equal(sync[1].running_mean, old['1.running_mean'])

@pytest.mark.parametrize('ours', [False, True], ids=['torch','ours'])
def test_synchronized_norms_in_a_process_group(group, ours):
    "A group cannot be copied, and PyTorch's layer cannot train here: the tools need neither"
    plain,sync = sync_net(ours)
    for m in C.norm_layers(sync).values(): m.process_group = group
    x = X.double()
    with pytest.raises(TypeError, match='ProcessGroup'): copy.deepcopy(sync)
    if not ours:
        with pytest.raises(ValueError, match='expected input tensor to be on GPU'): sync(x)
    assert all(r['gap'] is not None for r in C.norm_report(sync, x))
    torch.testing.assert_close(C.fold_norms(sync)(x), plain.eval()(x), rtol=1e-10, atol=1e-12)
    C.recalibrate(sync, [x], progress=False)
    with C.freeze_norms(sync): assert sync.train()(x).isfinite().all()
    assert all(as_sync(m).process_group is group for m in C.norm_layers(sync).values())
    mixed = nn.Sequential(sync, nn.GroupNorm(2, 6))   # a copy that keeps its synchronized norms shares their group
    assert C.convert_norms(mixed, 'none', 'group')[0][1].process_group is group
    back = C.convert_norms(sync, 'batch')
    assert str(back)==str(plain) and back.train()(x).isfinite().all()

def test_only_that_name_counts():
    "A class derived from a batch norm under another name is left; so is something else of that name"
    class Activated(nn.BatchNorm2d): pass
    class Mine(SyncBatchNorm): pass
    Other = type('SyncBatchNorm', (nn.LayerNorm,), {})
    assert [C.norm_kind(m) for m in (Activated(2), Mine(2), Other(2), nn.SyncBatchNorm(2), SyncBatchNorm(2))]==[None,None,None,'batch','batch']

@pytest.mark.parametrize('call, said', [
    (lambda m: C.convert_norms(m, 'group', num_groups=5, inplace=True), 'cannot be divided'),
    (lambda m: C.convert_norms(m, 'sync', inplace=True), 'unknown kind.*see nn.SyncBatchNorm.convert_sync_batchnorm'),
    (lambda m: C.convert_norms(m, 'batch', kinds='layer', inplace=True), 'it has 3 batch'),
    (lambda m: C.recalibrate(m, [], progress=False), 'empty'), (lambda m: C.freeze_norms(m, 'group'), 'it has 3 batch')])
def test_what_is_refused_leaves_a_synchronized_model_as_it_was(synced, call, said):
    _,m = synced
    look = lambda: [(n, id(o), o.training, len(o._forward_pre_hooks)) for n,o in m.named_modules()]
    before,state = look(),copy.deepcopy(m.state_dict())
    with pytest.raises(ValueError, match=said): call(m)
    assert look()==before
    torch.testing.assert_close(m.state_dict(), state, rtol=0, atol=0)

def test_a_synchronized_norm_without_a_convolution_needs_the_courses_library():
    m = nn.Sequential(nn.SyncBatchNorm(3))
    with pytest.raises(ValueError, match="library='course'"): C.convert_norms(m, 'batch')
    assert type(C.convert_norms(m, 'batch', library='course')[0]) is C.BatchNorm
