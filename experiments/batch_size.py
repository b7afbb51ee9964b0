"""Batch size, rate and ghost batch norm: python experiments/batch_size.py

Claims: Goyal et al. 2017: multiply the rate by k when the batch is k times as large, and accuracy after as many
    epochs stays the same (up to a size). Hoffer et al. 2017: large batches generalize worse; statistics over small
    parts of the batch ("ghost batch norm") win part of it back.

Scientific variables: the batch size (32, 128, 512); the size of the parts that batch norm takes its statistics over
    (the whole batch; 128, 32 or 8 images of a batch of 512).
Nuisance variable, tuned for each cell: the learning rate, the same seven for all, a factor 2 apart.
Fixed: the published network without a norm on the map of one pixel, Fashion-MNIST, 50,000 images seen twice, plain
    SGD, a rate that falls straight to zero, as many epochs (so fewer steps for larger batches).
Tuned on the last 10,000 training images, judged on the test images. Five seeds, paired.

Control: a batch of 512 with parts of 32 has the statistics of a batch of 32 and the steps of one of 512: the two
    effects come apart.
Goyal, confirmed for this setting: the best rate at 512 is 8 to 32 times that at 32 (16 is linear, 4 the square
    root), and the accuracy at best rates differs by less than 0.005. Refuted: the best rate grows by 4 or less, or
    accuracy falls by more than 0.01.
Hoffer, confirmed: some part size at 512 is ahead of the whole batch (paired t interval above 0, three comparisons,
    so at 98.3 %). Refuted: all of them behind or level within 0.003. That the reason is the noise of small
    statistics needs batch 32 to show it too.
What 60,000 easy images in two epochs cannot tell: the gap of training to convergence, which Hoffer's paper is about
    ("train longer").

About 15 s a run on one core, more where the parts are small: 210 runs in about 60 minutes. Left out: momentum,
    warm-up, equal numbers of steps, other norms.
"""

from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import nn

from course_lib.core import set_seed
from course_lib.small_batch import SCHEDULES, published_net
from course_lib.stacks import batch_order, fit_stack, image_sets, judged
from course_lib.sweep import Sweep, main

OUT = Path(__file__).resolve().parents[1] / 'nbs/results'
CELLS = (512, 0), (32, 0), (512, 32), (128, 0), (512, 128), (512, 8)  # batch size, images of a part (0: all)
LRS = 0.4, 0.8, 0.2, 1.6, 0.1, 3.2, 0.05


@dataclass(frozen=True)
class BatchSize:
    "A run."

    batch_size: int  # images a step
    ghost: int  # images that share their statistics; 0: all of the batch
    lr: float  # at the start
    seed: int  # of weights and order
    epochs: int = 2  # times that each image is seen
    n_train: int = 50_000  # images
    dataset: str = 'fashion_mnist'


class GhostBatchNorm(nn.BatchNorm2d):
    "Batch norm over parts of the batch; each part moves the running statistics."

    def __init__(
        self,
        num_features,  # channels
        ghost,  # images of a part
    ):
        super().__init__(num_features)
        self.ghost = ghost

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        return torch.cat([super(GhostBatchNorm, self).forward(part) for part in x.split(self.ghost)])


def model(c):
    "The published network without its norm on one pixel."
    set_seed(c.seed)
    norm = partial(GhostBatchNorm, ghost=c.ghost) if c.ghost else nn.BatchNorm2d
    return published_net(norm, norm_1x1=False)


def train(configs):
    "One run."
    (c,) = configs
    sets = image_sets(c.dataset)
    images = sets['train'].part(slice(c.n_train))
    order = batch_order(len(images.y), len(images.y) * c.epochs, c.batch_size, c.seed)
    trainer, losses, _ = fit_stack([model(c)], images, order[None], [c.lr], SCHEDULES['linear'])
    return judged(trainer, losses, sets)


def grid():
    "Seed by seed."
    return [BatchSize(batch_size, ghost, lr, seed) for seed, (batch_size, ghost), lr in product(range(5), CELLS, LRS)]


SWEEP = Sweep(grid(), OUT / 'batch_size.jsonl', train)

if __name__ == '__main__':
    main(batch_size=SWEEP)
