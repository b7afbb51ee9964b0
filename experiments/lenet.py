"""LeNet-5 with sigmoids on Fashion-MNIST, with and without batch norm: learning rates times seeds.

    COURSE_DATA=<folder with fashion-mnist/> python experiments/lenet.py

Appends one row a run to nbs/results/06_lenet.jsonl and skips the runs that are already there.
"""
import json, time
from itertools import product
from pathlib import Path

import torch
from torch import nn, optim

from course_lib.core import set_seed
from course_lib.datasets import DataLoaders, get_dataset
from course_lib.learner import Learner, MetricsCB
from course_lib.models import LeNet

OUT = Path(__file__).resolve().parents[1]/'nbs/results/06_lenet.jsonl'
NORMS = dict(none=(None, None), batch=(nn.BatchNorm2d, nn.BatchNorm1d))
LRS, SEEDS, EPOCHS, BS = (.1, .3, 1., 3.), (0, 1, 2), 4, 256


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


def main():
    dd = get_dataset('fashion_mnist')
    done = [json.loads(o) for o in OUT.read_text().splitlines()] if OUT.exists() else []
    done = {(o['norm'], o['lr'], o['seed']) for o in done}
    for seed, lr, norm in product(SEEDS, LRS, NORMS):
        if (norm, lr, seed) in done: continue
        row = run(dd, norm, lr, seed)
        with OUT.open('a') as f: f.write(json.dumps(row)+'\n')
        print(norm, lr, seed, row['valid_accuracy'], row['seconds'], flush=True)


if __name__ == '__main__': main()
