"""How do a hundred layers train, with a norm and without? python experiments/deep_residual.py [tune|final]

Claims. De and Smith 2020: batch norm makes deep residual nets trainable because it downscales the branch: in block l
    it is 1/l of the stream's variance; one learned number per branch, 0 at the start ("SkipInit"), does the same.
    Zhang et al. 2019: with Fixup a net of 10,000 layers trains without a norm, and nets without one train as fast and
    generalize "equally well".
    Qiao et al. 2019: standardized weights make group norm better. Brock et al. 2021: with them and scales by hand
    no norm is needed.

Question: at 8, 32 and 128 layers, which of these nets learn, and is it the scale of the branch that decides?
Scientific variables: the method (`METHODS`) and the number of blocks, of two layers each.
Nuisance variable, tuned for each cell: the learning rate, the same six for all methods of a net, a factor 3 apart.
Fixed: one net (`deep_residual_net`) with Kaiming's start and a last layer of zeros, no norm in front of it; 8,000
    images of Fashion-MNIST seen once in batches of 64 (125 steps), SGD with momentum 0.9, a constant rate. Most
    cells are of linear layers with 64 units (28x28 is one patch), since they are cheap; one depth (16 blocks) is
    repeated with 3x3 convolutions, 8 channels on maps of 4x4 (circular, so that a border loses no variance).
Tuned with seeds 0 and 1 on 2,000 of the last 10,000 training images (`tune`, nbs/results/deep_residual_tune.jsonl),
    judged with seeds 2 to 6 on the first 4,000 test images (`final`, nbs/results/deep_residual.jsonl), in pairs.
    (Rows of tuning keep an accuracy on 500 test images; nothing is chosen by it.)

Controls. `hand` has batch norm's scale, 1/sqrt(l), and no norm. `behind` has batch norm behind each sum, so that
    branch and skip are equal parts: a norm, but no downscaling. `halved` multiplies branch and skip by sqrt(1/2): the
    variance stays, the branch is not downscaled. And a net without any block: what first and last layer learn alone.
    (Added when the rows of tuning showed that Fixup's branches are a share of 1e-5 of the stream after training.)
Let the gap be batch - unscaled, at 64 blocks, each at its own rate. "It is the scale", holds: hand - unscaled is more
    than half of the gap (95 % t interval of hand - unscaled above that half), and neither behind nor halved closes
    half of it. Fails: hand closes less than half, or behind and halved do as well as hand. Else open.
"As well without": Fixup - batch at 64 blocks; holds, if the interval lies above -0.01; fails, if below; else open.
"Standardized weights help" (16 blocks of convolutions): group_ws - group and hand_ws - hand; holds, if the interval
    is above 0, fails, if below 0 or within 0.01 of it, else open.
What it cannot tell: ImageNet, long training, wide nets. Only 125 steps: this is about learning at all and soon.

Fixup here: scaled and zero weights, a last layer of zeros, a learned factor for each branch. Our layers have a bias
    per unit, where the paper has one number per layer; its ten times smaller rate for these is left out.

Stacks of up to 12. 612 runs in 65 minutes, on a quarter of a busy core; perhaps 20 on an idle one. Left out: more
    steps, wider nets, a schedule, clipped gradients, deeper convolutions, `zero` and `skipinit` at other depths.
"""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from course_lib.core import set_seed
from course_lib.residual import (
    deep_residual_net,
    fixup_start,
    harmonic_scale,
    root_scale,
    stream_moments,
    weigh_last,
)
from course_lib.rows import read_rows
from course_lib.stacks import batch_order, fit_stack, image_sets, judged, take_batch
from course_lib.statistics import group_rows, tuned
from course_lib.sweep import Sweep, main, same_cell

OUT = Path(__file__).resolve().parents[1] / 'nbs/results'
GROUP = partial(nn.GroupNorm, 2)


def half(l, n):
    return 0.5**0.5


def nothing(l, n):
    return 0.0


METHODS = dict(  # what `deep_residual_net` is given
    batch=dict(norm=nn.BatchNorm2d),
    hand=dict(scale=harmonic_scale),
    unscaled=dict(),
    fixup=dict(learned=True),
    behind=dict(behind=nn.BatchNorm2d),
    halved=dict(scale=half, skip=0.5**0.5),
    skipinit=dict(scale=nothing, learned=True),
    zero=dict(),
    root=dict(),
    plain=dict(skip=0.0),
    group=dict(norm=GROUP),
    group_ws=dict(norm=GROUP),
    hand_ws=dict(scale=harmonic_scale),
)
DENSE = [m for m in METHODS if not m.startswith('group') and m != 'hand_ws']
CONV = 'batch', 'hand', 'unscaled', 'fixup', 'behind', 'group', 'group_ws', 'hand_ws'
EVERY_DEPTH = 'batch', 'hand', 'unscaled', 'fixup', 'behind', 'halved', 'root', 'plain'
LRS = dict(dense=(0.0003, 0.001, 0.003, 0.01, 0.03, 0.1), conv=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3))
SHAPES = dict(dense=dict(width=64, side=1), conv=dict(width=8, side=4))
TUNE_SEEDS, SEEDS = (0, 1), (2, 3, 4, 5, 6)


@dataclass(frozen=True)
class DeepResidual:
    "A run."

    net: str  # 'dense' or 'conv'
    method: str  # key of `METHODS`
    blocks: int  # of two layers
    lr: float  # constant
    seed: int  # of weights and order
    samples: int = 8_000  # images, each seen once
    batch_size: int = 64  # images a step
    momentum: float = 0.9  # of SGD
    dataset: str = 'fashion_mnist'


class ZeroMeanConv2d(nn.Conv2d):
    "Weights of mean 0, and of a size that keeps the variance behind a ReLU (Qiao et al. 2019; Brock et al. 2021)."

    def forward(self, x):
        var, mean = torch.var_mean(self.weight, (1, 2, 3), correction=0, keepdim=True)
        gain = math.sqrt(2 / (1 - 1 / math.pi) / self.weight[0].numel())
        weight = (self.weight - mean) * gain * (var + 1e-8).rsqrt()
        return self._conv_forward(x, weight, self.bias)


def model(c):
    "The net at its start."
    set_seed(c.seed)
    net = deep_residual_net(c.blocks, **SHAPES[c.net], **METHODS[c.method])
    if c.method == 'fixup':
        fixup_start(net)
    if c.method in ('root', 'zero'):
        weigh_last(net, root_scale(1, c.blocks) if c.method == 'root' else 0.0)
    if c.method.endswith('_ws'):
        for m in net[1:].modules():
            if type(m) is nn.Conv2d:
                m.__class__ = ZeroMeanConv2d
    return net


def look(trainer, x):
    "Moments and shares of each model behind blocks 1, 2, 4, 8 and so on; in training mode."
    looks = []
    for m in trainer.models():
        moments = stream_moments(m.train(), x)
        at = [2**i for i in range(len(moments).bit_length())]
        looks.append([(l, *(float(f'{o:.3g}') for o in moments[l - 1])) for l in at])
    return looks


def train(configs):
    "A stack."
    c = configs[0]
    sets = image_sets(c.dataset)
    orders = torch.stack([batch_order(len(sets['train'].y), c.samples, c.batch_size, o.seed) for o in configs])
    trainer, losses, _ = fit_stack(
        [model(o) for o in configs], sets['train'], orders, [o.lr for o in configs], momentum=c.momentum
    )
    n_test = 4000 if c.seed in SEEDS else 500
    parts = dict(tune=sets['tune'].part(slice(2000)), test=sets['test'].part(slice(n_test)))
    rows = judged(trainer, losses, parts)
    looks = look(trainer, take_batch(sets['tune'], torch.arange(256))[0])
    return [row | dict(stream=seen) for row, seen in zip(rows, looks)]


def cells():
    "Net, method, blocks; what decides first."
    deep = [('dense', method, 64) for method in DENSE]
    none = [('dense', 'unscaled', 0), ('conv', 'unscaled', 0)]
    conv = [('conv', method, 16) for method in CONV]
    return deep + none + conv + [('dense', method, blocks) for blocks in (16, 4) for method in EVERY_DEPTH]


TUNE = Sweep(
    [DeepResidual(*cell, lr, seed) for cell in cells() for seed in TUNE_SEEDS for lr in LRS[cell[0]]],
    OUT / 'deep_residual_tune.jsonl',
    train,
    same_cell,
    stack=12,
)


def final():
    "Each cell at the rate that was best on the held-out images."
    if TUNE.pending():
        raise SystemExit('deep_residual: tune first')
    rows = group_rows(read_rows(TUNE.path), 'net', 'method', 'blocks')
    best = {cell: tuned(runs, by='tune_accuracy')['lr'] for cell, runs in rows.items()}
    configs = [DeepResidual(*cell, best[cell], seed) for cell in cells() for seed in SEEDS]
    return Sweep(configs, OUT / 'deep_residual.jsonl', train, same_cell, stack=5)


if __name__ == '__main__':
    main(tune=TUNE, final=final)
