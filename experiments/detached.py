"""Batch norm with its whole gradient and with detached statistics: learning rates times seeds, for the lesson on batch norm.

    COURSE_DATA=<folder with fashion-mnist/> python experiments/detached.py

Plain SGD, two epochs on all 60,000 images. Appends one row a run to nbs/results/detached.jsonl and skips
the runs that are already there, so it may be stopped and started again.
"""
import json
from itertools import product
from pathlib import Path

import torch

from course_lib.core import set_seed
from course_lib.datasets import DataLoaders, get_dataset
from course_lib.init import init_weights
from course_lib.learner import MetricsCB, MomentumLearner
from course_lib.models import get_model
from course_lib.batchnorm import BatchNorm, BatchNormDetached

OUT = Path(__file__).resolve().parents[1]/'nbs/results/detached.jsonl'
NORMS = dict(batch=BatchNorm, batch_detached=BatchNormDetached)
SEEDS, LRS, EPOCHS, BS = (0, 1, 2), (.1, .4, 1., 2., 4.), 2, 512


def run(dls, norm, lr, seed):
    set_seed(seed)
    dls.train.load_state_dict(dict(seed=seed, epoch=0, batch=0))
    metrics = MetricsCB(verbose=False, accuracy='MulticlassAccuracy')
    MomentumLearner(get_model(norm=NORMS[norm]).apply(init_weights), dls, lr=lr, momentum=0., cbs=[metrics]).fit(EPOCHS)
    rows = [o for o in metrics.history if o['train']=='eval']
    return dict(norm=norm, lr=lr, seed=seed, epochs=EPOCHS, batch_size=BS, torch=torch.__version__,
                **{k: [round(o[k], 5) for o in rows] for k in ('accuracy', 'loss')})


def main():
    dls = DataLoaders.in_memory(get_dataset('fashion_mnist'), BS, device='cpu', valid_batch_size=1000)
    done = [json.loads(o) for o in OUT.read_text().splitlines()] if OUT.exists() else []
    done = {(o['norm'], o['lr'], o['seed']) for o in done}
    for seed, lr, norm in product(SEEDS, LRS, NORMS):
        if (norm, lr, seed) in done: continue
        row = run(dls, norm, lr, seed)
        with OUT.open('a') as f: f.write(json.dumps(row)+'\n')
        print(norm, lr, seed, row['accuracy'], flush=True)


if __name__ == '__main__': main()
