"""Initializations on Fashion-MNIST: the heat map of the lesson on LSUV.

    COURSE_DATA=<folder with fashion-mnist/> python experiments/init.py

Appends one row a run to nbs/results/init_or_norm.jsonl (the first 6,000 images, so the sample is enough) and skips
the runs that are already there, so it may be stopped and started again.
"""
import json, sys, time
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import nn

from course_lib.core import set_seed
from course_lib.datasets import DataLoaders, get_dataset
from course_lib.init import init_weights
from course_lib.learner import MetricsCB, MomentumLearner, NaNGuardCB
from course_lib.lsuv import lsuv_init
from course_lib.models import conv

RESULTS = Path(__file__).resolve().parents[1]/'nbs/results'
INITS, DEPTHS, LRS, SEEDS = ('default', 'kaiming', 'lsuv', 'batch'), (5, 10, 20, 40), (.003, .01, .03, .1, .3, 1.), (0, 1, 2)
MAP = dict(bs=32, momentum=.85, epochs=2, n_train=6_000, n_valid=1_000, channels=8)


def versions(): return dict(python=sys.version.split()[0], torch=torch.__version__)

def loaders(dd, bs, normalize=True): return DataLoaders.in_memory(dd, bs, device='cpu', normalize=normalize, valid_batch_size=1000)

def reseed(dls, seed):
    "The same weights, batches and order for the same seed"
    set_seed(seed)
    dls.train.load_state_dict(dict(seed=seed, epoch=0, batch=0))

def first_batch(dls):
    "The first training batch, and the loader back at its start"
    state = dls.state_dict()
    xb = next(iter(dls.train))[0]
    dls.load_state_dict(state)
    return xb

def fit(model, dls, lr, momentum, epochs, cbs=()):
    "Rows of metrics; fewer than `epochs` if the loss became NaN or infinite"
    metrics = MetricsCB(verbose=False, accuracy='MulticlassAccuracy')
    learn = MomentumLearner(model, dls, lr=lr, momentum=momentum, cbs=[metrics, NaNGuardCB(), *cbs])
    try: learn.fit(epochs)
    except FloatingPointError: pass
    return [{k:round(v, 4) if isinstance(v, float) else v for k,v in o.items()} for o in metrics.history]

def deep_net(depth, norm=None, c=MAP['channels']):
    "`depth` layers with weights: two convolutions of stride 2, then 3x3 ones on 7x7 maps, then a linear layer"
    layers = [conv(1, c, norm=norm), conv(c, c, norm=norm)] + [conv(c, c, stride=1, norm=norm) for _ in range(depth-3)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(c*49, 10))

def map_row(dls, init, depth, lr, seed):
    reseed(dls, seed)
    model = deep_net(depth, nn.BatchNorm2d if init=='batch' else None)
    if init=='kaiming': model.apply(init_weights)
    if init=='lsuv': lsuv_init(model, first_batch(dls))
    return dict(history=fit(model, dls, lr, MAP['momentum'], MAP['epochs']))


def sweep(out, keys, runs, run, config):
    "Append a row for each of `runs` that `out` doesn't hold yet"
    rows = [json.loads(o) for o in out.read_text().splitlines()] if out.exists() else []
    done = {tuple(o[k] for k in keys) for o in rows}
    for r in runs:
        if tuple(r) in done: continue
        t = time.time()
        row = dict(zip(keys, r)) | run(*r)
        row |= dict(config=config, seconds=round(time.time()-t, 1), versions=versions())
        with out.open('a') as f: f.write(json.dumps(row)+'\n')
        print(*r, row['history'][-1]['accuracy'] if row['history'] else 'failed', row['seconds'], flush=True)

def main():
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)             # a dying signal is made of denormals, which are slow
    RESULTS.mkdir(exist_ok=True)
    dd = get_dataset('fashion_mnist')
    for k,n in (('train', MAP['n_train']), ('test', MAP['n_valid'])): dd[k] = dd[k].select(range(min(n, len(dd[k]))))
    dls = loaders(dd, MAP['bs'])
    runs = [(i, d, lr, s) for s,d,i,lr in product(SEEDS, DEPTHS, INITS, LRS)]
    sweep(RESULTS/'init_or_norm.jsonl', ('init', 'depth', 'lr', 'seed'), runs, partial(map_row, dls), MAP)


if __name__ == '__main__': main()
