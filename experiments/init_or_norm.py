"""Init or norm: the same plain net at five depths: python experiments/init_or_norm.py

Claims: He et al. 2015, figures 2 and 3: with Xavier's weights and with theirs a net of 22 layers learns, theirs
    sooner; at 30 layers Xavier's does not learn at all. Xiao et al. 2018: orthogonal weights in the middle of each
    kernel ("delta-orthogonal") train plain convolutions of thousands of layers (with tanh). Mishkin and Matas 2016:
    with LSUV no batch norm is needed. First edition of this course: "nothing trains forty plain layers".

Scientific variables: the start (`STARTS`) and the depth, in layers with weights.
Nuisance variable, tuned for each cell: the learning rate, the same six for all, a factor 3 apart.
Fixed: a plain net with ReLUs and no skips: two convolutions of stride 2, then 3x3 ones with 8 channels on 7x7 maps,
    then a linear layer; 8,000 images of Fashion-MNIST seen once in batches of 16 (500 steps), SGD with momentum .85,
    a constant rate. Biases start at 0, except for PyTorch's start. Seeds 0 to 4 give weights and order, so runs are
    paired by seed.
Tuned on 2,000 of the last 10,000 training images, judged on the first 4,000 test images. A run
    learns if its accuracy on the test images is above .5, five times guessing.

Confirmed, "a better start adds depth": at its best rate a start learns in all five seeds at a depth at which
    PyTorch's does in none. He et al.'s case: Kaiming's learns at 22 and 30, Xavier's at 22 alone.
Confirmed, "a norm adds rates": at a depth at which both learn, the largest rate at which all seeds learn is larger
    with batch norm than with any start. Refuted, if not at each such depth.
"Nothing trains forty layers": refuted, if any cell at 40 learns in all seeds.
Edges: for several deep cells the best rate is the smallest, .001; a smaller one may be better there.
Control: batch norm behind PyTorch's start, whose weights are the smallest: the norm has no help from the start. And
    delta-orthogonal weights have LSUV's orthogonal matrices without its measuring.

Models of one shape are trained together: 900 runs in about 20 minutes of one core. Left out: wider nets, other
    activations, more steps, schedules, skips.
"""

import math
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch
from torch import nn

from course_lib.core import set_seed
from course_lib.init import init_weights
from course_lib.lsuv import lsuv_init
from course_lib.models import conv
from course_lib.stacks import batch_order, fit_stack, image_sets, judged, take_batch
from course_lib.sweep import Sweep, main

OUT = Path(__file__).resolve().parents[1] / 'nbs/results'
STARTS = 'default', 'xavier', 'kaiming', 'lsuv', 'delta_orthogonal', 'batch'
DEPTHS = 5, 10, 22, 30, 40
LRS = 0.001, 0.003, 0.01, 0.03, 0.1, 0.3


@dataclass(frozen=True)
class InitOrNorm:
    "A run."

    start: str  # of `STARTS`
    depth: int  # layers with weights
    lr: float  # learning rate, constant
    seed: int  # of weights and order
    epochs: int = 1  # times that each image is seen
    batch_size: int = 16  # images a step
    momentum: float = 0.85  # of SGD
    channels: int = 8  # of each convolution
    n_train: int = 8_000  # images
    dataset: str = 'fashion_mnist'


def deep_net(depth, norm=None, channels=8):
    "Two convolutions of stride 2, then 3x3 ones on 7x7 maps, then a linear layer."
    layers = [conv(1, channels, norm=norm), conv(channels, channels, norm=norm)]
    for _ in range(depth - 3):
        layers.append(conv(channels, channels, stride=1, norm=norm))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * 49, 10))


@torch.no_grad()
def xavier(m):
    "Glorot and Bengio 2010, eq. 12, normal; zero bias."
    if isinstance(m, (nn.Conv2d, nn.Linear)):
        nn.init.xavier_normal_(m.weight)
        m.bias.zero_()


@torch.no_grad()
def delta_orthogonal(m):
    "Xiao et al. 2018: an orthogonal matrix in the middle of the kernel, zeros around it; times the gain of ReLU."
    if isinstance(m, (nn.Conv2d, nn.Linear)):
        m.bias.zero_()
    if isinstance(m, nn.Linear):
        nn.init.orthogonal_(m.weight, math.sqrt(2))
    if isinstance(m, nn.Conv2d):
        matrix = nn.init.orthogonal_(torch.empty(m.weight.shape[:2]), math.sqrt(2))
        m.weight.zero_()
        m.weight[:, :, m.kernel_size[0] // 2, m.kernel_size[1] // 2] = matrix


def model(c, images, order):
    "The net at its start; `order` gives LSUV its batch."
    set_seed(c.seed)
    net = deep_net(c.depth, nn.BatchNorm2d if c.start == 'batch' else None, c.channels)
    rules = dict(xavier=xavier, kaiming=init_weights, delta_orthogonal=delta_orthogonal)
    if c.start in rules:
        net.apply(rules[c.start])
    if c.start == 'lsuv':
        lsuv_init(net, take_batch(images, order[:32].flatten())[0])
    return net


@contextmanager
def flushed():
    "A signal that dies is made of numbers that are slow: they count as zero here, and nowhere else in the process."
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@flushed()
def train(configs):
    "A stack: nets of one depth, their rates and starts apart."
    c = configs[0]
    sets = image_sets(c.dataset)
    images = sets['train'].part(slice(c.n_train))
    n = len(images.y)
    orders = [batch_order(n, n * c.epochs, c.batch_size, c.seed) for c in configs]
    models = [model(c, images, order) for c, order in zip(configs, orders)]
    lrs = [c.lr for c in configs]
    trainer, losses, _ = fit_stack(models, images, torch.stack(orders), lrs, momentum=c.momentum)
    judges = dict(tune=sets['tune'].part(slice(2000)), test=sets['test'].part(slice(4000)))
    return judged(trainer, losses, judges)


def same(c):
    "What is trained together: nets of one shape."
    return c.depth, c.start == 'batch', replace(c, start='', depth=0, lr=0.0)


def grid():
    "Seed by seed, so that each cell soon has one."
    return [InitOrNorm(start, depth, lr, seed) for seed, depth, start, lr in product(range(5), DEPTHS, STARTS, LRS)]


SWEEP = Sweep(grid(), OUT / 'init_or_norm.jsonl', train, same, stack=30)

if __name__ == '__main__':
    main(init_or_norm=SWEEP)
