"""How deep can a signal go? Plain nets of 8 to 200 layers: python experiments/depth.py

Claims: Schoenholz et al. 2017, figure 5: a tanh net can be trained as far as a signal gets through it, and that is
    about 6 xi layers, where xi is computed from the starting scales alone. Pennington et al. 2017: with orthogonal
    weights deep tanh nets learn sooner than with Gaussian ones, and the more so the deeper; for ReLU nets orthogonal
    weights cannot help.

Part `map`. Scientific: sigma_w (standard deviation of a weight times the root of its fan-in), depth. Control: the
    same sigma_w with another standard deviation of the biases (square .3 instead of .05), which moves xi and nothing
    else: the edge of chaos goes from sigma_w 1.33 to 1.58.
    Confirmed: the depth at which the accuracy falls below .45 lies within a factor of two of 6 xi for most sigma_w,
    and moves with the bias as 6 xi does. Refuted, if it does not move, or if shallow and deep nets fail alike.
    One seed a cell: the map claims no difference of two cells, only the course of its border.
    More than 80 layers were run for `DEEPEST` alone, with variance .05; its other scales guess at 80 (cut for time).
Parts `tune` and `final`. Scientific: Gaussian or orthogonal weights, tanh (sigma_w 1) or ReLU (sigma_w root 2), no
    bias: both at the edge of chaos; depth. Confirmed, "orthogonal helps tanh": ahead at its own best rate in accuracy
    after 200 steps, more at greater depth. Control: the ReLU, whose derivative is 0 for half of the units in each
    layer, whatever the weights: refuted, if orthogonal helps there as much.
    .0008 and .0032 were added to the rates after a first judging: at .0016, chosen from five, 90 Gaussian tanh layers
    had failed in three of five seeds, so a rate between might suit them better. It was chosen again, so each start is
    judged at the next smaller rate as well: near a cliff two seeds may choose badly.

Nuisance, tuned for each cell: the rate, the same for all of a part.
Fixed: 100 units a layer, Fashion-MNIST, batches of 64, 200 steps (12,800 images), SGD with momentum .9, constant rate.
Tuned on 2,000 of the last 10,000 training images, judged on the first 4,000 test images; `final` with five
    other seeds, paired: order of the images is equal, weights are not.

Edges: at 8 and 14 layers the best rate of the map is often the largest.
On a fifth of a busy core: 465 runs in 40 minutes, 168 in 18, 120 in 14. Left out: other widths, more steps,
    schedules, convolutions (init_or_norm.py has delta-orthogonal ones).
"""

import math
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch
from torch import nn

from course_lib.core import set_seed
from course_lib.depth import plain_mlp
from course_lib.rows import read_rows
from course_lib.stacks import batch_order, fit_stack, image_sets, judged
from course_lib.statistics import group_rows, tuned
from course_lib.sweep import Sweep, main

OUT = Path(__file__).resolve().parents[1] / 'nbs/results'
DEPTHS = 8, 14, 25, 45, 80, 140, 200
SCALES = {  # variance of a bias -> values of sigma_w
    0.05: (0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2.1, 2.5),
    0.3: (1.1, 1.3, 1.5, 1.6, 1.8, 2.1),
}
DEEPEST = 1.2, 1.3, 1.4, 1.6  # of .05: what is deeper than 80 layers
LRS = 0.0001, 0.0004, 0.0016, 0.0064, 0.0256
START_LRS = sorted([*LRS, 0.0008, 0.0032])
STARTS = list(product(('tanh', 'relu'), ('gaussian', 'orthogonal'), (10, 30, 90)))
ACTS = dict(tanh=nn.Tanh, relu=nn.ReLU)


@dataclass(frozen=True)
class Deep:
    "A run."

    act: str  # 'tanh' or 'relu'
    weights: str  # 'gaussian' or 'orthogonal'
    sigma_w: float  # standard deviation of a weight times the root of its fan-in
    var_b: float  # variance of a bias
    depth: int  # hidden layers
    lr: float  # constant
    seed: int  # of weights and order
    width: int = 100  # units a hidden layer
    steps: int = 200
    batch_size: int = 64  # images a step
    momentum: float = 0.9  # of SGD
    dataset: str = 'fashion_mnist'


def model(c):
    "The net at its start. The last layer has Gaussian weights of scale 1, for all alike."
    set_seed(c.seed)
    return plain_mlp(c.depth, ACTS[c.act], c.sigma_w, math.sqrt(c.var_b), c.weights == 'orthogonal', c.width)


def fit(configs):
    "Train a stack; `losses`: mean training loss of each ten steps."
    c = configs[0]
    sets = image_sets(c.dataset)
    n = len(sets['train'].y)
    orders = [batch_order(n, o.steps * o.batch_size, o.batch_size, o.seed) for o in configs]
    trainer, losses, _ = fit_stack(
        [model(o) for o in configs], sets['train'], torch.stack(orders), [o.lr for o in configs], momentum=c.momentum
    )
    rows = judged(trainer, losses, dict(tune=sets['tune'].part(slice(2000)), test=sets['test'].part(slice(4000))))
    tens = [torch.stack([t.mean() for t in own.split(10)]) for own in losses]
    return [row | dict(losses=[round(v, 3) for v in own.tolist()]) for row, own in zip(rows, tens)]


def train(configs):
    "A stack. A gradient that dies is made of numbers that are slow: they count as zero, here only."
    torch.set_flush_denormal(True)
    try:
        return fit(configs)
    finally:
        torch.set_flush_denormal(False)


def same(c):
    "What is trained together: nets of one shape."
    return replace(c, weights='', sigma_w=0.0, var_b=0.0, lr=0.0, seed=0)


def stack(c):
    "How many: few deep ones, for the processor's cache."
    return max(11, 1600 // c.depth)


def start(act, weights, depth, lr, seed):
    "A net at the edge of chaos."
    return Deep(act, weights, 1.0 if act == 'tanh' else math.sqrt(2), 0.0, depth, lr, seed)


def map_grid():
    "Depth by depth."
    cells = [(var_b, sigma_w) for var_b, scales in SCALES.items() for sigma_w in scales]
    return [
        Deep('tanh', 'gaussian', sigma_w, var_b, depth, lr, 0)
        for depth in DEPTHS
        for var_b, sigma_w in cells
        if depth <= 80 or var_b == 0.05 and sigma_w in DEEPEST
        for lr in LRS
    ]


MAP = Sweep(map_grid(), OUT / 'depth_map.jsonl', train, same, stack)
TUNE = Sweep(
    [start(*cell, lr, seed) for cell in STARTS for lr in START_LRS for seed in (100, 101)],
    OUT / 'depth_tune.jsonl',
    train,
    same,
    stack,
)


def final():
    "Each start at the rate that was best on the held-out images, and at the next smaller one."
    if TUNE.pending():
        raise SystemExit('depth: tune first')
    cells = group_rows(read_rows(TUNE.path), 'act', 'weights', 'depth')
    best = {cell: START_LRS.index(tuned(rows, by='tune_accuracy')['lr']) for cell, rows in cells.items()}
    rates = {cell: (START_LRS[i], START_LRS[i - 1]) for cell, i in best.items()}
    configs = [start(*cell, lr, seed) for cell in STARTS for lr in rates[cell] for seed in range(5)]
    return Sweep(configs, OUT / 'depth.jsonl', train, same, stack)


if __name__ == '__main__':
    main(map=MAP, tune=TUNE, final=final)
