"""The graders name each planted mistake, survive anything, and every exercise notebook is solved by its own solutions."""
import json, math, os, re, sys, threading, time
from pathlib import Path
import numpy as np, pytest, torch, torch.nn.functional as F
from scipy import stats
from torch import nn

from course_lib import exercises as E
from course_lib.grading import EXERCISES, READ, grade
from course_lib.init import gain

ROOT = Path(__file__).resolve().parents[1]
E.load_topics()
E.sample_images()   # before any grader's clock runs
PAGES = sorted((ROOT/'nbs/exercises').glob('*.ipynb'))

@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv('COURSE_PROGRESS', str(tmp_path))
    monkeypatch.delenv('COURSE_SOLUTIONS', raising=False)
    return tmp_path


# ---- wrong submissions, made from one template a layer by changing a line
BATCHNORM = '''
class Sub(nn.Module):
    def __init__(self, num_features, eps=1e-5, momentum=.1):
        super().__init__()
        self.eps,self.momentum = eps,momentum
        self.weight,self.bias = nn.Parameter(torch.ones(num_features)),nn.Parameter(torch.zeros(num_features))
        self.register_buffer('running_mean', torch.zeros(num_features))
        self.register_buffer('running_var', torch.ones(num_features))
    def forward(self, x):
        v = lambda t: t.view(1, -1, 1, 1)
        if self.training:
            mean = x.mean((0,2,3))
            var = (x-v(mean)).square().mean((0,2,3))
            n = x.numel()/x.shape[1]
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var*n/(n-1), self.momentum)
        else: mean,var = self.running_mean,self.running_var
        x = (x-v(mean))/(v(var)+self.eps).sqrt()
        return x*v(self.weight)+v(self.bias)
'''
PLAIN = '''
class Sub(nn.Module):
    def __init__(self, SHAPE, eps=1e-5):
        super().__init__()
        self.eps,self.shape = eps,SHAPE
        self.weight,self.bias = nn.Parameter(torch.ones(SHAPE)),nn.Parameter(torch.zeros(SHAPE))
    def forward(self, x):
        mean = x.mean(DIMS, keepdim=True)
        var = x.var(DIMS, keepdim=True, correction=0)
        x = (x-mean)/(var+self.eps).sqrt()
        return x*VIEW(self.weight)+VIEW(self.bias)
'''
LAYERNORM = PLAIN.replace('DIMS', '(1,2,3)').replace('VIEW', '')
INSTANCE = PLAIN.replace('DIMS', '(2,3)').replace('VIEW(self.weight)', 'self.weight.view(-1,1,1)').replace('VIEW(self.bias)', 'self.bias.view(-1,1,1)')
GROUP = '''
class Sub(nn.Module):
    def __init__(self, num_groups, num_channels, eps=1e-5):
        super().__init__()
        if num_channels%num_groups: raise ValueError('channels do not make groups')
        self.eps,self.G = eps,num_groups
        self.weight,self.bias = nn.Parameter(torch.ones(num_channels)),nn.Parameter(torch.zeros(num_channels))
    def forward(self, x):
        N,C,H,W = x.shape
        g = x.view(N, self.G, C//self.G, H, W)
        mean,var = g.mean((2,3,4), keepdim=True),g.var((2,3,4), keepdim=True, correction=0)
        g = (g-mean)/(var+self.eps).sqrt()
        return g.reshape(N, C, H, W)*self.weight.view(-1,1,1)+self.bias.view(-1,1,1)
'''
RMS = '''
class Sub(nn.Module):
    def __init__(self, shape, eps=1e-5):
        super().__init__()
        self.eps,self.weight = eps,nn.Parameter(torch.ones(shape))
    def forward(self, x): return x*(x.square().mean((1,2,3), keepdim=True)+self.eps).rsqrt()*self.weight
'''
RUNNING = '''
class Sub(nn.Module):
    def __init__(self, num_features, eps=1e-5, momentum=.05):
        super().__init__()
        self.eps,self.momentum = eps,momentum
        self.weight,self.bias = nn.Parameter(torch.ones(num_features)),nn.Parameter(torch.zeros(num_features))
        for k,v in dict(mean=0., var=1., count=0.).items():
            self.register_buffer('running_'+k, torch.full((num_features,) if k!='count' else (), v))
    def forward(self, x):
        v = lambda t: t.view(1, -1, 1, 1)
        mean,var = self.running_mean,self.running_var
        if self.training:
            count = self.running_count*(1-self.momentum)**len(x)+len(x)
            share = len(x)/count
            new = mean.lerp(x.mean((0,2,3)), share)
            square = (x-v(new)).square().mean((0,2,3))
            var = (var+(mean-new).square()).lerp(square, share)
            mean = new
            self.running_mean,self.running_var,self.running_count = mean.detach(),var.detach(),count
        return (x-v(mean))/(v(var)+self.eps).sqrt()*v(self.weight)+v(self.bias)
'''
STANDARDIZE = '''
def Sub(x, dims, eps=1e-5):
    mean = x.mean(dims, keepdim=True)
    var = x.var(dims, keepdim=True, correction=0)
    return (x-mean)/(var+eps).sqrt()
'''
BACKWARD = '''
def Sub(g, x, weight, eps):
    d,v = (0,2,3),lambda t: t.view(1, -1, 1, 1)
    rstd = (x.var(d, keepdim=True, correction=0)+eps).rsqrt()
    xh = (x-x.mean(d, keepdim=True))*rstd
    gh = g*v(weight)
    gx = rstd*(gh-gh.mean(d, keepdim=True)-xh*(gh*xh).mean(d, keepdim=True))
    return gx,(g*xh).sum(d),g.sum(d)
'''
INIT = '''
def Sub(m, f):
    z = torch.randn(1_000_000)
    fan = m.weight[0].numel()
    std = f(z).square().mean()**-.5/fan**.5
    nn.init.normal_(m.weight, 0, std.item())
    nn.init.zeros_(m.bias)
'''
START = '''
def Sub(m):
    if isinstance(m, nn.Linear):
        factor = gain('softsign').item()
        nn.init.normal_(m.weight, 0, factor/m.in_features**.5)
        nn.init.zeros_(m.bias)
'''
LSUV = '''
@torch.no_grad()
def Sub(model, xb, tol=.01, max_iter=10):
    order,out = [],{}
    hooks = [m.register_forward_hook(lambda m, i, o: order.append(m)) for m in model.modules() if isinstance(m, (nn.Linear,nn.Conv2d))]
    model(xb)
    for h in hooks: h.remove()
    for m in order:
        hook = m.register_forward_hook(lambda m, i, o: out.update(o=o))
        for _ in range(max_iter):
            model(xb)
            o = out['o']
            std,mean = o.std(),o.mean()
            if std<1e-6 or abs(std-1)<tol and (m.bias is None or abs(mean)<tol): break
            m.weight /= std
            if m.bias is not None: m.bias.copy_((m.bias-mean)/std)
        hook.remove()
'''
LAYER_STEP = '''
@torch.no_grad()
def Sub(layer, x):
    y = layer(x)
    std, mean = torch.std_mean(y, [d for d in range(y.ndim) if d!=1])
    layer.weight /= std.view(-1, *[1]*(layer.weight.ndim-1))
    if layer.bias is not None:
        layer.bias.copy_((layer.bias-mean)/std)
'''
ROW = '''
@torch.no_grad()
def Sub(net, x):
    for layer in net:
        if isinstance(layer, nn.Sequential):
            x = Sub(layer, x)
            continue
        y = layer(x)
        if isinstance(layer, nn.Linear):
            std, mean = torch.std_mean(y)
            layer.weight /= std
            if layer.bias is not None:
                layer.bias.copy_((layer.bias-mean)/std)
        x = layer(x)
    return x
'''
NEAREST = '''
def Sub(x, y, new):
    means = torch.stack([x[y==c].mean(0) for c in range(10)])
    return torch.cdist(new, means).argmin(1)
'''
NET = '''
def Sub():
    c = lambda i, o: [nn.Conv2d(i, o, 3, 2, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
    return nn.Sequential(*c(1,8), *c(8,16), *c(16,32), *c(32,64), nn.Conv2d(64, 10, 3, 2, 1), nn.Flatten())
'''
SCHEDULE = '''
def Sub(opt, steps):
    def lr(i): return .6+1.4*i/(.3*steps) if i<=.3*steps else 2-1.9*(i-.3*steps)/(.7*steps)
    return torch.optim.lr_scheduler.LambdaLR(opt, lr)
'''
FREEZE = '''
def Sub(model):
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d): m.register_forward_pre_hook(lambda m, args: m.train(False) and None)
'''
RENORM = '''
class Sub(nn.Module):
    def __init__(self, num_features, eps=1e-5, momentum=.1, rmax=3., dmax=5.):
        super().__init__()
        self.eps,self.momentum,self.rmax,self.dmax = eps,momentum,rmax,dmax
        self.weight,self.bias = nn.Parameter(torch.ones(num_features)),nn.Parameter(torch.zeros(num_features))
        self.register_buffer('running_mean', torch.zeros(num_features))
        self.register_buffer('running_std', torch.ones(num_features))
    def forward(self, x):
        v = lambda t: t.view(1, -1, 1, 1)
        mean,std = self.running_mean,self.running_std
        if self.training:
            m = x.mean((0,2,3))
            s = (x.var((0,2,3), correction=0)+self.eps).sqrt()
            r = (s/std).clamp(1/self.rmax, self.rmax).detach()
            d = ((m-mean)/std).clamp(-self.dmax, self.dmax).detach()
            self.running_mean = mean.lerp(m.detach(), self.momentum)
            self.running_std = std.lerp(s.detach(), self.momentum)
            y = (x-v(m))/v(s)*v(r)+v(d)
        else: y = (x-v(mean))/v(std)
        return y*v(self.weight)+v(self.bias)
'''
RESCUE = '''
def Sub(net):
    for m in net:
        if isinstance(m, nn.Linear):
            nn.init.kaiming_normal_(m.weight, nonlinearity='relu')
            nn.init.zeros_(m.bias)
'''
STOP = '''
from course_lib.learner import Callback, CancelBatchException, CancelEpochException, CancelFitException
class Sub(Callback):
    def after_loss(self, learn):
        if not torch.isfinite(learn.loss): raise CancelFitException
'''
RESUME = '''
PARTS = 'model', 'opt', 'sched', 'data'
def state_of(run): return {k: getattr(run, k).state_dict() for k in PARTS} | dict(rng=torch.get_rng_state())
def put_back(run, state):
    for k in PARTS: getattr(run, k).load_state_dict(state[k])
    torch.set_rng_state(state['rng'])
Sub = state_of, put_back
'''
COVERAGE = '''
def Sub(interval, seeds):
    held = 0
    rng = np.random.default_rng(0)
    for _ in range(1000):
        values = rng.normal(size=seeds)
        lo, hi = interval(values)
        held += lo <= 0 <= hi
    return held/1000
'''
PAIRED = '''
def Sub(mine, theirs):
    differences = np.array([mine[seed]-theirs[seed] for seed in mine])
    half = stats.t.ppf(.975, len(differences)-1) * stats.sem(differences)
    return differences.mean()-half, differences.mean()+half
'''
DRIFT = '''
def Sub(before, after):
    dims = (0,2,3)
    moved = (after.mean(dims)-before.mean(dims)).abs()
    return (moved/before.std(dims)).mean()
'''
UNBIASED_CONTROL = '''
def Sub(x, eps=1e-5):
    dims = (0,2,3)
    mean = x.mean(dims, keepdim=True)
    var = x.var(dims, keepdim=True)
    return (x-mean)/(var+eps).sqrt()
'''
TWO_SUMS = '''
def Sub(x, g):
    return (g*x).sum((2,3)), g.sum((2,3))
'''
CHANCE = '''
def Sub(values, mark):
    t = (np.mean(values)-mark)/(np.std(values, ddof=1)/len(values)**.5)
    return stats.t.sf(t, len(values)-1)
'''
RIGHT = dict(mark=CHANCE, drift=DRIFT, unbiased_control=UNBIASED_CONTROL, two_sums=TWO_SUMS, coverage=COVERAGE, paired_interval=PAIRED, batchnorm=BATCHNORM, textbook_norm=BATCHNORM, layernorm=LAYERNORM, instancenorm=INSTANCE, groupnorm=GROUP, rmsnorm=RMS, runningbatchnorm=RUNNING,
    standardize=STANDARDIZE, batchnorm_backward=BACKWARD, init_any=INIT, rescue_start=START, lsuv=LSUV, lsuv_layer=LAYER_STEP, lsuv_row=ROW, nearest_mean=NEAREST,
    builtin_net=NET, schedule=SCHEDULE, freeze=FREEZE,
    batch_renorm=RENORM, train_by_init=RESCUE, stop_at_nan=STOP, resume=RESUME)

def submission(src):
    ns = dict(torch=torch, nn=nn, F=F, np=np, stats=stats, math=math, time=time, sys=sys, gain=gain)
    exec(src, ns)
    return ns['Sub']

@pytest.mark.parametrize('name', RIGHT)
def test_right_submission(name, capsys):
    assert grade(name, submission(RIGHT[name])), capsys.readouterr().out

RUNVAR = 'self.running_var.lerp_(var*n/(n-1), self.momentum)'
MEAN = 'mean = x.mean((0,2,3))'
PLANTED = [  # exercise, what stands in the right one, what replaces it, what the report must say
    ('batchnorm', 'var = (x-v(mean)).square().mean((0,2,3))', 'var = x.var((0,2,3))', 'unbiased variance in the forward pass'),
    ('batchnorm', 'lambda t: t.view(1, -1, 1, 1)', 'lambda t: t', 'missing keepdim'),
    ('batchnorm', 'x*v(self.weight)+v(self.bias)', 'x*self.weight+self.bias', 'affine without a view'),
    ('batchnorm', '(v(var)+self.eps).sqrt()', '(v(var).sqrt()+self.eps)', 'eps is outside the root'),
    ('batchnorm', '(v(var)+self.eps)', '(v(var)+1e-5)', 'is the argument used?'),
    ('batchnorm', 'n = x.numel()', 'mean,var = mean.detach(),var.detach(); n = x.numel()', 'statistics under no_grad'),
    ('batchnorm', 'n = x.numel()', 'var = var.detach(); n = x.numel()', 'no gradient flows through the variance'),
    ('batchnorm', "self.register_buffer('running_var', torch.ones(num_features))", 'self.running_var = torch.ones(num_features)', 'not a buffer'),
    ('batchnorm', "torch.zeros(num_features))\n        self.register_buffer('running_var', torch.ones(num_features))",
     "torch.zeros(num_features), persistent=False)\n        self.register_buffer('running_var', torch.ones(num_features), persistent=False)", 'not saved'),
    ('batchnorm', 'else: mean,var = self.running_mean,self.running_var', '''else:
            mean,var = self.running_mean.clone(),self.running_var.clone()
            self.running_mean.lerp_(x.mean((0,2,3)), self.momentum)''', 'updated in evaluation'),
    ('batchnorm', 'self.running_mean.lerp_(mean, self.momentum)', 'self.running_mean.lerp_(mean, 1-self.momentum)', 'momentum the wrong way round'),
    ('batchnorm', 'self.running_mean.lerp_(mean, self.momentum)', 'self.running_mean.lerp_(mean, .1)', 'is the argument used?'),
    ('batchnorm', RUNVAR, 'self.running_var.lerp_(var, self.momentum)', 'the biased variance is tracked'),
    ('batchnorm', RUNVAR, 'self.running_var.lerp_((var*n/(n-1)).sqrt(), self.momentum)', 'standard deviation is tracked'),
    ('batchnorm', RUNVAR, 'pass', 'never updated'),
    ('batchnorm', 'if self.training:', 'if torch.is_grad_enabled():', 'self.training'),
    ('batchnorm', 'if self.training:', 'if True:', 'training mode taken from elsewhere'),
    ('batchnorm', 'if self.training:', 'if self.in_train:', "no attribute 'in_train'"),
    ('batchnorm', '(x-v(mean))/(v(var)+self.eps)', '(x-v(self.running_mean))/(v(self.running_var)+self.eps)', 'training normalizes with the running statistics'),
    ('batchnorm', 'nn.Parameter(torch.ones(num_features)),nn.Parameter(torch.zeros(num_features))', 'torch.ones(num_features),torch.zeros(num_features)', 'affine missing'),
    ('batchnorm', 'nn.Parameter(torch.ones(num_features)),nn.Parameter(torch.zeros(num_features))', 'nn.Parameter(torch.ones(1)),nn.Parameter(torch.zeros(1))', 'affine is a scalar'),
    ('batchnorm', 'return x*v(self.weight)+v(self.bias)', 'return (x+v(self.bias))*v(self.weight)', 'bias is added before'),
    ('batchnorm', 'return x*v(self.weight)+v(self.bias)', 'return x+v(self.bias)+0*v(self.weight)', 'the weight is ignored'),
    ('batchnorm', 'x = (x-v(mean))', 'x = x.float(); x = (x-v(mean))', 'dtype'),
    ('batchnorm', 'x = (x-v(mean))', 'mean = mean+torch.zeros(mean.shape, dtype=mean.dtype); x = (x-v(mean))', 'device lost'),
    ('batchnorm', 'x = (x-v(mean))/', 'x -= v(mean); x = x/', 'in-place change of the input'),
    ('batchnorm', '(x-v(mean)).square().mean((0,2,3))', '(x*x).mean((0,2,3))-mean*mean', 'cancellation'),
    ('batchnorm', 'with torch.no_grad():\n                self.running_mean.lerp_(mean, self.momentum)',
     'if True:\n                self.running_mean = self.running_mean.lerp(mean, self.momentum)', 'carries the graph'),
    ('batchnorm', '(0,2,3)', '(2,3)', 'wrong axes: something has a value for each channel of each image (15'),
    ('batchnorm', '        return x*v', '        x*v', 'is a `return` missing?'),
    ('batchnorm', 'return x*v(self.weight)+v(self.bias)', 'return (x*v(self.weight)+v(self.bias)).mean(0)', 'wrong shape'),
    ('batchnorm', 'return x*v(self.weight)+v(self.bias)', 'return [x]', 'returns the type list'),
    ('batchnorm', 'return x*v(self.weight)+v(self.bias)', 'return 1/0', 'raises ZeroDivisionError'),
    ('batchnorm', 'return x*v(self.weight)+v(self.bias)', 'sys.exit()', 'raises SystemExit'),
    ('batchnorm', 'num_features, eps=1e-5, momentum=.1', 'nf, eps=1e-5, mom=.1', 'raises TypeError'),
    ('batchnorm', 'class Sub(nn.Module)', 'class Sub(object)', 'not derived from nn.Module'),
    ('batchnorm', 'super().__init__()\n', '\n', 'raises AttributeError'),
    ('layernorm', 'correction=0', 'correction=1', 'unbiased variance in the forward pass'),
    ('layernorm', '(1,2,3)', '(0,2,3)', 'wrong axes'), ('layernorm', '(1,2,3)', '(2,3)', 'wrong axes'),
    ('layernorm', ', keepdim=True', '', 'missing keepdim'),
    ('layernorm', '(var+self.eps).sqrt()', '(var.sqrt()+self.eps)', 'eps is outside the root'),
    ('layernorm', 'nn.Parameter(torch.ones(SHAPE)),nn.Parameter(torch.zeros(SHAPE))', 'nn.Parameter(torch.tensor(1.)),nn.Parameter(torch.tensor(0.))', 'affine is a scalar'),
    ('layernorm', ',nn.Parameter(torch.zeros(SHAPE))', ',0.', 'affine missing'),
    ('layernorm', 'mean = x.mean((1,2,3), keepdim=True)', 'mean = x.mean((1,2,3), keepdim=True).detach()', 'no gradient flows through the mean'),
    ('layernorm', 'x = (x-mean)/', 'x -= mean; x = x/', 'in-place change of the input'),
    ('rmsnorm', 'return x*', 'x = x-x.mean((1,2,3), keepdim=True); return x*', 'the mean is subtracted'),
    ('rmsnorm', '(1,2,3)', '(0,1,2,3)', 'wrong axes'),
    ('instancenorm', '(2,3)', '(0,2,3)', 'wrong axes'), ('instancenorm', 'correction=0', 'correction=1', 'unbiased variance'),
    ('instancenorm', '+self.eps', '+1.', 'eps is 1'), ('instancenorm', ', keepdim=True', '', 'missing keepdim'),
    ('groupnorm', 'x.view(N, self.G, C//self.G, H, W)', 'x.view(N, C//self.G, self.G, H, W).transpose(1, 2)', 'groups split the wrong way'),
    ('groupnorm', '(2,3,4)', '(0,2,3,4)', 'wrong axes'), ('groupnorm', '(2,3,4)', '(3,4)', 'wrong axes'),
    ('groupnorm', "if num_channels%num_groups: raise ValueError('channels do not make groups')", 'pass', 'should raise a ValueError'),
    ('standardize', 'correction=0', 'correction=1', 'unbiased variance'), ('standardize', 'x.mean(dims, ', 'x.mean((2,3), ', 'use the argument dims everywhere'),
    ('standardize', '(var+eps).sqrt()', '(var.sqrt()+eps)', 'eps is outside the root'),
    ('standardize', 'x.mean(dims, keepdim=True)', 'x.mean()', 'the other examples included: mean; use dims'),
    ('standardize', 'x.var(dims, keepdim=True, correction=0)', '(x-mean).square().mean()', 'the other examples included: variance; use dims'),
    ('standardize', '    return (', '    mean,var = x.mean(),x.var(correction=0); return (', 'included: mean and variance; use dims'),
    ('standardize', '(var+eps).sqrt()', '(var+eps)', 'divided by the variance, not by its root'),
    ('standardize', '    return (x-mean)/(var+eps).sqrt()', '    return (x-x.mean())/(var+eps)', 'mean; use dims; divided by the variance, not by its root'),
    ('standardize', 'correction=0', 'correction=1', 'read layernorm, "Three lines"'),
    ('standardize', '    return (', '    x = x.detach(); mean = mean.detach(); var = var.detach(); return (', 'without gradient'),
    ('batchnorm_backward', '-gh.mean(d, keepdim=True)', '', 'path through the mean is missing'),
    ('batchnorm_backward', '-xh*(gh*xh).mean(d, keepdim=True)', '', 'path through the variance is missing'),
    ('batchnorm_backward', '(gh-gh.mean(d, keepdim=True)-xh*(gh*xh).mean(d, keepdim=True))', 'gh', 'through the mean and through the variance is missing'),
    ('batchnorm_backward', 'gh = g*v(weight)', 'gh = g', 'weight is forgotten'), ('batchnorm_backward', '+eps', '', 'eps is forgotten'),
    ('batchnorm_backward', '(g*xh).sum(d)', '(g*xh).mean(d)', 'a mean in place of a sum'), ('batchnorm_backward', '(g*xh).sum(d)', '(g*x).sum(d)', 'g times x̂'),
    ('batchnorm_backward', 'return gx,(g*xh).sum(d),g.sum(d)', 'return gx', 'three tensors'),
    ('runningbatchnorm', 'square = (x-v(new)).square().mean((0,2,3))', 'square = x.var((0,2,3))+x.mean((0,2,3))*math.sqrt(len(x)-2)*0', 'raises ValueError'),
    ('runningbatchnorm', '(1-self.momentum)**len(x)+len(x)', '(1-self.momentum)+1', 'counted in batches'),
    ('runningbatchnorm', 'share = len(x)/count', 'share = torch.ones(())', 'that is batch norm'),
    ('runningbatchnorm', 'mean.detach(),var.detach(),count', 'mean,var,count', 'carries the graph'),
    ('runningbatchnorm', 'mean = new\n', 'mean,var = new.detach(),var.detach()\n', 'under no_grad or detached'),
    ('runningbatchnorm', '.lerp(square, share)', '.lerp((x*x).mean((0,2,3))-x.mean((0,2,3))**2, share)', 'cancellation'),
    ('runningbatchnorm', "self.register_buffer('running_'+k, ", "setattr(self, 'running_'+k, ", 'not a buffer'),
    ('runningbatchnorm', 'dict(mean=0., var=1., count=0.)', 'dict(mean=float("nan"), var=1., count=0.)', 'NaN'),
    ('init_any', 'fan = m.weight[0].numel()', 'fan = m.weight[:,0].numel()', 'fan out in place of fan in'),
    ('init_any', 'fan = m.weight[0].numel()', 'fan = m.weight.shape[1]', 'counts its taps'),
    ('init_any', 'f(z).square().mean()**-.5', 'f(z).std()**-1', 'keeps the variance after the activation'),
    ('init_any', 'f(z).square().mean()**-.5', 'torch.tensor(2**.5)', 'f is another function'),
    ('init_any', 'f(z).square().mean()**-.5', 'torch.tensor(1.)', 'f is not used'),
    ('init_any', 'f(z).square().mean()**-.5/fan**.5', 'f(z).square().mean()**-1/fan', 'a variance in place of a standard deviation'),
    ('init_any', 'nn.init.zeros_(m.bias)', 'pass', 'bias is left'),
    ('init_any', 'nn.init.normal_(m.weight, 0, std.item())', 'm.weight = nn.Parameter(torch.randn_like(m.weight)*std)', 'replaces the Parameter'),
    ('rescue_start', "gain('softsign').item()", '.5', 'vanishes'), ('rescue_start', "gain('softsign').item()", '1e9*gain("softsign").item()', 'explodes'),
    ('rescue_start', "gain('softsign').item()", '1.', 'images are right'),
    ('rescue_start', 'nn.init.normal_(m.weight, 0, factor/m.in_features**.5)', 'nn.init.constant_(m.weight, .005)', 'all units of a layer are equal'),
    ('rescue_start', 'nn.init.normal_(m.weight, 0, factor/m.in_features**.5)\n        nn.init.zeros_(m.bias)', 'torch.randn_like(m.weight)*factor', 'no parameter has changed'),
    ('rescue_start', 'nn.init.zeros_(m.bias)', 'm.register_forward_hook(lambda m, i, o: o*2)', 'a hook changes'),
    ('rescue_start', "    if isinstance(m, nn.Linear):", "    if isinstance(m, nn.Sequential): m[1] = nn.ReLU()\n    if isinstance(m, nn.Linear):", 'no longer the same'),
    ('lsuv', 'for _ in range(max_iter):', 'for _ in range(100):', 'no iteration cap: '),
    ('lsuv', 'for _ in range(max_iter):', 'while True:', 'without an iteration cap?'),
    ('lsuv', 'for m in order:', 'for m in order[::-1]:', 'wrong order'),
    ('lsuv', 'for m in order:', 'for m in [m for m in model.modules() if isinstance(m, nn.Linear)]:', 'wrong order'),
    ('lsuv', 'm.weight /= std\n', 'm.weight /= std**2\n', 'in place of its root'),
    ('lsuv', 'if m.bias is not None: m.bias.copy_((m.bias-mean)/std)', 'm.bias.copy_((m.bias-mean)/std)', "raises AttributeError"),
    ('lsuv', 'std<1e-6 or ', '', 'dead layer has std 0'),
    ('lsuv', '        hook.remove()', '        pass', 'hook is left behind'),
    ('lsuv', "if m.bias is not None: m.bias.copy_((m.bias-mean)/std)", 'pass', 'the mean of'),
    ('lsuv_layer', 'std.view(-1, *[1]*(layer.weight.ndim-1))', 'std', 'does each scale meet'),
    ('lsuv_layer', 'y, [d for d in range(y.ndim) if d!=1]', 'y', 'one scale for the whole'),
    ('lsuv_layer', '[1]*(layer.weight.ndim-1))', '[1]*(layer.weight.ndim-1))**2', 'variance in place of its root'),
    ('lsuv_layer', '(layer.bias-mean)/std', '(layer.bias-mean.mean())/std', 'has mean'),
    ('lsuv_layer', '(layer.bias-mean)/std', 'layer.bias/std-mean', 'has mean'),
    ('lsuv_layer', 'if layer.bias is not None:', 'if True:', 'raises AttributeError'),
    ('lsuv_layer', '    y = layer(x)', '    y = layer(x); layer.weight = nn.Parameter(layer.weight.clone())', 'a new Parameter'),
    ('lsuv_row', '            x = Sub(layer, x)\n            continue\n', '            pass\n', 'inner nn.Sequential'),
    ('lsuv_row', '        x = layer(x)\n', '        x = y\n', 'measured before the layers in front'),
    ('lsuv_row', 'torch.std_mean(y)', 'torch.std_mean(y.sigmoid())', 'in place of 1'),
    ('lsuv_row', 'if layer.bias is not None:', 'if False:', 'has mean'),
    ('lsuv_row', 'if layer.bias is not None:', 'if True:', 'raises AttributeError'),
    ('nearest_mean', 'argmin', 'argmax', 'the farthest'), ('nearest_mean', 'torch.cdist(new, means).argmin(1)', '(new@means.T).argmax(1)', 'long means win'),
    ('nearest_mean', 'torch.cdist(new, means).argmin(1)', 'y[torch.cdist(new, x).argmin(1)]', 'nearest image'),
    ('nearest_mean', 'argmin(1)', 'argmin()', 'a class number for each'),
    ('builtin_net', 'bias=False', 'bias=True', 'keeps its bias'), ('builtin_net', 'nn.BatchNorm2d(o), ', '', 'no nn.BatchNorm2d'),
    ('builtin_net', 'nn.Flatten()', 'nn.BatchNorm2d(10), nn.Flatten()', 'norm after the last layer'),
    ('schedule', '    def lr', '    steps *= 10\n    def lr', 'peak is'), ('schedule', '(.3*steps)', '(.5*steps)', 'peak'),
    ('schedule', 'return torch.optim.lr_scheduler.LambdaLR(opt, lr)', 'return lr', 'should return a scheduler'),
    ('freeze', 'm.register_forward_pre_hook(lambda m, args: m.train(False) and None)', 'm.eval()', 'switches them on again'),
    ('freeze', 'm.register_forward_pre_hook(lambda m, args: m.train(False) and None)', 'm.momentum = 0.', 'normalizes with those of its batch'),
    ('freeze', '        if isinstance', '        m.train = lambda mode=True, m=m: m\n        m.training = False\n        if isinstance', 'dropout is frozen'),
    ('freeze', 'for m', 'model.requires_grad_(False)\n    for m', 'no longer learn'),
    ('batch_renorm', '(s/std)', '(std/s)', 'upside down'), ('batch_renorm', '.clamp(1/self.rmax, self.rmax).detach()', '.detach()', 'r is not clipped'),
    ('batch_renorm', '.clamp(-self.dmax, self.dmax).detach()', '.detach()', 'd is not clipped'),
    ('batch_renorm', 'self.rmax).detach()', 'self.rmax)', 'gradient flows through r:'), ('batch_renorm', '((m-mean)/std)', '((m-mean)/s)', 'divided by the running'),
    ('batch_renorm', 'mean.lerp(m.detach(), self.momentum)', 'mean.lerp(m.detach(), 1-self.momentum)', 'momentum the wrong way round'),
    ('batch_renorm', 'std.lerp(s.detach(), self.momentum)', '(std**2).lerp(s.detach()**2, self.momentum).sqrt()', 'variance is moved'),
    ('textbook_norm', 'if self.training', 'if torch.is_grad_enabled()', 'read self.training'),
    ('textbook_norm', "self.register_buffer('running_mean', torch.zeros(num_features))", 'self.running_mean = torch.zeros(num_features)', 'state that is not a buffer'),
    ('unbiased_control', 'var(dims, ', 'var(dims, correction=0, ', 'divides by n'), ('unbiased_control', 'x-mean)', 'x-mean.detach())', 'the mean is constant'),
    ('unbiased_control', '(var+eps)', '(var.detach()+eps)', 'the variance is constant'), ('unbiased_control', '    return (x-mean)/(var+eps)', '    mean, var = mean.detach(), var.detach()\n    return (x-mean)/(var+eps)', 'mean and variance are constant'),
    ('unbiased_control', '(var+eps)', 'var', 'is `eps` added'), ('unbiased_control', 'return (x', '(x', 'is a `return` missing?'),
    ('mark', 'stats.t.sf(t', '2*stats.t.sf(t', 'has only one'), ('mark', 'stats.t.sf(t', 'stats.t.cdf(t', 'the other side'), ('mark', 'len(values)-1)', '1e9)', 'not the normal'),
    ('mark', '/len(values)**.5', '', 'by the root of n'), ('mark', 'return stats', 'stats', 'is a `return` missing?'), ('mark', 'return stats', 'return 3*stats', 'in place of'),
    ('mark', 'return stats.t.sf(t, len(values)-1)', "return stats.ttest_1samp(values, mark, alternative='greater')", 'return its `.pvalue`'),
    ('mark', 'return stats.t.sf(t, len(values)-1)', 'return [t]', 'not the type list'),
    ('drift', '.abs()', '', 'up and down cancel'), ('drift', '/before.std(dims)', '/after.std(dims)', 'not the new one'),
    ('drift', '/before.std(dims)', '', 'in units of the standard deviation'), ('drift', '(moved/before.std(dims)).mean()', 'moved.mean()/before.std(dims).mean()', 'divide channel by channel'),
    ('drift', 'before.std(dims)', 'before.var(dims)', 'divided by the variance'), ('drift', '(moved/before.std(dims)).mean()', 'moved/before.std(dims)', 'take the mean over the channels'),
    ('drift', '(moved/before.std(dims)).mean()', '(moved/before.std(dims)).square().mean().sqrt()', 'the mean of the absolute values'),
    ('drift', 'dims = (0,2,3)', 'dims = (0,1,2,3)', 'one mean for all channels'), ('drift', '(moved/before.std(dims)).mean()', 'before', 'not the shape'),
    ('drift', '(after.mean(dims)-before.mean(dims)).abs()', '(after-before).abs().mean(dims)', 'how far the values moved'),
    ('drift', 'return (moved', 'return 2*(moved', 'in place of'), ('drift', 'return (moved', '(moved', 'is a `return` missing?'),
    ('coverage', 'held += lo <= 0 <= hi', 'held += not lo <= 0 <= hi', 'that miss the truth'), ('coverage', 'held/1000', 'held', 'is no share'),
    ('coverage', 'held/1000', 'held/10', 'is no share'), ('coverage', 'range(1000)', 'range(50)', 'thousand tell'),
    ('coverage', 'rng.normal(size=seeds)', 'rng.uniform(size=seeds)', 'true mean of your values is not 0'), ('coverage', 'rng.normal(size=seeds)', 'rng.normal(size=1000)', 'one for each seed'),
    ('coverage', 'rng.normal(size=seeds)', 'np.random.default_rng(0).normal(size=seeds)', 'each experiment draws the same values'),
    ('coverage', 'lo <= 0 <= hi', 'lo <= values.mean() <= hi', 'ask for the true mean'), ('coverage', 'lo <= 0 <= hi', 'lo <= 0', 'both ends count'),
    ('coverage', 'lo <= 0 <= hi', 'lo <= 8.5 <= hi', 'yours say 1.00 and 1.00'), ('coverage', 'return held/1000', 'return', 'is a `return` missing?'),
    ('paired_interval', '[mine[seed]-theirs[seed] for seed in mine]', '[a-b for a,b in zip(mine.values(), theirs.values())]', 'paired by their place'),
    ('paired_interval', 'mine[seed]-theirs[seed]', 'theirs[seed]-mine[seed]', 'the wrong way round'), ('paired_interval', 'stats.t.ppf(.975, len(differences)-1)', '1.96', '1.96 is for many seeds'),
    ('paired_interval', 'len(differences)-1', 'len(differences)', 'leave n-1 degrees of freedom'), ('paired_interval', 'len(differences)-1', '4', 'is for five seeds'),
    ('paired_interval', '.975', '.95', '2.5 % are cut off'), ('paired_interval', 'stats.sem(differences)', 'differences.std(ddof=1)', 'the mean varies less'),
    ('paired_interval', 'stats.sem(differences)', 'stats.sem(differences, ddof=0)', 'needs ddof=1'), ('paired_interval', 'stats.t.ppf(.975, len(differences)-1) * ', '', 'multiply it by t'),
    ('paired_interval', 'return differences.mean()-half, differences.mean()+half', 'return stats.ttest_ind(list(mine.values()), list(theirs.values())).confidence_interval()', 'not paired'),
    ('paired_interval', 'stats.sem(differences)', 'np.hypot(*(stats.sem([*o.values()]) for o in (mine, theirs)))', 'the spread of each method went in'),
    ('paired_interval', 'return differences.mean()-half, differences.mean()+half', 'return differences.mean(), half', 'the mean and half of the width'),
    ('paired_interval', 'return differences.mean()-half, differences.mean()+half', 'return half', 'two numbers are wanted'),
    ('train_by_init', "nonlinearity='relu'", "nonlinearity='linear'", 'vanishes'), ('train_by_init', 'nn.init.kaiming_normal_(m.weight', 'nn.init.kaiming_normal_(m.bias[None]', 'explodes'),
    ('train_by_init', 'def Sub(net):', 'def Sub(net):\n    net[1] = nn.BatchNorm1d(32)', 'no longer the same'),
    ('stop_at_nan', 'after_loss', 'after_batch', 'too late'), ('stop_at_nan', 'after_loss', 'after_backward', 'in validation goes unseen'),
    ('stop_at_nan', 'raise CancelFit', 'raise CancelEpoch', 'the next epoch begins'), ('stop_at_nan', 'raise CancelFit', 'raise CancelBatch', 'goes on after it'),
    ('stop_at_nan', 'not torch.isfinite', 'torch.isnan', 'isfinite in place of isnan'), ('stop_at_nan', 'raise CancelFitException', 'raise ValueError', 'ends with ValueError'),
    ('stop_at_nan', 'not torch.isfinite(learn.loss)', 'learn.loss>0', 'losses are all finite'), ('stop_at_nan', 'class Sub(Callback)', 'class Sub', 'not derived from Callback'),
    ('stop_at_nan', 'if not torch', 'learn.loss = 2*learn.loss\n        if not torch', 'it changes the training'),
    ('stop_at_nan', 'after_loss(self, learn):', 'before_batch(self, learn):\n        if not hasattr(learn, "loss"): return', 'another batch was begun'),
    ('resume', "'model', 'opt'", "'opt'", 'keeps its own weights'), ('resume', "'opt', ", '', 'without velocities'), ('resume', "'sched', ", '', 'the schedule is at another step'),
    ('resume', ", 'data'", '', 'other images come next'), ('resume', "    torch.set_rng_state(state['rng'])\n", '', 'dropout will drop other values'),
    ('resume', 'getattr(run, k).load_state_dict(state[k])', "run.model.load_state_dict({n: v for n,v in state[k].items() if 'running' not in n}, strict=False) if k=='model' else getattr(run, k).load_state_dict(state[k])", 'statistics are no parameters'),
    ('resume', 'getattr(run, k).state_dict()', 'getattr(run, k)', 'holds objects'), ('resume', 'return {', 'run.model.eval(); return {', 'changes the run that it looks at'),
    ('resume', "    torch.set_rng_state(state['rng'])", "    torch.set_rng_state(state['rng'])\n    run.model.eval()", 'other weights'),
    ('two_sums', '(g*x).sum((2,3)), g.sum((2,3))', '(g*x).sum((0,2,3)), g.sum((0,2,3))', 'do not sum over the images'), ('two_sums', '(g*x).sum((2,3)), g.sum((2,3))', 'g.sum((2,3)), (g*x).sum((2,3))', 'gradient of the offset, not of the factor'),
    ('two_sums', '(g*x).sum', 'x.sum', 'g is missing'), ('two_sums', 'g.sum((2,3))', 'g.mean((2,3))', 'a sum, not a mean'), ('two_sums', 'g.sum((2,3))', 'g', 'expected shape (N, C)'),
    ('two_sums', ', g.sum((2,3))', '', 'two tensors are wanted'),
    ('resume', 'Sub = state_of, put_back', 'Sub = state_of', 'hand in two functions'), ('resume', 'return {', '{', 'not the type NoneType'),
]
WRONG_NUMBERS = [('gain_relu', 1.716, 'keeps the variance'), ('gain_relu', 2, 'variance of the weights'), ('gain_relu', 'a tenth', 'a number is wanted'),
    ('gain_gelu', dict(tiny=.5, one=1.5335, huge=2**.5), 'slope of GELU at 0'), ('gain_gelu', dict(tiny=2, one=1.7, huge=2**.5), 'one over the standard deviation'),
    ('gain_gelu', dict(tiny=2, one=1.5335, huge=1), 'still lost'), ('offset_input', .025, 'uses the variance of the inputs'), ('offset_input', .3, 'too large'),
    ('gain_dropout', 2**.5, 'dropout keeps the mean'), ('fan_counts', dict(fan_in=288, fan_out=36), 'a quarter of the input channels'),
    ('fan_counts', dict(fan_in=72, fan_out=144), 'a quarter of the windows'), ('tanh_back', 1.5925, 'keeps the signal'), ('tanh_back', 1.651, 'mean slope'),
    ('bn_parameters', dict(learned=64, kept=128, values=3136), 'a weight and a bias'),
    ('ema', dict(weight=.1*.9**9, batches=44, noise=19**-.5), 'ten newer batches'), ('norm_counts', dict(batchnorm=20, layernorm=6, values=100), 'layer norm'),
    ('norm_counts', dict(batchnorm=6, layernorm=20), "'values' is missing"), ('norm_counts', [6, 20, 600], 'a dictionary is wanted'),
    ('pooled_instance', dict(pooled=1, one_pixel=0), 'after subtracting'), ('pooled_instance', dict(pooled=0, one_pixel=math.nan), 'unbiased variance of one'), ('tiny_batch', dict(larger=.7071, spread2=2**.5, spread1024=.044), 'biased one normalizes'),
    ('running_after', dict(mean=.9, var=1.1), 'momentum the wrong way round'), ('running_after', dict(mean=.1, var=1.), 'unbiased one, 2, is tracked'), ('output_std', 1., 'divides by n-1'),
    ('first_loss', dict(thousand=3, sure=27), 'logarithm to base 10'), ('first_loss', dict(thousand=math.log(1000), sure=30), 'one image in ten'),
    ('first_loss', dict(thousand=math.log(1000), sure=0), 'pay 30 each'), ('first_loss', dict(thousand=math.log(1000)), "'sure' is missing"),
    ('one_step', dict(weight=.25, bias=1.), 'old mean 3 is still in it'), ('one_step', dict(weight=.25, bias=.5), 'old mean 3 is still in it'),
    ('rescue_run', dict(lr=.1, leak=.1), 'change one thing; this changes 2'), ('rescue_run', dict(lr=.4), 'lr is 0.4 already'), ('rescue_run', dict(depth=9), "the recipe has no 'depth'"), ('rescue_run', .1, 'a dictionary is wanted'),
    ('rescue_run', dict(epochs=50), 'six epochs are enough'), ('rescue_run', dict(momentum=1), 'between 0 and 1'),
    ('verdicts', dict(group='open', two_points='fails', layer='open', best_of_six='open', edge='open'), 'what is left open'),
    ('verdicts', dict(group='holds', two_points='holds', layer='open', best_of_six='open', edge='open'), 'names a size'),
    ('verdicts', dict(group='holds', two_points='fails', layer='holds', best_of_six='open', edge='open'), 'look at the lower end'),
    ('verdicts', dict(group='holds', two_points='fails', layer='open', best_of_six='fails', edge='open'), 'refutes nothing'),
    ('verdicts', dict(group='holds', two_points='fails', layer='open', best_of_six='open', edge='holds'), 'at its own best rate'),
    ('verdicts', dict(group='yes', two_points='fails', layer='open', best_of_six='open', edge='open'), "'yes' is none of 'fails', 'holds' or 'open'"),
    ('gap_cases', dict(a='stale', b='stale', c='moved'), 'fresh statistics change nothing'), ('gap_cases', dict(a='overfit', b='overfit', c='moved'), 'the weights know them'),
    ('gap_cases', dict(a='overfit', b='stale', c='stale'), 'would mend it'), ('gap_cases', dict(a='overfit', b='stale', c='norm'), 'is none of'),
    ('one_three', dict(output=1, mean=1.8, var=1.1), 'read batchnorm, "A chain of `lerp`"'), ('one_three', dict(output=3, mean=.2, var=1.1), 'as it came in'),
    ('one_three', dict(output=1, mean=..., var=1.9), '– mean: not filled in yet'), ('bn_parameters', dict(learned=..., kept=256, values=...), 'not kept from the data'),
    ('image_sets', dict(whole=nn.LayerNorm((6,4,5)), group=..., position=lambda x: x.movedim(1, -1), token=...), 'move the channels back with movedim(-1, 1)'),
    ('image_sets', dict(whole=nn.LayerNorm((6,4,5)), group=..., position=lambda x: x.movedim(1, -1), token=...), '– token: the features of each token: not filled in yet'),
    ('four_forms', dict(A='n-1', B='n-1', C='graph', D='biased'), '1 of its 2 mistakes'), ('four_forms', dict(A=('n-1','detached'), B=('n-1','detached'), C='graph', D='biased'), "'detached' is not so"),
    ('four_forms', dict(A=('n-1','detached'), B='n-1', C='biased', D=...), "'biased' is not so"), ('four_forms', dict(A='nothing', B=..., C=..., D=...), 'none of the words'),
    ('mode_table', {(a,b): 'batch' if a else 'running' for a in (True,False) for b in (True,False)}, 'nothing else to use')]

LINES,WIDTH = 24,100   # a screen

def check_report(text, said=None):
    assert said is None or said in ' '.join(text.split()), text
    lines = text.splitlines()
    assert len(lines)<=LINES and max(map(len, lines))<=WIDTH and 'Traceback' not in text, text

def changed(src, old, new): return (src.replace(old, new)) if old in src else pytest.fail(f'{old!r} is not in the template')

@pytest.mark.parametrize('i', range(len(PLANTED)), ids=lambda i: f'{PLANTED[i][0]}-{i}')
def test_planted(i, capsys):
    name,old,new,said = PLANTED[i]
    assert not grade(name, submission(changed(RIGHT[name], old, new)), seconds=2.)
    out = capsys.readouterr().out
    check_report(out, said)
    assert not re.search(r'^    .*…$', out, re.M), f'an explanation is cut off:\n{out}'

WRONG_NUMBERS += [
    ('rescue_scale', .051, 'it vanishes'), ('rescue_scale', 1., 'it explodes'), ('rescue_scale', .25, 'it explodes'), ('rescue_scale', 128**-.5, 'no ReLU set half'),
    ('rescue_scale', .108, 'a little larger'), ('rescue_scale', .148, 'a little smaller'), ('rescue_scale', 1/128, 'mostly cancel'), ('rescue_scale', 0., 'above 0'), ('rescue_scale', 'large', 'a number is wanted'),
    ('products', dict(offset=.1, uniform=.03**.5, grown=1.05**50), 'mean included'),
    ('products', dict(offset=1000**-.5, uniform=.1, grown=1.05**50), 'their variance is'),
    ('products', dict(offset=1000**-.5, uniform=.03**.5, grown=3.5), 'multiply, they do not add')]

@pytest.mark.parametrize('change, said', [(dict(epochs=6), 'more time does not bring it back'), (dict(leak=.05), 'units cannot die now'),
    (dict(normalize=True), 'centered pixels are not enough'), (dict(lr=.0001), 'too small to get going'),
    (dict(lr=.3), 'still too large'), (dict(leak=.1), 'its loss became NaN')], ids=lambda o: '-'.join(o) if isinstance(o, dict) else '')
def test_wrong_rescue(change, said, capsys):
    assert not grade('rescue_run', change, seconds=60.)
    check_report(capsys.readouterr().out, said)

@pytest.mark.parametrize('name, value, said', WRONG_NUMBERS)
def test_wrong_number(name, value, said, capsys):
    assert not grade(name, value)
    check_report(capsys.readouterr().out, said)

# four published forms of batch norm, rewritten: what the report must name, and must not
FORMS = [
    ('var = (x-v(mean)).square().mean((0,2,3))', 'mean,var = mean.detach(),x.detach().var((0,2,3))', RUNVAR, 'self.running_var.lerp_(var, self.momentum)',
     ['unbiased variance in the forward pass', 'statistics under no_grad'], []),
    ('var = (x-v(mean)).square().mean((0,2,3))', 'var = x.var((0,2,3))', RUNVAR, 'self.running_var.lerp_(var, self.momentum)',
     ['unbiased variance in the forward pass', 'right gradients (the same mistake)'], ['no_grad']),
    ('with torch.no_grad():\n                self.running_mean.lerp_(mean, self.momentum)', 'if True:\n                self.running_mean = self.running_mean.lerp(mean, self.momentum)',
     '', '', ['carries the graph'], ['no_grad', 'unbiased variance in']),
    (RUNVAR, 'self.running_var.lerp_(var, self.momentum)', '', '', ['the biased variance is tracked'], ['no_grad', 'unbiased variance in'])]

@pytest.mark.parametrize('old, new, old2, new2, said, unsaid', FORMS, ids=['unbiased_detached', 'unbiased', 'graph', 'biased_tracking'])
def test_published_forms(old, new, old2, new2, said, unsaid, capsys):
    "Of two mistakes neither hides the other, and one mistake is not told as two."
    assert not grade('batchnorm', submission(changed(changed(BATCHNORM, old, new), old2, new2)))
    out = ' '.join(capsys.readouterr().out.split())
    assert all(w in out for w in said) and not any(w in out for w in unsaid), out

NODES = '''
def Sub(dy, gamma, c, r, xhat):
    d = dict(xhat=gamma*dy)
    d['r'] = (d['xhat']*c).sum(1, keepdim=True)
    d['v'] = -r**3/2*d['r']
    d['c'] = r*d['xhat'] + 2/c.shape[1]*c*d['v']
    d['mu'] = -d['c'].sum(1, keepdim=True)
    d['x'] = d['c'] + d['mu']/c.shape[1]
    return d
'''

@pytest.mark.parametrize('old, new, said', [
    ('gamma*dy', 'dy', 'gamma is forgotten'), ('.sum(1, keepdim=True)\n    d[\'v\']', '\n    d[\'v\']', 'one number per channel'),
    ('-r**3/2*', 'r**3/2*', 'larger variance makes r smaller'), (' + 2/c.shape[1]*c*d[\'v\']', '', 'leaves through v as well'),
    ('2/c.shape[1]', '2', 'has 2/n'), ('-d[\'c\'].sum', 'd[\'c\'].sum', 'the sign: c = x - mu'), (' + d[\'mu\']/c.shape[1]', '', 'leaves through mu as well'),
    ('r**3/2*', 'r**2/2*', 'r is v**-.5'), ('r**3/2*', 'r**3*', 'the factor ½ is missing'), ('-r**3/2*', '0*', 'detaching does: r does depend on v'),
    ("-d['c'].sum(1, keepdim=True)", "0*d['r']", 'detaching does: mu is subtracted'), ('-r**3/2*', '-r**3/7*', 'dv differs: one edge leaves v'),
    ("    return d", "    del d['r']\n    return d", "the row 'r' is missing")])
def test_nodes(old, new, said, capsys):
    "One wrong row is named, and the rows that are built on it are still right."
    assert grade('batchnorm_nodes', submission(NODES))
    capsys.readouterr()
    assert not grade('batchnorm_nodes', submission(changed(NODES, old, new)))
    out = capsys.readouterr().out
    check_report(out, said)
    assert out.count('✗')==1 or 'missing' in said or 'one number' in said, out

def test_enough_planted(): assert len(PLANTED)+len(WRONG_NUMBERS)>=100 and all(row[3] for row in PLANTED)

def numbers_of(name):
    "(key or None, arguments of `right_number`) for each number that an exercise asks for"
    for p in EXERCISES[name].properties:
        f = getattr(p.test, 'func', None)
        if f is E.right_number: yield None,p.test.args
        elif f is E.right_entry and getattr(p.test.args[1], 'func', None) is E.right_number: yield p.test.args[0],p.test.args[1].args

NUMBERS = {k: dict(numbers_of(k)) for k in EXERCISES if list(numbers_of(k))}

@pytest.mark.parametrize('name', NUMBERS)
def test_known_wrong_numbers(name, capsys):
    "Each wrong number that a grader knows gets its reason, and none of them is near the right one."
    right = {k: truth for k,(truth,*_) in NUMBERS[name].items()}
    def sub(k, v): return v if k is None else right | {k: v}
    for k,(truth,wrong,tol) in NUMBERS[name].items():
        assert grade(name, sub(k, truth)) and wrong
        for n,why,*_ in wrong:
            capsys.readouterr()
            assert not grade(name, sub(k, n)), (k, n)
            check_report(capsys.readouterr().out, why)
        assert not grade(name, sub(k, 12345.678))

@pytest.mark.parametrize('name', EXERCISES)
def test_worst_report_fits(name):
    "Everything wrong, each for a reason of its own that is as long as can be, and noise: still one screen."
    ex = EXERCISES[name]
    longest = max(READ, key=lambda k: sum(map(len, READ[k])))
    printed = E.Capped()
    printed.write('x'*1_000_000)
    for failed in range(len(ex.properties)+1):
        results = [E.Result(p.claim, *(('✗', f'{i} '+'word '*100, longest) if i<failed else ('✓',))) for i,p in enumerate(ex.properties)]
        check_report(str(E.Report(name, results, printed, ex.what)))
    check_report(str(E.Report(name, (), what=ex.what)))

def test_a_fourth_mistake_waits():
    results = [E.Result(f'claim {i}', '✗', f'mistake {i}', 'check') for i in range(5)]
    text = str(E.Report('x', results))
    assert 'mistake 2' in text and 'mistake 3' not in text and text.count('when those above are mended')==2


# ---- submissions that find a bug, and the last project
@pytest.mark.parametrize('name', E.BUGS)
def test_bug(name, capsys):
    bug,right,test,_ = E.BUGS[name]
    assert grade(name, (test, right))
    assert not grade(name, (test, bug))                     # not repaired
    assert not grade(name, (lambda o: 0, right))            # sees nothing
    capsys.readouterr()
    def too_strict(o): raise AssertionError('no')
    for check,said in ((lambda o: 0, 'silent on the defect'), (too_strict, 'asks for more than the defect')):
        assert not grade(name, (check, right))
        check_report(capsys.readouterr().out, said)
    assert not grade(name, (test, ...)) and 'not begun' in capsys.readouterr().out

def convert(net):
    for i,m in enumerate(net):
        if isinstance(m, nn.BatchNorm2d): net[i] = nn.GroupNorm(1, m.num_features)
    return net

def rows_of(lrs=(.001,.004), seeds=3, mine=.8, batch=.3):
    return [dict(norm=n, lr=lr, seed=s, accuracy=a+s/100) for n,a in dict(mine=mine, batch=batch).items() for lr in lrs for s in range(seeds)]

@pytest.mark.parametrize('sub, said', [
    ((convert, rows_of(lrs=(.1,))), 'single learning rate'), ((convert, rows_of(seeds=1)), 'fewer than three seeds'), ((convert, [1]), 'list of dicts'),
    ((convert, [r for r in rows_of() if r['norm']=='mine']), 'norms to compare'), ((convert, rows_of(mine=.999)), 'does not repeat'),
    ((convert, rows_of(mine=.302)), 'do not defend'), ((lambda net: net, rows_of()), 'refuses a batch of one'),
    ((lambda net: convert(E.small_net(7)), rows_of()), 'carries them over'), (convert, 'two things')])
def test_defence(sub, said, capsys):
    assert not grade('small_batch_model', sub)
    check_report(capsys.readouterr().out, said)


# ---- a submission may do anything
def forever(*_, **__):
    while True: pass
def stubborn(*_, **__):
    while True:
        try: forever()
        except BaseException: pass

@pytest.mark.parametrize('f, thread', [(forever, False), (forever, True), (stubborn, False)])
def test_endless(f, thread, capsys):
    "Also where no alarm rings: in a thread."
    def run(): assert not grade('schedule', f, seconds=.5)
    if thread:
        t = threading.Thread(target=run)
        t.start(); t.join(60)
        assert not t.is_alive()
    else: run()
    assert 'does not end' in capsys.readouterr().out

def test_sleeping(capsys):
    assert not grade('schedule', lambda opt, steps: time.sleep(1000), seconds=.3)
    assert 'does not end' in capsys.readouterr().out

def test_an_alarm_set_before_goes_on():
    signal = pytest.importorskip('signal')
    if not hasattr(signal, 'setitimer'): pytest.skip('no alarm here')
    before,_ = signal.getitimer(signal.ITIMER_REAL)
    if not before: signal.setitimer(signal.ITIMER_REAL, 500)
    grade('offset_input', .02)
    after,_ = signal.getitimer(signal.ITIMER_REAL)
    if not before: signal.setitimer(signal.ITIMER_REAL, 0)
    assert 0<after<=(before or 500)

def noisy(opt, steps): print('x'*100 + '\n'*100_000); return submission(SCHEDULE)(opt, steps)
def deep(opt, steps): return deep(opt, steps)
def chaos(opt, steps):
    torch.set_default_dtype(torch.float64); torch.manual_seed(1); torch.set_grad_enabled(False)
    raise KeyError('x')

@pytest.mark.parametrize('f, said', [(noisy, 'It printed'), (deep, 'RecursionError'), (chaos, 'KeyError')])
def test_anything(f, said, capsys):
    state = torch.get_rng_state()
    grade('schedule', f)
    check_report(capsys.readouterr().out, said)
    assert torch.get_default_dtype()==torch.float32 and torch.is_grad_enabled() and torch.equal(state, torch.get_rng_state())

NONSENSE = [3, 'text', object, object(), [], {}, (1, 2), float('nan'), lambda: 0, nn.Identity, nn.Identity(), torch.zeros(3)]

@pytest.mark.parametrize('name', EXERCISES)
def test_nonsense_never_passes(name, capsys):
    for value in NONSENSE:
        assert not grade(name, value)
        check_report(capsys.readouterr().out)

@pytest.mark.parametrize('name', EXERCISES)
def test_not_begun(name, capsys, folder):
    assert not grade(name, ...)
    assert capsys.readouterr().out.count('\n')==1 and not list(folder.iterdir())

@pytest.mark.parametrize('name', NUMBERS)
def test_half_filled(name, capsys):
    "What is filled in is graded; what is not is no mistake, and all of it blank is not begun."
    right = {k: truth for k,(truth,*_) in NUMBERS[name].items() if k is not None}
    if len(right)<2: return
    for k in right:
        assert not grade(name, right | {k: ...})
        out = capsys.readouterr().out
        check_report(out, f'– {k}: not filled in yet')
        assert out.count('✓')==len(right)-1 and '✗' not in out, out
    assert not grade(name, dict.fromkeys(right, ...)) and 'not begun' in capsys.readouterr().out

def test_unknown_name():
    with pytest.raises(ValueError, match='did you mean: batchnorm'): grade('batchnrom', 1)

def test_strict(monkeypatch):
    monkeypatch.setenv('COURSE_SOLUTIONS', '1')
    with pytest.raises(AssertionError, match='offset_input is not solved'): grade('offset_input', 3.)


# ---- progress
ON_INIT = sum(e.page=='init' for e in EXERCISES.values())

def test_progress(folder, capsys):
    grade('offset_input', 3.); grade('offset_input', .02); grade('gain_dropout', 3.)
    E.course_progress('init')
    out = capsys.readouterr().out
    assert f'init: 1 of {ON_INIT}' in out and re.search(r'✓ offset_input .* solved on \d{4}-\d\d-\d\d', out) and 'tries: 1' in out

@pytest.mark.parametrize('content', [b'', b'{', b'[]', b'\xff\xfe', b'{"exercises": {"offset_input": 3}}', b'{"exercises": []}', b'null'])
def test_corrupt_progress_is_set_aside(folder, content, capsys):
    for i in (1, 2):
        (folder/'progress.json').write_bytes(content)
        grade('offset_input', .02)
        assert f'kept as progress-unreadable-{i}.json' in capsys.readouterr().out
        assert (folder/f'progress-unreadable-{i}.json').read_bytes()==content
        assert 'solved' in json.loads((folder/'progress.json').read_text())['exercises']['offset_input']
    assert not list(folder.glob('*.part'))

def test_folder_that_cannot_be_written(folder, monkeypatch, capsys):
    (folder/'file').write_text('')
    monkeypatch.setenv('COURSE_PROGRESS', str(folder/'file'))
    assert grade('offset_input', .02) and 'not written down' in capsys.readouterr().out

def test_command(folder):
    import subprocess
    grade('offset_input', .02)
    code = 'import sys; from course_lib.grading import course_progress; sys.argv = ["course_progress", "--page", "init"]; course_progress()'
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, env=dict(os.environ, PYTHONIOENCODING='utf-8'))
    assert out.returncode==0 and f'init: 1 of {ON_INIT}' in out.stdout, out.stdout+out.stderr


# ---- the notebooks
def cells_of(path):
    return [(c['cell_type'], ''.join(c['source'])) for c in json.loads(path.read_text(encoding='utf-8'))['cells']]

def solution(md, name):
    m = re.search(rf'<details id="solution-{name}">[\s\S]*?```python\n([\s\S]*?)```', md)
    assert m, f'{name} has no solution'
    return m[1]

def run_page(path, solved):
    "Execute a page, with each solution in place of its starting cell and something predicted, or as it is; its exercises and predictions."
    cells,names,predicted = cells_of(path),[],[]
    md = '\n'.join(s for k,s in cells if k=='markdown')
    ns = dict(__name__='__main__')
    for kind,src in cells:
        if kind!='code' or 'google.colab' in src: continue
        if m := re.search(r'^#\| exercise: (\w+)', src):
            names.append(m[1])
            if solved: src = solution(md, m[1])
        if src.startswith('#| predict\n'):
            predicted += re.findall(r'^(\w+) = \.\.\.', src, re.M)
            if solved: src = re.sub(r'^(\w+) = \.\.\.', r'\1 = 1.', src, flags=re.M)
        exec(compile(src, str(path), 'exec'), ns)
    return names,predicted

def starting_cells(path):
    return {m[1]: src for kind,src in cells_of(path) if kind=='code' and (m := re.search(r'^#\| exercise: (\w+)', src))}

IN_LESSONS = {name: (path, src) for path in sorted((ROOT/'nbs').glob('[0-9]*.ipynb')) for name,src in starting_cells(path).items()}

@pytest.mark.parametrize('name', IN_LESSONS)
def test_exercise_in_a_lesson(name, monkeypatch, capsys):
    "Stub and grader share a cell: as given it is not begun and goes on, and with the solution that unfolds it is solved."
    plt = pytest.importorskip('matplotlib.pyplot')
    plt.switch_backend('Agg')
    monkeypatch.setenv('IN_TEST', '1')
    path,src = IN_LESSONS[name]
    cells = cells_of(path)
    md = '\n'.join(s for k,s in cells if k=='markdown')
    ns = dict(torch=torch, nn=nn, F=F, math=math, grade=grade)
    exec(next((s for k,s in cells if k=='code' and '# @title Imports' in s), ''), ns)
    exec(src, ns)
    assert re.search(rf'^{name}: not begun', capsys.readouterr().out, re.M)
    monkeypatch.setenv('COURSE_SOLUTIONS', '1')
    assert f'<details id="hint-{name}">' in md
    exec(solution(md, name)+'\n'+src[src.index(f"grade('{name}'"):], ns)   # what is drawn below the grader as well
    assert re.search(rf'^{name}: .*, solved$', capsys.readouterr().out, re.M)
    plt.close('all')

@pytest.mark.parametrize('path', PAGES, ids=lambda p: p.stem)
def test_solutions_pass(path, monkeypatch, capsys):
    pytest.importorskip('matplotlib').use('Agg')
    monkeypatch.setenv('IN_TEST', '1')
    monkeypatch.setenv('COURSE_SOLUTIONS', '1')
    monkeypatch.setenv('COURSE_SAMPLE', '1')
    names,predicted = run_page(path, True)
    out = capsys.readouterr().out
    assert len(re.findall(r'^(?:You said|It is)', out, re.M))==len(predicted) and 'No prediction yet' not in out
    for n in names: assert re.search(rf'^{n}: .*, solved$', out, re.M), out
    here = {k for k,e in EXERCISES.items() if e.page==path.stem}      # what stands in a lesson may stand here as well
    assert here-set(IN_LESSONS) <= set(names) <= here and len(set(names))==len(names)

@pytest.mark.parametrize('path', [p for p in PAGES if p.stem!='batchnorm'], ids=lambda p: p.stem)   # that one trains: nbdev_test runs it
def test_page_as_given(path, monkeypatch, capsys):
    "Nothing fails, every exercise is not begun, and no result of a prediction shows."
    plt = pytest.importorskip('matplotlib.pyplot')
    plt.switch_backend('Agg'); plt.close('all')
    monkeypatch.setenv('IN_TEST', '1')
    names,predicted = run_page(path, False)
    out = capsys.readouterr().out
    for n in names: assert re.search(rf'^{n}: not begun', out, re.M), out
    assert out.count('No prediction yet')==len(predicted) and not re.search('You said|[Ii]t is ', out) and not plt.get_fignums()

@pytest.mark.parametrize('path', PAGES, ids=lambda p: p.stem)
def test_explanations_fold(path):
    "Whatever tells a solution or a result is folded; what a fold tells of a result is asserted at the very end."
    cells = cells_of(path)
    for kind,src in cells:
        if kind!='markdown': continue
        assert src.count('<details')==src.count('</details>') and '<details open' not in src
        outside = re.sub(r'<details[\s\S]*?</details>', '', src)
        assert '```' not in outside, outside
        for m in re.finditer(r'<details id="(\w+)-[\s\S]*?</summary>(\n*)', src): assert m[1] in ('hint','solution','seen') and m[2]=='\n\n', m[0]
        if '<details id="seen-' in src: assert cells[-1][0]=='code' and cells[-1][1].startswith('#| hide\n') and 'assert ' in cells[-1][1]
    text = '\n'.join(s for k,s in cells if k=='code')
    for l in text.split('\n'): assert len(l)<=96 or l.startswith('#|') or '%pip' in l, l
    asked = [m for m in re.findall(r'^#\| predict\n(?:\w+ = .*\n?)+', text, re.M)]
    assert text.count('#| predict')==len(asked)<=text.count('compare_prediction(')

def test_snippets_on_the_page_are_those_of_the_grader():
    nb = json.loads((ROOT/'nbs/exercises/debugging.ipynb').read_text(encoding='utf-8'))
    shown = {''.join(c['source']): ''.join(c['outputs'][0]['data']['text/markdown']) for c in nb['cells'] if c['cell_type']=='code' and c['outputs']}
    assert shown=={f'show_bug({k!r})': E.show_bug(k).data for k in E.BUGS} and len(shown)==8

def test_each_prediction_is_explained():
    "A page that asks for a prediction explains it below; only the schedule's result, of a single run, speaks for itself."
    for p in PAGES:
        text = '\n'.join(s for _,s in cells_of(p))
        assert text.count('#| predict\n')==text.count('<details id="seen-')+(p.stem=='batchnorm'), p.stem

def test_lessons_link_their_exercises():
    "Each lesson that a page of exercises names links to it."
    for p in PAGES:
        text = '\n'.join(s for k,s in cells_of(p) if k=='markdown')
        for lesson in re.findall(r'\]\(\.\./(\w+)\.ipynb\)', next(s for s in text.split('\n') if s.startswith('These exercises go with')) if 'These exercises go with' in text else ''):
            md = '\n'.join(s for k,s in cells_of(ROOT/f'nbs/{lesson}.ipynb') if k=='markdown')
            assert f'](exercises/{p.name})' in md.split('## Exercises')[-1], (lesson, p.name)

def test_every_page_exists(): assert {p.stem for p in PAGES}=={e.page for e in EXERCISES.values()}

QUESTIONS = ['bn_parameters', 'ema', 'batchnorm', 'builtin_net', 'schedule', 'layernorm', 'instancenorm', 'three_groups',
             'runningbatchnorm', 'tiny_batch']   # the study group's nine; the ninth has two halves

def test_all_nine_questions():
    text = '\n'.join(s for p in PAGES for k,s in cells_of(p) if k=='code')
    for name in QUESTIONS: assert re.search(rf"grade\('{name}'", text), name

@pytest.mark.parametrize('key', READ)
def test_what_to_read_exists(key):
    page,heading = READ[key]
    found = [p for p in (ROOT/'nbs').rglob('*.ipynb') if re.fullmatch(rf'(\d\d[a-d]?_)?{page}', p.stem) and p.parent.name!='exercises']
    text = '\n'.join(s for p in found for k,s in cells_of(p) if k=='markdown')
    assert f'# {heading}\n' in text+'\n', (page, heading)
