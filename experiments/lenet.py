"""LeNet-5 with sigmoids on Fashion-MNIST, with and without batch norm.

    COURSE_DATA=<folder with fashion-mnist/> python experiments/lenet.py         # learning rates times seeds, 4 epochs
    COURSE_DATA=<folder with fashion-mnist/> python experiments/lenet.py long    # the rates chosen there, to 0.85

Appends one row a run to nbs/results/lenet_models.jsonl or lenet_flags.jsonl and skips the runs that are already there.
"""
import json, sys, time
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import nn, optim

from course_lib.core import set_seed
from course_lib.datasets import DataLoaders, get_dataset
from course_lib.learner import Learner, MetricsCB
from course_lib.models import LeNet
from course_lib.norms import BatchNorm
from course_lib.norms.convert import norm_layers
from course_lib.training import BatchSchedCB

RESULTS = Path(__file__).resolve().parents[1]/'nbs/results'
OUT = RESULTS/'lenet_models.jsonl'
NORMS = dict(none=(None, None), batch=(nn.BatchNorm2d, nn.BatchNorm1d))
LRS, SEEDS, EPOCHS, BS = (.1, .3, 1., 3.), (0, 1, 2), 4, 256
# the long runs: factories, the rate that is best in the grid above by seeds 0 and 1, and the number of epochs
LONG = dict(torch=(NORMS['batch'], .3, 8), course=((BatchNorm, BatchNorm), .3, 8), none=(NORMS['none'], 1., 8))
LONG_SEEDS = (2, 3, 4)


def init(m):
    if isinstance(m, (nn.Conv2d, nn.Linear)): nn.init.xavier_uniform_(m.weight)


def run(dd, norm, lr, seed):
    set_seed(seed)
    metrics = MetricsCB(verbose=False, accuracy='MulticlassAccuracy')
    dls = DataLoaders.in_memory(dd, BS, device='cpu', seed=seed, valid_batch_size=1000)
    model = LeNet(*NORMS[norm]).apply(init)
    t = time.time()
    Learner(model, dls, lr=lr, cbs=[metrics], opt_func=optim.SGD).fit(EPOCHS)
    rows = [o for o in metrics.history if o['train']=='eval']
    return dict(norm=norm, lr=lr, seed=seed, bs=BS, valid_accuracy=[round(o['accuracy'], 4) for o in rows],
                valid_loss=[round(o['loss'], 4) for o in rows], n_train=len(dd['train']),
                weight=model[0][1].weight.tolist() if norm=='batch' else None,
                seconds=round(time.time()-t, 1), torch=torch.__version__)


def flat_then_down(step, steps):
    "Share of the learning rate: all of it in the first half of the run, then straight down to zero"
    return min(1, 2*(1-step/steps))


def run_long(dd, name, seed):
    (norms, lr, epochs) = LONG[name]
    set_seed(seed)
    metrics = MetricsCB(verbose=False, accuracy='MulticlassAccuracy')
    dls = DataLoaders.in_memory(dd, BS, device='cpu', seed=seed, valid_batch_size=1000)
    model = LeNet(*norms).apply(init)
    sched = partial(optim.lr_scheduler.LambdaLR, lr_lambda=partial(flat_then_down, steps=epochs*len(dls.train)))
    t = time.time()
    Learner(model, dls, lr=lr, cbs=[metrics, BatchSchedCB(sched)], opt_func=optim.SGD).fit(epochs)
    get = lambda part: [round(o['accuracy'], 4) for o in metrics.history if o['train']==part]
    layers = norm_layers(model).values() if name!='none' else ()
    learned = {k:[[round(v, 4) for v in getattr(m, k).tolist()] for m in layers] for k in ('weight', 'bias')}
    return dict(model=name, lr=lr, seed=seed, bs=BS, epochs=epochs, valid_accuracy=get('eval'), train_accuracy=get('train'),
                **learned, n_train=len(dd['train']), seconds=round(time.time()-t, 1), torch=torch.__version__)


def main_long():
    dd, out = get_dataset('fashion_mnist'), RESULTS/'lenet_flags.jsonl'
    done = {(o['model'], o['seed']) for o in map(json.loads, out.read_text().splitlines())} if out.exists() else set()
    for seed, name in product(LONG_SEEDS, LONG):
        if (name, seed) in done: continue
        row = run_long(dd, name, seed)
        with out.open('a') as f: f.write(json.dumps(row)+'\n')
        print(name, seed, row['valid_accuracy'], row['seconds'], flush=True)


def main():
    dd = get_dataset('fashion_mnist')
    done = [json.loads(o) for o in OUT.read_text().splitlines()] if OUT.exists() else []
    done = {(o['norm'], o['lr'], o['seed']) for o in done}
    for seed, lr, norm in product(SEEDS, LRS, NORMS):
        if (norm, lr, seed) in done: continue
        row = run(dd, norm, lr, seed)
        with OUT.open('a') as f: f.write(json.dumps(row)+'\n')
        print(norm, lr, seed, row['valid_accuracy'], row['seconds'], flush=True)


if __name__ == '__main__': main_long() if 'long' in sys.argv else main()
