"""Initializations on Fashion-MNIST: the table of the lesson on initialization in practice.

    COURSE_DATA=<folder with fashion-mnist/> python experiments/init.py

Appends one row a run to nbs/results/init_table.jsonl (all 60,000 images) and skips the runs that are already there, so
it may be stopped and started again.
"""
import json, sys, time
from functools import partial
from pathlib import Path

import torch
from torch import nn

from course_lib.activations import ActivationStats
from course_lib.core import set_seed
from course_lib.datasets import DataLoaders, get_dataset
from course_lib.init import init_weights
from course_lib.learner import BatchTransformCB, MetricsCB, MomentumLearner, NaNGuardCB
from course_lib.lsuv import lsuv_init
from course_lib.models import GeneralRelu, get_model

RESULTS = Path(__file__).resolve().parents[1]/'nbs/results'
general = partial(GeneralRelu, leak=.1, sub=.4)
kaiming, own = partial(init_weights, leaky=.1), partial(init_weights, nonlinearity=general)

# name -> (activation, function applied to each module or 'lsuv' or None, is the input normalized, number of seeds)
ROWS = dict(default=(nn.ReLU, None, False, 5), kaiming=(nn.ReLU, init_weights, False, 5),
            kaiming_callback=(nn.ReLU, init_weights, 'callback', 5), kaiming_dataset=(nn.ReLU, init_weights, True, 5),
            general=(general, kaiming, True, 5), general_own_gain=(general, own, True, 5),
            lsuv_relu=(nn.ReLU, 'lsuv', True, 5), lsuv_general=(general, 'lsuv', True, 5))
TABLE = dict(bs=1024, lr=.2, momentum=.85, epochs=3)


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

def dead_shares(model, act, x):
    "Share of each activation layer's units that pass on no gradient for any of the images `x`"
    with torch.no_grad(), ActivationStats(act, rows=len(x), on_valid=True).watch(model.eval()) as stats: model(x)
    return [round(1-o.values('alive').float().mean().item(), 4) for o in stats.layers]

def table_row(dls, row, seed):
    act, init, norm, _ = ROWS[row]
    reseed(dls, seed)
    model = get_model(act)
    if init=='lsuv': lsuv_init(model, first_batch(dls))
    elif init: model.apply(init)
    cbs = [BatchTransformCB(lambda b: ((b[0]-dls.mean)/dls.std, b[1]))] if norm=='callback' else []
    history = fit(model, dls, TABLE['lr'], TABLE['momentum'], TABLE['epochs'], cbs)
    x,y = next(iter(dls.valid))
    if norm=='callback': x = (x-dls.mean)/dls.std
    return dict(history=history, dead=dead_shares(model, getattr(act, 'func', act), x))


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
    dls = {n: loaders(dd, TABLE['bs'], n) for n in (True, False)}
    runs = [(r, s) for s in range(20) for r in ROWS if s<ROWS[r][3]]
    run = lambda r,s: table_row(dls[ROWS[r][2] is True], r, s)
    sweep(RESULTS/'init_table.jsonl', ('row', 'seed'), runs, run, dict(TABLE, n_train=len(dd['train'])))


if __name__ == '__main__': main()
