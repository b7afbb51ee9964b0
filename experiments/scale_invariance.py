"""Weights whose length does not matter: python experiments/scale_invariance.py [equilibrium|schedule|tune|final]

Claims. van Laarhoven 2017; Wan et al. 2021: behind a norm, weight decay (wd) does not keep weights small for their
    own sake. With plain SGD at rate lr their length settles where ||w||^4 = lr/(2 wd) times the squared gradient of a
    weight of length 1, and each step turns them by the angle sqrt(2 lr wd); so accuracy follows from lr*wd.
    Li and Arora 2020: constant rate with decay and an exponentially growing rate without it are the same run.
    Frankle et al. 2021: a net of random, frozen weights learns by its norms' scales and shifts alone, better than by
    as many other parameters.

Fixed: three convolutions of stride 2, a batch norm (statistics of the batch in both modes) and a ReLU behind each, a
    last layer that is drawn and never trained; Fashion-MNIST, batches of 64, plain SGD. Nothing but the convolutions
    is trained in `equilibrium` and `schedule`: each trained weight is in front of a norm.
Judged on the first 4,000 test images in batches of 133 to 400 (equal within a comparison). Five seeds give weights
    and order: runs are paired.

equilibrium: 2,000 steps. Scientific: the product lr*wd (0 is the control) and the rate. Nothing is tuned.
    Confirmed, "angle": in the second half, for each product of .001 or more, the root mean square angle is within 5 %
    of arccos(1 - lr*wd) in each layer, at each rate; refuted if any mean over seeds is 20 % off. "Length": likewise the
    mean of ||w||^4 against lr^2/(1-(1-lr*wd)^2) times the mean squared gradient of a weight of length 1, within 10 %.
    "Only the product matters": at equal products of .001 or more, rates a hundred times apart give accuracies within
    .01, all pairs of rates (95 % t interval within +-.01: holds; beyond: fails; else open). All start from PyTorch's
    weights: nothing is matched, so the first steps differ. At smaller products the start should still be seen.
schedule: 3,000 steps at rate .1, wd .05. Scientific: constant rate with decay; growing rate without; controls: `nudged`
    (with decay, the start changed by a millionth: what rounding may do), `constant` (neither decay nor growth).
    Accuracy at every 250 steps. Confirmed, "the same run": the mean gap of `decay` and `growing` in accuracy over seeds
    and times is no more than 1.5 times that of `decay` and `nudged`. Refuted if more.
tune, final: what is trained (`norms`, as many `others`, `all`) at three widths; 500 steps, no decay. Nuisance: the
    rate (five), tuned with two seeds on 2,000 held-out training images; judged with five others on the test images.
    Confirmed, "norms ahead of as many others": interval of the paired difference above 0 at each width; refuted if
    below 0 or within +-.01 at each. (250 steps were run first: no difference could be told. Then 500.)

Stacks through `vmap`. About 2 ms a step of a run on one idle core, some 15 minutes in all; the committed rows took
    76 minutes on a core shared by six. Left out, as time was short: the exponent -1, decay of scales and shifts;
    momentum, Adam, deeper nets, whole epochs.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from course_lib.core import set_seed
from course_lib.rows import read_rows
from course_lib.scale_invariance import FixedLinear, bare_norm, growing_rate, invariant_net
from course_lib.stacks import batch_order, fit_stack, image_sets, judged
from course_lib.statistics import group_rows, tuned
from course_lib.sweep import Sweep, main, same_cell

OUT = Path(__file__).resolve().parents[1] / 'nbs/results'
PRODUCTS = 0.0, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2
RATES = 0.01, 0.1, 1.0
KINDS = 'decay', 'growing', 'nudged', 'constant'
WIDTHS = 4, 8, 16
LRS = 0.1, 0.3, 1.0, 3.0, 10.0
CELLS = [(what, width) for what in ('norms', 'others', 'all') for width in WIDTHS]
TUNE_SEEDS, SEEDS = (100, 101), tuple(range(5))


@dataclass(frozen=True)
class Invariant:
    "A run in which each trained weight is in front of a norm."

    kind: str  # of `KINDS`
    product: float  # rate times weight decay
    lr: float  # at the start
    seed: int  # of weights and order
    steps: int = 2_000
    batch_size: int = 64  # images a step
    every: int = 20  # steps between two looks
    curve: bool = False  # is accuracy taken at each look?


@dataclass(frozen=True)
class Part:
    "A run in which a part of the network is trained."

    what: str  # 'norms', 'others' or 'all'
    width: int  # channels of the first convolution; the others have twice as many
    lr: float  # constant
    seed: int  # of weights and order
    steps: int = 500
    batch_size: int = 64  # images a step


def stacked(trainer):
    "The trainer's parameters, each of shape (models, *); they change as it trains."
    if hasattr(trainer, 'params'):
        return list(trainer.params.values())
    return [p for p in trainer.model.parameters()]


def decaying(decays):
    "For `at[0]`: each model gets its own weight decay."

    def start(trainer):
        for p in stacked(trainer):
            alone = not hasattr(trainer, 'params')
            factor = decays[0] if alone else torch.tensor(decays).view(-1, *[1] * (p.ndim - 1))
            p.register_hook(lambda g, p=p, factor=factor: g + factor * p.detach())

    return start


def weights(trainer):
    "All weights as they are: for each layer a tensor (models, numbers)."
    alone = not hasattr(trainer, 'params')
    return [p.detach().clone().reshape(1 if alone else len(p), -1) for p in stacked(trainer)]


def settled(before, after, lr, shrink):
    "Angle, ||w||^2 and the squared gradient of a weight of length 1, from one step of plain SGD; (3, layers, models)."
    found = []
    for w, new in zip(before, after):
        w, new = w.double(), new.double()
        grad = (shrink[:, None] * w - new) / lr[:, None]
        cosine = (w * new).sum(1) / (w.norm(dim=1) * new.norm(dim=1))
        square = w.square().sum(1)
        found.append(torch.stack([cosine.clamp(max=1).acos(), square, grad.square().sum(1) * square]))
    return torch.stack(found, 1)


def orders_of(configs, images):
    "Each run's batches."
    return torch.stack([batch_order(len(images.y), c.steps * c.batch_size, c.batch_size, c.seed) for c in configs])


def few(sets):
    "What is judged on."
    return dict(tune=sets['tune'].part(slice(2000)), test=sets['test'].part(slice(4000)))


def start(c):
    "The network before its first step."
    set_seed(c.seed)
    net = invariant_net()
    if c.kind == 'nudged':
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(1 + 1e-6 * torch.randn(p.shape))
    return net


def factor(c):
    "The schedule of a run, as a function of the position in [0, 1)."

    def at(position):
        if c.kind != 'growing':
            return 1.0
        return growing_rate(c.lr, c.product / c.lr, round(position * c.steps)) / c.lr

    return at


def train(configs):
    "A stack of one kind."
    c = configs[0]
    sets = image_sets('fashion_mnist')
    orders = orders_of(configs, sets['train'])
    lr = torch.tensor([o.lr for o in configs], dtype=torch.float64)
    decays = torch.tensor([o.product / o.lr if o.kind in ('decay', 'nudged') else 0.0 for o in configs])
    decay = decaying(decays.tolist())
    judges = few(sets)

    def first(trainer):
        decay(trainer)
        return look(trainer)

    def look(trainer):
        return weights(trainer), trainer.evaluate(judges['test'])[0] if c.curve else None

    def after(trainer):
        return weights(trainer), None

    times = list(range(0, c.steps, c.every))
    at = {0: first} | dict.fromkeys(times[1:], look) | dict.fromkeys([t + 1 for t in times], after) | {c.steps: look}
    models = [start(o) for o in configs]
    trainer, losses, seen = fit_stack(models, sets['train'], orders, lr.tolist(), factor(c), at=at)
    results = judged(trainer, losses, judges)
    shrink = 1 - lr * decays
    looks = []
    for t in times:
        looks.append(settled(seen[t][0], seen[t + 1][0], lr * factor(c)(t / c.steps), shrink))
    looks = torch.stack(looks)  # (looks, 3, layers, models)
    late = looks[len(looks) // 2 :]
    for i, result in enumerate(results):
        result['angle'] = late[:, 0, :, i].square().mean(0).sqrt().tolist()
        result['length4'] = late[:, 1, :, i].square().mean(0).tolist()
        result['unit_grad2'] = late[:, 2, :, i].mean(0).tolist()
        result['lengths'] = [[float(f'{v:.4g}') for v in o.sqrt().tolist()] for o in looks[:, 1, :, i].T]
        result['losses'] = [round(o.item(), 4) for o in losses[i].unfold(0, c.every, c.every).mean(1)]
        if c.curve:
            result['accuracies'] = [round(seen[t][1][i].item(), 4) for t in (*times, c.steps)]
    return results


class PartConv(nn.Module):
    "A convolution of stride 2 of which all, two drawn weights of each output channel, or nothing is trained."

    def __init__(self, n_in, n_out, what):
        super().__init__()
        drawn = nn.Conv2d(n_in, n_out, 3, bias=False).weight.detach()
        chosen = torch.rand(n_out, n_in * 9).topk(2).indices
        mask = torch.zeros(n_out, n_in * 9).scatter_(1, chosen, 1.0).view_as(drawn)
        self.what = what
        if what == 'norms':
            self.register_buffer('weight', drawn)
        else:
            self.weight = nn.Parameter(drawn)
        if what == 'others':
            self.register_buffer('mask', mask)

    def forward(self, x):
        w = self.weight
        if self.what == 'others':
            w = w.detach() + self.mask * (w - w.detach())
        return nn.functional.conv2d(x, w, stride=2, padding=1)


def part_net(c):
    "The network; scales and shifts belong to its norms unless others are trained in their place."
    set_seed(c.seed)
    channels = c.width, 2 * c.width, 2 * c.width
    layers = []
    for n_in, n_out in zip((1, *channels), channels):
        norm = bare_norm(n_out)
        if c.what != 'others':
            norm = nn.BatchNorm2d(n_out, track_running_stats=False)
        layers += [PartConv(n_in, n_out, c.what), norm, nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), FixedLinear(channels[-1] * 16, 10))


def n_trained(net):
    "Numbers that training changes."
    masks = [m.mask.sum() for m in net.modules() if hasattr(m, 'mask')]
    return int(sum(masks)) or sum(p.numel() for p in net.parameters())


def train_part(configs):
    "A stack of one shape."
    sets = image_sets('fashion_mnist')
    nets = [part_net(o) for o in configs]
    trainer, losses, _ = fit_stack(nets, sets['train'], orders_of(configs, sets['train']), [o.lr for o in configs])
    return [result | dict(trained=n_trained(nets[0])) for result in judged(trainer, losses, few(sets))]


EQUILIBRIUM = Sweep(
    [Invariant('decay', p, lr, seed) for p in PRODUCTS for lr in RATES for seed in SEEDS],
    OUT / 'scale_equilibrium.jsonl',
    train,
    same_cell,
    stack=15,
)
SCHEDULE = Sweep(
    [Invariant(k, 5e-3, 0.1, seed, 3_000, every=250, curve=True) for k in KINDS for seed in SEEDS],
    OUT / 'scale_schedule.jsonl',
    train,
    same_cell,
    stack=5,
)


TUNE = Sweep(
    [Part(*cell, lr, seed) for cell in CELLS for lr in LRS for seed in TUNE_SEEDS],
    OUT / 'scale_parts_tune.jsonl',
    train_part,
    same_cell,
    stack=10,
)


def final():
    "Each cell at the rate that was best on the held-out images."
    if TUNE.pending():
        raise SystemExit('scale_invariance: tune first')
    cells = group_rows(read_rows(TUNE.path), 'what', 'width')
    best = {cell: tuned(rows, by='tune_accuracy')['lr'] for cell, rows in cells.items()}
    configs = [Part(*cell, best[cell], seed) for cell in CELLS for seed in SEEDS]
    return Sweep(configs, OUT / 'scale_parts.jsonl', train_part, same_cell, stack=5)


if __name__ == '__main__':
    main(equilibrium=EQUILIBRIUM, schedule=SCHEDULE, tune=TUNE, final=final)
