"""Fashion-MNIST in five epochs: the published path to 0.900, the best net below 100,000 parameters, and what each ingredient is worth.

    COURSE_DATA=<folder with fashion-mnist/> python experiments/towards90.py [part...]

Parts: path (the published recipe, all data), tune (rate and batch size, trained on 6,000 images and judged on the last 10,000 of the
training part), full (five recipes, the same with 50,000 images), best (the chosen recipe, all data), late (the same, in a net that pools
later), small (every ingredient left out, 6,000 images), ablate (the same with all data). Each appends to nbs/results/towards_90.jsonl
and skips the runs that are there, so it may be stopped and started again; `best3` and `late3` make three of their five seeds. One thread;
`bfloat16` in the recipe is for processors that have it.
"""
import json, sys, time
from functools import partial
from pathlib import Path

import torch, torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import ConstantLR, OneCycleLR

from course_lib.core import set_seed
from course_lib.datasets import DataLoaders, get_dataset
from course_lib.init import init_weights
from course_lib.learner import BatchTransformCB, Learner, MetricsCB, MomentumLearner, NaNGuardCB, TrainCB, random_flip, random_shift
from course_lib.models import GeneralRelu, get_model, n_params, pooled_net
from course_lib.norms import norm_factory
from course_lib.train import AutocastCB
from course_lib.training import BatchSchedCB

OUT = Path(__file__).resolve().parents[1]/'nbs/results/towards_90.jsonl'
BEST = dict(norm='batch', init='kaiming', opt='sgd', lr=.1, momentum=.9, decay=5e-4, sched='onecycle', bs=128, flip=True, crop=0,
            smoothing=0., epochs=5, bfloat16=False)
TUNE = [dict(lr=lr, bs=bs) for bs,lr in ((256,.1), (128,.1), (256,.05), (128,.05))]
# what replaces or leaves out an ingredient, and the rates that are tried where it needs one of its own
RATES = {'no norm':(dict(norm='none'), (.05,.02)), 'group norm':(dict(norm='group'), (.1,.05)), 'no momentum':(dict(momentum=0.), (1.,.3)),
         'AdamW':(dict(opt='adamw', decay=.05), (.005,.002)), 'constant, own rate':(dict(sched='constant'), (.03,.01))}
TUNE += [o|dict(lr=lr) for o,lrs in RATES.values() for lr in lrs]
TUNED = {'no norm':.02, 'group norm':.05, 'no momentum':1., 'AdamW':.005, 'constant, own rate':.03}  # the better one of each, by the rows of `tune`
LEFT_OUT = {'default init':dict(init='default'), 'no flip':dict(flip=False)} | {k:o|dict(lr=TUNED[k]) for k,(o,_) in RATES.items()} | {
    'no weight decay':dict(decay=0.), 'constant rate':dict(sched='constant')}
SUBSET = 6_000  # those that ship with the course
FULL = [{}, dict(bs=64), dict(bs=64, lr=.05), dict(smoothing=.1), dict(late=True)]  # what else might help: trained on 50,000 images


def factory(norm): return nn.BatchNorm2d if norm=='batch' else norm_factory(norm)

def augment(flip, crop, batch):
    "Each image mirrored with probability 1/2, and moved by up to `crop` pixels"
    if flip: batch = random_flip(batch)
    return random_shift(batch, crop) if crop else batch

def groups(params, opt, lr, momentum, decay):
    "The optimizer; only weights of two and more dimensions decay"
    params = list(params)
    gs = [dict(params=[p for p in params if p.ndim>1], weight_decay=decay), dict(params=[p for p in params if p.ndim<2], weight_decay=0.)]
    if opt=='adamw': return torch.optim.AdamW(gs, lr=lr)
    return torch.optim.SGD(gs, lr=lr, momentum=momentum, nesterov=momentum>0)

def build(c):
    model = pooled_net(factory(c['norm']), c.get('late', False))
    if c['init']=='kaiming':
        model.apply(init_weights)
        nn.init.zeros_(model[-1].weight)  # at first no class is likelier than another
    return model.to(memory_format=torch.channels_last)

def accuracies(learn, dls):
    "Of the model, and of the mean of its answers to each image and its mirror image"
    model,cb = learn.model.eval(),learn.verbs
    hits = torch.zeros(2)
    for x,y in dls.valid:
        outs = []
        for o in (x, x.flip(3)):
            learn.batch = (o,y)
            with torch.no_grad(): cb.predict(learn)
            outs.append(learn.preds.softmax(1))
        hits += torch.tensor([(o.argmax(1)==y).sum() for o in (outs[0], sum(outs))])
    return [round(o, 4) for o in (hits/len(dls.valid.y)).tolist()]

def fit(c, dd, seed):
    "One run of the recipe `c`"
    set_seed(seed)
    dls = DataLoaders.in_memory(dd, c['bs'], device='cpu', seed=seed, valid_batch_size=1000)
    model,steps = build(c),c['epochs']*len(dls.train)
    sched = partial(OneCycleLR, max_lr=c['lr'], total_steps=steps, cycle_momentum=False) if c['sched']=='onecycle' else partial(ConstantLR, factor=1.)
    metrics = MetricsCB(verbose=False, accuracy='MulticlassAccuracy')
    cbs = [metrics, BatchSchedCB(sched), NaNGuardCB(), (AutocastCB if c['bfloat16'] else TrainCB)(),
           BatchTransformCB(partial(augment, c['flip'], c['crop']), on_valid=False)]
    opt = lambda ps,lr: groups(ps, c['opt'], lr, c['momentum'], c['decay'])
    learn = Learner(model, dls, partial(cross_entropy, c['smoothing']), lr=c['lr'], cbs=cbs, opt_func=opt)
    t = time.time()
    try: learn.fit(c['epochs'])
    except FloatingPointError: return dict(history=metrics.history, params=n_params(model), accuracy=None)
    seconds = time.time()-t
    acc,both = accuracies(learn, dls)
    return dict(history=metrics.history, params=n_params(model), accuracy=acc, mirrored=both, fit_seconds=round(seconds, 1))

def cross_entropy(smoothing, preds, y): return F.cross_entropy(preds, y, label_smoothing=smoothing)

def path_run(dd, seed):
    "The published recipe: five stride-2 convolutions, GeneralRelu, batch norm, batches of 256; 3 epochs at 0.2, then 2 at 0.05"
    set_seed(seed)
    dls = DataLoaders.in_memory(dd, 256, device='cpu', seed=seed, valid_batch_size=1000)
    model = get_model(partial(GeneralRelu, leak=.1, sub=.4), norm=nn.BatchNorm2d).apply(partial(init_weights, leaky=.1))
    metrics,history,t = MetricsCB(verbose=False, accuracy='MulticlassAccuracy'),[],time.time()
    learn = MomentumLearner(model, dls, momentum=.85, cbs=[metrics])
    for epochs,lr in ((3,.2), (2,.05)):
        learn.fit(epochs, lr=lr)
        history = history + [o|dict(epoch=o['epoch']+len(history)//2) for o in metrics.history]
    return dict(history=history, params=n_params(model), accuracy=round(history[-1]['accuracy'], 4), fit_seconds=round(time.time()-t, 1))


def subset(dd, n, valid=None):
    "The first `n` images, and the test images or others of the training images"
    return type(dd)(train=dd['train'].select(range(n)), test=dd['test'] if valid is None else dd['train'].select(valid))

def words(changes): return ', '.join(f'{k} {v}' for k,v in changes.items())

def plan(dd, parts):
    "(part, name, changes to the recipe, seed, data)"
    held_out = range(50_000, 60_000)
    for part in parts:
        part,first = part.rstrip('0123456789'),int(part.lstrip('abcdefghijklmnopqrstuvwxyz') or 9)  # best3: its first three seeds
        if part=='path': yield from ((part, 'published', None, s, dd) for s in range(5)[:first])
        if part=='tune': yield from ((part, words(o), BEST|o, s, subset(dd, SUBSET, held_out)) for s in range(1) for o in TUNE)
        if part=='full': yield from ((part, words(o) or 'as it is', BEST|o, 0, subset(dd, 50_000, held_out)) for o in FULL)
        if part=='best': yield from ((part, 'best', BEST, s, dd) for s in range(5)[:first])
        if part=='late': yield from ((part, 'late', BEST|dict(late=True), s, dd) for s in range(5)[:first])
        if part=='small': yield from ((part, n, BEST|o, s, subset(dd, SUBSET)) for s in range(3) for n,o in (dict(best={})|LEFT_OUT).items())
        if part=='ablate': yield from ((part, n, BEST|o, s, dd) for n,o in LEFT_OUT.items() for s in range(3))

def main(parts):
    torch.set_num_threads(1)
    dd = get_dataset('fashion_mnist')
    rows = [json.loads(o) for o in OUT.read_text().splitlines()] if OUT.exists() else []
    done = {(o['part'], o['name'], o['seed']) for o in rows}
    for part,name,c,seed,data in plan(dd, parts):
        if (part,name,seed) in done: continue
        t = time.time()
        row = dict(part=part, name=name, seed=seed) | (path_run(data, seed) if c is None else fit(c, data, seed))
        row['history'] = [{k:round(v, 4) if isinstance(v, float) else v for k,v in o.items()} for o in row['history']]
        row |= dict(config=c, n_train=len(data['train']), seconds=round(time.time()-t, 1), torch=torch.__version__)
        with OUT.open('a') as f: f.write(json.dumps(row)+'\n')
        print(part, name, seed, row['accuracy'], row.get('mirrored'), row['seconds'], flush=True)


if __name__ == '__main__': main(sys.argv[1:] or ('path','tune','full','best','late','small','ablate'))
