"""Where does the norm go in a transformer? python experiments/transformers.py [tune|final]

Claims, Xiong et al. 2020: with the norm around each sum (post) a transformer needs warm-up (figure 2: on IWSLT14 De-En
    with Adam about 34 BLEU with it and 8.45 without); with the norm in front of each branch (pre) it does not.
    Kim et al. 2025: norms on both sides of the branch (sandwich, "peri") are steadier than either.

Scientific variables: the place of the norms (post, pre, sandwich, and the control `bare`) and warm-up (none, or a
    rate that rises linearly over the first third).
Nuisance variable, tuned for each cell: the learning rate, the same seven for all, a factor of about 3 apart
    and 1.8 in the middle (.00055 and .0018 were added after 24 runs of tuning, before any run was judged).
Fixed: 12 blocks of attention and MLP (24 branches), width 32, 4 heads, 16 patches of 7x7 pixels of Fashion-MNIST;
    weights of variance 1/fan-in, zero biases; Adam with PyTorch's own numbers, no decay, 150 steps of 32 images, each
    image seen at most once, the rate constant behind the warm-up. No dropout, nothing clipped.
Tuned with seeds 0 and 1 on 2,000 of the last 10,000 training images (`tune`, nbs/results/transformers_tune.jsonl),
    judged with seeds 2 to 6 on the first 2,000 test images (`final`, nbs/results/transformers.jsonl), in pairs: a seed
    has equal weights and equal batches with and without warm-up.

Post and pre are judged at the high rate .003 as well, with and without warm-up: what warm-up does at an
    equal rate. (Chosen after the ten runs named below, in which post-norm lost most there.)

Added after all of that was judged, the rules before their runs (but one run of `weighed`, seed 0 at .003, and of post):
    `weighed` is post-norm in which branch n is divided by the root of 1+n/2, the stream that it would meet with
    pre-norm: the norm stands around the sum, and the branch is as small a part of what leaves it as with pre-norm.
    "Far steps are why" (Liu et al. 2020: the larger the branch's part, the farther a step carries the output): at
    .003 without warm-up, holds, if `weighed` is ahead of post and pre not ahead of `weighed`, by the border of
    0.01 and the intervals as below; a part, if pre is ahead as well; fails, if `weighed` is not ahead of post.
Deeper: post and pre with 24 blocks, without and with warm-up, at the five rates of the first grid; same rules.

Gain: accuracy with warm-up minus without, each at its own rate, over the five seeds, with a 95 % t interval.
"Post-norm needs warm-up": holds, if its interval lies above 0.01; fails, if it lies below 0.01; else open.
"Pre-norm does not": holds, if its interval lies below 0.01; fails, if it lies above; else open.
"It is the large gradients near the output": `bare` is pre-norm without its final norm, whose last gradients are as
    large as post-norm's. Holds, if it gains from warm-up as well (interval above 0.01); fails, if post-norm gains
    and bare's interval lies below 0.01; else open.
"Sandwich is steadier": is its best rate, and the largest rate at which both tuning runs learn (above .5), larger?
    Two seeds at such rates can say no more than that.
Control: at equal rates (rows of tuning) warm-up is the only difference; at own rates "it is just a smaller rate" is
    taken away.
About 4 s a run on an idle core, alone and with one thread, 8 s at 24 blocks: 275 runs in about 25 minutes.
What it cannot tell: long training, text, widths and depths of real models, a decay of the rate.

Before this grid ten runs of post and pre with seed 0 at rates .001 to .01 were looked at, to size it.
"""

from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import nn

from course_lib.core import set_seed
from course_lib.rows import read_rows
from course_lib.stacks import AloneTrainer, batch_order, image_sets, judged, take_batch
from course_lib.statistics import group_rows, tuned
from course_lib.sweep import Sweep, main
from course_lib.transformer import PatchTransformer, scaled_start, weigh_branches

OUT = Path(__file__).resolve().parents[1] / 'nbs/results'
PLACES = 'post', 'pre', 'bare', 'sandwich', 'weighed'
CELLS = tuple(product(PLACES, (0.0, 1 / 3), (12,))) + tuple(product(('post', 'pre'), (0.0, 1 / 3), (24,)))
LRS = 0.0001, 0.0003, 0.00055, 0.001, 0.0018, 0.003, 0.01
DEEP_LRS = 0.0001, 0.0003, 0.001, 0.003, 0.01
HIGH = 0.003
TUNE_SEEDS, SEEDS = (0, 1), (2, 3, 4, 5, 6)


@dataclass(frozen=True)
class Transformer:
    "A run."

    place: str  # of the norms: 'post', 'pre', 'sandwich'; 'bare': 'pre' without the final norm; 'weighed': see above
    warm_up: float  # share of the steps in which the rate rises
    lr: float  # behind the warm-up
    seed: int  # of weights and order
    depth: int = 12  # blocks of two branches
    width: int = 32  # channels of a token
    patch: int = 7  # side, in pixels
    steps: int = 150  # of Adam
    batch_size: int = 32  # images a step
    dataset: str = 'fashion_mnist'


ADAM = partial(torch.optim.Adam, fused=True)


def model(c):
    "The net at its start."
    set_seed(c.seed)
    place = dict(bare='pre', weighed='post').get(c.place, c.place)
    net = scaled_start(PatchTransformer(place, c.depth, c.width, patch=c.patch))
    if c.place == 'bare':
        net.final = nn.Identity()
    if c.place == 'weighed':
        weigh_branches(net)
    return net


def rate_factor(step, warm_up_steps):
    "Of the rate: 1/n, 2/n up to 1 in the first n steps."
    return min(1.0, (step + 1) / max(warm_up_steps, 1))


def train(configs):
    "One run."
    (c,) = configs
    sets = image_sets(c.dataset)
    trainer = AloneTrainer([model(c)], [c.lr], make_opt=ADAM)
    losses = []
    for step, rows in enumerate(batch_order(len(sets['train'].y), c.steps * c.batch_size, c.batch_size, c.seed)):
        x, y = take_batch(sets['train'], rows[None])
        losses.append(trainer.step(x, y, rate_factor(step, round(c.warm_up * c.steps))))
    judges = dict(tune=sets['tune'].part(slice(2000)), test=sets['test'].part(slice(2000)))
    return judged(trainer, torch.stack(losses, 1), judges)


TUNE = Sweep(
    [
        Transformer(place, warm_up, lr, seed, depth)
        for seed, (place, warm_up, depth) in product(TUNE_SEEDS, CELLS)
        for lr in (LRS if depth == 12 else DEEP_LRS)
    ],
    OUT / 'transformers_tune.jsonl',
    train,
)


def final():
    "Each cell at the rate that was best on the held-out images, and at the high rate."
    if TUNE.pending():
        raise SystemExit('transformers: tune first')
    rows = group_rows(read_rows(TUNE.path), 'place', 'warm_up', 'depth')
    best = {cell: tuned(runs, by='tune_accuracy')['lr'] for cell, runs in rows.items()}
    configs = []
    for seed, (place, warm_up, depth) in product(SEEDS, CELLS):
        rates = [best[place, warm_up, depth]] + [HIGH] * (depth == 12 and place in ('post', 'pre', 'weighed'))
        configs += [Transformer(place, warm_up, lr, seed, depth) for lr in rates]
    return Sweep(configs, OUT / 'transformers.jsonl', train)


if __name__ == '__main__':
    main(tune=TUNE, final=final)
