"""Batch size 2 to convergence, without maps of one pixel: python experiments/residual.py [tune|final]

Claims. Wu and He 2018, figure 1: at batch size 2 a ResNet-50 with batch norm is ten points of ImageNet behind group
    norm (its smallest map has 7x7 pixels, so no layer gets two values). Ours, on networks of 27,000 parameters and
    4,000 images: without a norm on one pixel all norms, and none, are about level at batch size 2. Qiao et al.
    2019: weight standardization makes group norm better still.

Question: does the gap between batch norm and the others, in a small residual network with maps of 4x4 and more,
    open as training goes on?
Scientific variables: the norm (none, batch, running batch, group, layer, group with weight standardization); the
    number of images seen.
Nuisance variable, tuned for each norm: the learning rate, the same six for all (the sixth, 1, was added when batch
    norm was best at .3), on 6,000 images, with seeds 0 and 1.
Fixed: the network (a convolution, three residual blocks, 55,000 parameters), Kaiming start, batches of 2, plain
    SGD, a rate that falls straight to zero, Fashion-MNIST. The layers are PyTorch's own, but for running batch
    norm.
Tuned on the last 10,000 training images (`tune`, nbs/results/residual_tune.jsonl); judged on the test images with
    five other seeds after 6,000 images and after a whole epoch of 50,000, each a run of its own with its own
    falling rate (`final`, nbs/results/residual.jsonl). Paired.

Control: the run with 6,000 images, where the small networks say "level".
Confirmed, "the gap opens with training": group - batch is larger at 50,000 images than at 6,000 (difference of
    paired differences, 95 % t interval above 0). Refuted, if it is smaller or within 0.003. Weight standardization,
    confirmed: group with it - group is above 0 at 50,000 images.
What it cannot tell: ImageNet, depth, 1,000 classes. If no gap opens, Wu and He's ten points stay unexplained here.

Stacks of five; 4 to 5 ms a step of a model on a busy core, so about 12 s a run of 6,000 images and 100 s one of
    50,000: 72 runs to tune, 60 to judge, about 70 minutes, less on an idle core. Left out: a rate tuned for each
    length, more than one epoch, batch sizes 4 and 8.
"""

from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import nn

from course_lib.core import set_seed
from course_lib.init import init_weights
from course_lib.models import ResBlock, conv
from course_lib.norms import RunningBatchNorm
from course_lib.rows import read_rows
from course_lib.small_batch import SCHEDULES
from course_lib.stacks import batch_order, fit_stack, image_sets, judged
from course_lib.statistics import group_rows, tuned
from course_lib.sweep import Sweep, main, same_cell

OUT = Path(__file__).resolve().parents[1] / 'nbs/results'
NORMS = dict(
    none=None,
    batch=nn.BatchNorm2d,
    running=RunningBatchNorm,
    group=partial(nn.GroupNorm, 4),
    layer=partial(nn.GroupNorm, 1),
    group_ws=partial(nn.GroupNorm, 4),
)
LRS = 0.003, 0.01, 0.03, 0.1, 0.3, 1.0
TUNE_SEEDS, SEEDS = (0, 1), (2, 3, 4, 5, 6)
SAMPLES = 6_000, 50_000


@dataclass(frozen=True)
class Residual:
    "A run."

    norm: str  # key of `NORMS`
    samples: int  # images seen, counted with repetition
    lr: float  # at the start
    seed: int  # of weights and order
    batch_size: int = 2  # images a step
    dataset: str = 'fashion_mnist'


class StandardizedConv2d(nn.Conv2d):
    "A convolution whose weights have mean 0 and variance 1 for each output channel (Qiao et al. 2019, eq. 2 and 3)."

    def forward(self, x):
        var, mean = torch.var_mean(self.weight, (1, 2, 3), correction=0, keepdim=True)
        return self._conv_forward(x, (self.weight - mean) / (var + 1e-5).sqrt(), self.bias)


def model(c):
    "Maps of 14, 7, 4 and 4 pixels."
    set_seed(c.seed)
    norm = NORMS[c.norm]
    blocks = [ResBlock(8, 16, 2, norm=norm), ResBlock(16, 32, 2, norm=norm), ResBlock(32, 48, 1, norm=norm)]
    net = nn.Sequential(conv(1, 8, 5, norm=norm), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10))
    net.apply(init_weights)
    if c.norm == 'group_ws':
        for m in net.modules():
            if type(m) is nn.Conv2d:
                m.__class__ = StandardizedConv2d
    return net


def train(configs):
    "A stack."
    c = configs[0]
    sets = image_sets(c.dataset)
    orders = [batch_order(len(sets['train'].y), o.samples, o.batch_size, o.seed) for o in configs]
    trainer, losses, _ = fit_stack(
        [model(o) for o in configs], sets['train'], torch.stack(orders), [o.lr for o in configs], SCHEDULES['linear']
    )
    return judged(trainer, losses, sets)


TUNE = Sweep(
    [Residual(norm, SAMPLES[0], lr, seed) for norm, seed, lr in product(NORMS, TUNE_SEEDS, LRS)],
    OUT / 'residual_tune.jsonl',
    train,
    same_cell,
    stack=10,
)


def final():
    "Each norm at the rate that was best on the held-out images."
    if TUNE.pending():
        raise SystemExit('residual: tune first')
    best = {
        norm: tuned(rows, by='tune_accuracy')['lr']
        for (norm,), rows in group_rows(read_rows(TUNE.path), 'norm').items()
    }
    configs = [Residual(norm, samples, best[norm], seed) for samples, norm, seed in product(SAMPLES, NORMS, SEEDS)]
    return Sweep(configs, OUT / 'residual.jsonl', train, same_cell, stack=5)


if __name__ == '__main__':
    main(tune=TUNE, final=final)
