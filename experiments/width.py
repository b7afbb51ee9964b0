"""Does a learning rate found on a small network hold on a wide one? python experiments/width.py [mlp|transformer]

Claims, Yang and Hu 2021; Yang et al. 2021. In the standard parametrization the best rate moves with width (figures 1
    and 3, from width 128 or 256 to 8,192); in the maximal update parametrization (µP) it stays, and "wider is better":
    at one rate a wider network has a smaller loss.

Scientific variables: width (32 to 512 for the MLP; 32 and 128 for the transformer), the optimizer (Adam; for the MLP
    SGD, too), and the parametrization: `standard`; `mup`, the lesson's groups and start on the base of width 32.
    Controls, half of the rule each: `start` (µP's start, one rate for all weights) and `rates` (µP's rates, the
    standard start). At width 32 all four are one network, which is run once.
Nuisance variable: the learning rate, a factor of two apart, the same rates for all widths and parametrizations. For
    SGD rates a quarter of an octave apart from 1/4 to 1 were added after the first rows were seen: all minima lay at
    1/4 or 1/2, and at 1 most runs diverged, so that grid could not tell.
Fixed: an MLP of two hidden layers on images of 14x14, Kaiming's start, 200 steps of 64 images of Fashion-MNIST; a
    pre-norm transformer of two blocks on 16 patches of 7x7, heads of 8 channels (so more of them when it is wider),
    150 steps of 16 images. No momentum for SGD, no weight decay, a rate that falls straight to zero; each image is
    seen at most once.
Seeds 0 and 1 tune, seeds 2 to 6 judge; a seed has equal batches everywhere. Tuned on 2,000 of the last 10,000 training
    images, judged on the first 2,000 test images.

Measured, each for the five judging seeds, with a 95 % t interval (rules written before the grid was run):
1. The power p in: best rate = constant * width**p. For each seed and width the best rate is the one with the smallest
    held-out loss, refined by a parabola through it and its two neighbours. "The best rate moves" (standard): holds, if
    the interval lies outside of -0.25 to 0.25 (a factor of two over 16 times the width); fails, if it lies within;
    else open. "It stays" (mup): the same, turned around.
2. What the small network's rate costs: test loss of width 512 at the rate that seeds 0 and 1 found best at width
    32, minus that at the rate which they found best at width 512. Holds ("the rate can be used"), if the interval lies
    below 0.02; fails, if it lies above; else open.
3. "Wider is better" at the rate found at width 32: paired difference of the test loss for each doubling. Holds, if all
    are negative on the mean and the last width against the first has its interval below 0; fails, if a doubling has
    its interval above 0; else open.
Controls (rule 1): if `start` or `rates` alone stays as well, the other half of µP is not what does it.
After the rows: who is ahead at width 512, each at its own rate (rule 2's losses), and the best held-out loss there of
    `start` and `rates` alone, seeds 0 to 4.
Before the grid one seed was looked at, at widths 32, 128 and 512, to find the range of rates.
From .1 to .7 s a run of the MLP on an idle core, .5 and 2.4 s one of the transformer: 1,821 runs in
    about 15 minutes, an estimate; the rows, made on a busy machine, add up to 66 minutes.
    Left out for time, when the first seeds were done: seeds 5 and 6 of the controls, which therefore have seeds 0 to 4
    (nothing is chosen for them by seeds 0 and 1); more widths of the transformer, and seeds that tune it, so it has
    rule 1 only.
What it cannot tell: long training, text, widths above 512, momentum and weight decay, other hyperparameters.
"""

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F

from course_lib.core import set_seed
from course_lib.stacks import AloneTrainer, batch_order, image_sets, judged, take_batch
from course_lib.sweep import Sweep, main
from course_lib.transformer import PatchTransformer, scaled_start
from course_lib.width import mup_groups, mup_start, width_mlp

OUT = Path(__file__).resolve().parents[1] / 'nbs/results'
BASE = 32
TUNE_SEEDS, SEEDS = (0, 1), (2, 3, 4, 5, 6)
CONTROLS = 'start', 'rates'  # with seeds 0 to 4
WIDTHS = dict(mlp=(32, 64, 128, 256, 512), transformer=(32, 128))
QUARTERS = [k / 4 for k in range(-8, 1)]  # of an octave
LRS = dict(
    mlp=dict(adam=[2.0**k for k in range(-11, -2)], sgd=[2.0**k for k in (*range(-6, -2), *QUARTERS)]),
    transformer=dict(adam=[2.0**k for k in range(-10, -5)]),
)


@dataclass(frozen=True)
class Width:
    "A run."

    net: str  # 'mlp' or 'transformer'
    rule: str  # 'adam' or 'sgd'
    kind: str  # 'standard', 'mup', 'start' or 'rates'
    width: int  # hidden units, or channels of a token
    lr: float  # of the base model, where `kind` scales rates
    seed: int  # of weights and order
    steps: int = 200
    batch_size: int = 64  # images a step
    dataset: str = 'fashion_mnist'


class WidthTrainer(AloneTrainer):
    "One network and the optimizer that its rule names, on groups of parameters; the rates fall to zero."

    def __init__(self, net, groups, rule, steps):
        super().__init__([net], [0.0])
        self.opt = torch.optim.SGD(groups) if rule == 'sgd' else torch.optim.Adam(groups, fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.opt, lambda t: 1 - t / steps)

    def step(self, x, y):
        self.opt.zero_grad()
        loss = F.cross_entropy(self.model(x[0]), y[0])
        loss.backward()
        self.opt.step()
        self.schedule.step()
        return loss.detach()[None]


def plain(c, width):
    "The network at its standard start."
    set_seed(c.seed)
    if c.net == 'mlp':
        return width_mlp(width)
    return scaled_start(PatchTransformer(depth=2, width=width, heads=width // 8, patch=7))


def prepared(c):
    "The network at its start, and its groups of parameters."
    net, base = plain(c, c.width), plain(c, BASE)
    if c.kind in ('mup', 'start'):
        mup_start(net, base)
    if c.kind in ('mup', 'rates'):
        return net, mup_groups(net, base, c.lr, c.rule)
    return net, [dict(params=list(net.parameters()), lr=c.lr)]


def train(configs):
    "One run."
    (c,) = configs
    sets = image_sets(c.dataset)
    trainer = WidthTrainer(*prepared(c), c.rule, c.steps)
    order = batch_order(len(sets['train'].y), c.steps * c.batch_size, c.batch_size, c.seed)
    losses = [trainer.step(*take_batch(sets['train'], rows[None])) for rows in order]
    judges = dict(tune=sets['tune'].part(slice(2000)), test=sets['test'].part(slice(2000)))
    (row,) = judged(trainer, torch.stack(losses, 1), judges)
    (held_out,) = trainer.evaluate(judges['tune'])[1]
    return [row | dict(tune_loss=round(held_out.item(), 4))]


def grid(net, kinds, seeds, **fixed):
    "Seed by seed; the base width once, as standard."
    cells = [
        (rule, kind, width)
        for (rule, of_rule), width in product(kinds.items(), WIDTHS[net])
        for kind in (of_rule if width > BASE else ('standard',))
    ]
    return [
        Width(net, rule, kind, width, lr, seed, **fixed)
        for seed, (rule, kind, width) in product(seeds, cells)
        for lr in LRS[net][rule]
        if kind not in CONTROLS or seed < 5
    ]


MLP = Sweep(
    grid('mlp', dict(adam=('standard', 'mup', *CONTROLS), sgd=('standard', 'mup')), (*TUNE_SEEDS, *SEEDS)),
    OUT / 'width.jsonl',
    train,
)
TRANSFORMER = Sweep(
    grid('transformer', dict(adam=('standard', 'mup')), SEEDS, steps=150, batch_size=16),
    OUT / 'width_transformer.jsonl',
    train,
)

if __name__ == '__main__':
    main(mlp=MLP, transformer=TRANSFORMER)
