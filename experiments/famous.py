"""Published claims on normalization, run again: the rows of the lesson on famous results.

    COURSE_DATA=<folder with fashion-mnist/ and mnist/> python experiments/famous.py [part...]

Parts: two (MNIST in batches of 2), recalibrated (running batch norm with other statistics, and without the norm on one pixel),
grid (norms times learning rates), published (detached or full gradient, MNIST). Each appends its rows to nbs/results/famous_<part>.jsonl and skips the runs
that are there, so it may be stopped and started again. All models use one thread, plain SGD and no schedule.
"""
import json, math, sys, time
from functools import partial
from itertools import product
from pathlib import Path

import torch, torch.nn.functional as F
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from course_lib.core import set_seed
from course_lib.datasets import DataLoaders, get_dataset
from course_lib.init import init_weights
from course_lib.models import get_model
from course_lib.norms import norm_factory
from course_lib.norms.convert import recalibrate

RESULTS = Path(__file__).resolve().parents[1]/'nbs/results'
NFS, SEEDS = (1,8,16,32,64,64), (0,1,2)  # the net of the sources: five stride-2 convolutions, the last map is 1x1
TWO = dict(bs=2, samples=6_000, dataset='mnist')
GRID = dict(bs=64, n_train=6_000, epochs=2, dataset='fashion_mnist')
PUBLISHED = dict(bs=512, n_train=50_000, epochs=3, lr=1., dataset='mnist')
TWO_NETS = ('batch','batch_no1x1','layer','group','running','none','instance_no1x1')
TWO_LRS, GRID_LRS = (.02,.1,.4), (.1,.3,1.,3.)


def versions(): return dict(python=sys.version.split()[0], torch=torch.__version__)

def data(name, n):
    "Normalized training images (the first `n`), labels, test images, labels"
    dls = DataLoaders.in_memory(get_dataset(name), 1, device='cpu')
    cut = lambda l,n: ((l.x[:n].float()/255-dls.mean)/dls.std, l.y[:n])
    return *cut(dls.train, n),*cut(dls.valid, None)

def orders(n, seed, epochs=1):
    "Row numbers, epoch after epoch"
    g = torch.Generator().manual_seed(1000+seed)
    return torch.cat([torch.randperm(n, generator=g) for _ in range(epochs)])

def make(name, seed):
    "The net of the sources with the norm `name`; with `_no1x1` the 1x1 map has none"
    set_seed(seed)
    norm,rest = (name.split('_no1x1')+[None])[:2]
    builtin = dict(batch=nn.BatchNorm2d)
    return get_model(nfs=NFS, norm=builtin.get(norm) or norm_factory(norm), norm_1x1=rest is None).apply(partial(init_weights, leaky=.1))

@torch.no_grad()
def evaluate(model, xv, yv):
    "Accuracy and loss"
    out = torch.cat([model.eval()(x) for x in xv.split(1000)])
    return dict(accuracy=round((out.argmax(1)==yv).float().mean().item(), 4), valid_loss=round(F.cross_entropy(out, yv).item(), 4))

def train(model, x, y, lr, bs, order):
    "Plain SGD; the training losses, up to the first that is not finite"
    opt,losses = torch.optim.SGD(model.train().parameters(), lr=lr),[]
    for i in order.split(bs):
        loss = F.cross_entropy(model(x[i]), y[i])
        losses.append(loss.item())
        if not math.isfinite(losses[-1]): break
        loss.backward(); opt.step(); opt.zero_grad()
    return losses

def train_alone(x, y, xv, yv, model, lr, bs, order):
    losses = train(model, x, y, lr, bs, order)
    tail = losses[-max(1, len(losses)//10):]
    return evaluate(model, xv, yv) | dict(finite=math.isfinite(losses[-1]), train_loss=round(sum(tail)/len(tail), 4))


# ---- batches of two: nine models (learning rates times seeds) in one stack, as a step is all overhead
def train_stack(models, lrs, x, y, rows):
    "Plain SGD on several models of one kind at once, model m with rate `lrs[m]` on the images `rows[t][m]`; loads the results back"
    params,buffers = stack_module_state(models)
    lrs = torch.tensor(lrs)
    def forward(p, b, xb):
        state = p|b
        return functional_call(models[0], state, (xb,)),{k:state[k] for k in b}
    models[0].train()
    for i in rows:
        out,new = vmap(forward)(params, buffers, x[i])
        loss = F.cross_entropy(out.flatten(0,1), y[i].flatten(), reduction='none').sum()/i.shape[1]
        grads = torch.autograd.grad(loss, list(params.values()))
        with torch.no_grad():
            for p,g in zip(params.values(), grads): p.sub_(g*lrs.view(-1, *[1]*(g.ndim-1)))
        buffers = {k:v.detach() for k,v in new.items()}
    for j,m in enumerate(models): m.load_state_dict({k:v[j] for k,v in (params|buffers).items()})

def two(nets=TWO_NETS, lrs=TWO_LRS, part='two', refresh=()):
    "With `refresh`, kinds of norm: the accuracy again after `recalibrate` on 2,000 training images"
    out = RESULTS/f'famous_{part}.jsonl'
    x,y,xv,yv = data(TWO['dataset'], TWO['samples'])
    for name in nets:
        runs = [r for r in product((name,), lrs, SEEDS) if r not in done(out, ('net','lr','seed'))]
        if not runs: continue
        t,models = time.time(),[make(name, s) for _,_,s in runs]
        rows = torch.stack([orders(len(x), s) for _,_,s in runs], 1).split(TWO['bs'])
        train_stack(models, [lr for _,lr,_ in runs], x, y, [o.T for o in rows])
        sec = (time.time()-t)/len(runs)
        for (_,lr,s),m in zip(runs, models):
            row = dict(net=name, lr=lr, seed=s, **evaluate(m, xv, yv))
            if refresh:
                recalibrate(m, [x[:1000],x[1000:2000]], refresh, progress=False)
                row['recalibrated'] = evaluate(m, xv, yv)['accuracy']
            append(out, row, TWO, sec)

def recalibrated(): two(('running','running_no1x1'), (.02,), 'recalibrated', ('running',))


# ---- norms times learning rates; the published comparison
def grid():
    x,y,xv,yv = data(GRID['dataset'], GRID['n_train'])
    run = lambda n,lr,s: train_alone(x, y, xv, yv, make(n, s), lr, GRID['bs'], orders(len(x), s, GRID['epochs']))
    each('grid', ('net','lr','seed'), [(n,lr,s) for s,n,lr in product(SEEDS, ('batch','layer','batch_detached','none','instance_no1x1'), GRID_LRS)], run, GRID)

def published():
    x,y,xv,yv = data(PUBLISHED['dataset'], PUBLISHED['n_train'])
    run = lambda n,s: train_alone(x, y, xv, yv, make(n, s), PUBLISHED['lr'], PUBLISHED['bs'], orders(len(x), s, PUBLISHED['epochs']))
    each('published', ('net','seed'), [(n,s) for s,n in product(SEEDS, ('batch','batch_detached'))], run, PUBLISHED)


# ---- rows
def done(out, keys):
    rows = [json.loads(o) for o in out.read_text().splitlines()] if out.exists() else []
    return {tuple(o[k] for k in keys) for o in rows}

def append(out, row, config, seconds):
    row |= dict(config=config, seconds=round(seconds, 1), versions=versions())
    with out.open('a') as f: f.write(json.dumps(row)+'\n')
    print(out.stem, *[row[k] for k in ('net','lr','seed') if k in row], row['accuracy'], row['seconds'], flush=True)

def each(part, keys, runs, run, config):
    out = RESULTS/f'famous_{part}.jsonl'
    for r in runs:
        if r in done(out, keys): continue
        t = time.time()
        append(out, dict(zip(keys, r)) | run(*r), config, time.time()-t)

def main(parts):
    torch.set_num_threads(1)
    for p in parts: dict(two=two, recalibrated=recalibrated, grid=grid, published=published)[p]()


if __name__ == '__main__': main(sys.argv[1:] or ('two','grid','recalibrated','published'))
