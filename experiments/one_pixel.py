"""The norm on the map of one pixel, at batch size 2: python experiments/one_pixel.py

Claim: fast.ai 2019, lesson 10 (07_batchnorm): batch norm fails at batch size 2 (one epoch of MNIST at rate 0.4:
    0.26), running batch norm cures it (0.973). Ours: the failure is that of one layer, which normalizes a map of
    one pixel and so gets two values.

Scientific variables: the norm (none, batch, running batch, group, layer); with or without a norm on the map of one
    pixel; the data set.
Nuisance variable, tuned for each cell: the learning rate, the same five for all, the published 0.4 among them.
Fixed: the published network (62,000 parameters, 5x5 first, each norm behind its ReLU), its initialization, batches
    of 2, plain SGD, constant rate, 6,000 images. The layers are PyTorch's own, but for running batch norm, which
    PyTorch has not.
Tuned on the last 10,000 training images, judged on the test images. Five seeds, paired: weights of the convolutions
    and order are equal.

Control: the same network without its 1x1 norm (its last convolution has a bias instead), at a rate of its own.
Confirmed, "it is this layer": for batch norm, without - with is at least 0.2 on both data sets (95 % t interval
    above 0.1), and for running batch, group and layer norm the same difference stays within 0.05. Refuted, if batch
    norm without the 1x1 norm stays more than 0.1 behind the best other norm.
Open: how the norms rank without it; five seeds can tell differences of about 0.02. And what a network with larger
    last maps does.

Stacks of 25 (five seeds, five rates), about 110 s each on a busy core: 450 runs in about 35 minutes. Left out:
    whole epochs,
the small residual network, instance norm, the published running batch norm.
"""

from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import nn

from course_lib.core import set_seed
from course_lib.norms import RunningBatchNorm
from course_lib.small_batch import published_net
from course_lib.stacks import batch_order, fit_stack, image_sets, judged
from course_lib.sweep import Sweep, main, same_cell

OUT = Path(__file__).resolve().parents[1] / 'nbs/results'
NORMS = dict(
    none=None,
    batch=nn.BatchNorm2d,
    running=RunningBatchNorm,
    group=partial(nn.GroupNorm, 4),
    layer=partial(nn.GroupNorm, 1),
)
LRS = 0.004, 0.013, 0.04, 0.13, 0.4


@dataclass(frozen=True)
class OnePixel:
    "A run."

    dataset: str  # 'mnist' or 'fashion_mnist'
    norm: str  # key of `NORMS`
    norm_1x1: bool  # is the map of one pixel normalized?
    lr: float  # constant
    seed: int  # of weights and order
    batch_size: int = 2  # images a step
    samples: int = 6_000  # images seen, each once


def model(c):
    "The published network; group and layer norm have no bias to spare, so the convolutions' weights are drawn alike."
    set_seed(c.seed)
    return published_net(NORMS[c.norm], c.norm_1x1)


def train(configs):
    "A stack."
    c = configs[0]
    sets = image_sets(c.dataset)
    orders = [batch_order(len(sets['train'].y), o.samples, o.batch_size, o.seed) for o in configs]
    trainer, losses, _ = fit_stack(
        [model(o) for o in configs], sets['train'], torch.stack(orders), [o.lr for o in configs]
    )
    return judged(trainer, losses, sets)


def grid():
    "What decides first: batch norm with and without, then the others."
    cells = [(n, f) for n in ('batch', 'running', 'group', 'layer') for f in (True, False)]
    cells.insert(2, ('none', False))
    return [
        OnePixel(dataset, norm, norm_1x1, lr, seed)
        for (norm, norm_1x1), dataset in product(cells, ('mnist', 'fashion_mnist'))
        for seed in range(5)
        for lr in LRS
    ]


SWEEP = Sweep(grid(), OUT / 'one_pixel.jsonl', train, same_cell, stack=25)

if __name__ == '__main__':
    main(one_pixel=SWEEP)
