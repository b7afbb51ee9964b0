"""Why does batch norm help? Santurkar et al.'s control in full: python experiments/why_batchnorm.py

Claim: Santurkar et al. 2018: batch norm does not help by keeping the distributions of activations still (Ioffe and
    Szegedy 2015), since a network with noise injected behind each batch norm, whose distributions move more than
    those of a plain network, still trains better than the plain one; it helps by making the loss smoother (loss and
    gradient along a step vary less, section 3).

Scientific variables: batch norm or none; the level of the noise (0: none; 1: about that of the paper: each channel is
    scaled by a factor between .875 and 1.125 and shifted by up to half a unit, drawn anew in each step). Without a
    norm the shift is in units of the channel's standard deviation in the batch, so that the noise is as large,
    relative to the signal, as behind a norm.
Nuisance variable, tuned for each network: the learning rate, the same five for all.
Fixed: 12 layers with 16 channels (two strided convolutions, nine 3x3 ones on 7x7 maps, a linear layer), Kaiming
    start, 6,000 images of Fashion-MNIST once, in batches of 64, plain SGD.
Tuned on 5,000 of the last 10,000 training images, judged on the test images, without noise. Five seeds, paired.

The factor is one on average, since evaluation has no noise. A first form took factors between 1 and 1.25, as the paper
    does; after 16 of its runs level 1 had nearly the training loss of batch norm (.72, .68) and half its accuracy
    (.39, .76): there each of the eleven norms hands on a ninth less than the running statistics behind it expect.
`accuracy` and `tune_accuracy` are those with population statistics, taken from 1,000 training images after training,
    without noise (Ioffe and Szegedy 2015, algorithm 2); `running`: with the running statistics, on 2,000 test images.

Measured each sixteenth step, with the noise held: `along`, the loss after steps of 1/4 to 4 times the rate; `predict`,
    how far the gradient turned there, in its own length; `shift`, definition 2.1 of the paper for layers 4 and 11:
    the distance of the layer's gradient before and after all lower layers moved, in its own length, and the cosine;
    `drift`: how far channel means and deviations of what layer 8 hands on moved in that step.

Controls: noise without a norm (does noise alone explain what noise does?); everything at equal rates and at each
    network's own best rate.
"Drift does not matter" is confirmed, if at some level the drift is above that of the plain network and batch norm
    with noise is still ahead of the plain network at own best rates (95 % t interval above 0) and has lost less
    than half of the gain. It is refuted, if at each level with more drift than the plain network the gain is gone (its
    mean not above 0).
    Between: open.
"The loss is smoother" is confirmed, if the median range of `along` and of `predict` is smaller with batch norm at
    equal rates and also at own best rates; refuted if larger at both; if the two disagree, that is the finding.

About 6 s a run: 150 runs in a quarter of an hour. Left out: longer runs, deeper networks, noise that differs within a
    batch.
"""

import math
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from course_lib.core import set_seed
from course_lib.init import init_weights
from course_lib.models import conv
from course_lib.norms.convert import recalibrate
from course_lib.stacks import accuracy_loss, batch_order, fit_stack, image_sets, judged, take_batch
from course_lib.sweep import Sweep, main

OUT = Path(__file__).resolve().parents[1] / 'nbs/results'
NETS = (
    ('none', 0.0),
    ('batch', 0.0),
    ('batch', 1.0),
    ('batch', 2.0),
    ('none', 1.0),
    ('batch', 4.0),
)
LRS = 0.01, 0.03, 0.1, 0.3, 1.0
STEPS = 0.25, 0.5, 1.0, 2.0, 4.0  # in learning rates
LAYERS = 4, 11  # whose shift is measured, counted from 1


@dataclass(frozen=True)
class Why:
    "A run."

    norm: str  # 'none' or 'batch'
    noise: float  # level
    lr: float  # constant
    seed: int  # of weights and order
    depth: int = 12  # layers with weights
    channels: int = 16  # of each convolution
    n_train: int = 6_000  # images, each seen once
    batch_size: int = 64  # images a step
    every: int = 16  # steps between two probes
    n_tune: int = 5_000  # images for tuning
    n_stats: int = 1_000  # training images that the statistics of evaluation are taken from


class Noise:
    "Scales and shifts each channel at random, anew in each training step unless `hold`."

    level, hold, drawn = 0.0, False, None

    def noisy(self, x, unit=1.0):
        "`x` (N, C, H, W) with noise; `unit` of the shift, (1, C, 1, 1)"
        if not self.training or not self.level:
            return x
        if self.drawn is None or not self.hold:
            self.drawn = torch.rand(2, 1, x.shape[1], 1, 1)
        scale = 1 + self.level * (self.drawn[0] - 0.5) / 4
        shift = self.level * (self.drawn[1] - 0.5)
        return x * scale + shift * unit


class NoisyBatchNorm(nn.BatchNorm2d, Noise):
    "Batch norm with noise behind it."

    def forward(self, x):
        return self.noisy(super().forward(x))


class OnlyNoise(nn.Module, Noise):
    "Noise and no norm; its shift is in units of the channel's standard deviation, which passes no gradient."

    bias = None

    def forward(self, x):
        return self.noisy(x, x.detach().std((0, 2, 3), keepdim=True))


def model(c):
    "The deep network."
    set_seed(c.seed)

    def norm(channels):
        layer = NoisyBatchNorm(channels) if c.norm == 'batch' else OnlyNoise()
        layer.level = c.noise
        return layer

    layers = [conv(1, c.channels, norm=norm), conv(c.channels, c.channels, norm=norm)]
    layers += [conv(c.channels, c.channels, stride=1, norm=norm) for _ in range(c.depth - 3)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(c.channels * 49, 10)).apply(init_weights)


def hold_noise(net, on):
    "The same noise again, while one batch is looked at from several points."
    for m in net.modules():
        if isinstance(m, Noise):
            m.hold = on


def gradient(net, x, y, weights):
    "Loss and the gradients of `weights`."
    loss = F.cross_entropy(net(x), y)
    return loss.item(), torch.autograd.grad(loss, weights)


def moved_by(params, directions, size):
    "Move parameters against `directions`."
    with torch.no_grad():
        for p, d in zip(params, directions):
            p.sub_(size * d)


def flat(tensors):
    "One vector."
    return torch.cat([t.flatten() for t in tensors])


def shift(net, x, y, params, grads, weight, lr, keep):
    "Definition 2.1: a layer's gradient before and after all lower layers moved: distance in its own length, cosine."
    k = [p is weight for p in params].index(True)
    moved_by(params[:k], grads, lr)
    after = gradient(net, x, y, [weight])[1][0]
    net.load_state_dict(keep)
    distance = (after - grads[k]).norm() / grads[k].norm()
    return [distance.item(), F.cosine_similarity(after.flatten(), grads[k].flatten(), 0).item()]


def probe(net, x, y, lr):
    "Loss and change of the gradient along it, and the shift that lower layers cause; the network stays as it was."
    params = list(net.parameters())
    keep = {k: v.clone() for k, v in net.state_dict().items()}
    hold_noise(net, True)
    loss, grads = gradient(net, x, y, params)
    start = flat(grads)
    found = dict(loss=loss, norm=start.norm().item(), along=[], predict=[])
    for size in STEPS:
        moved_by(params, grads, size * lr)
        there, turned = gradient(net, x, y, params)
        found['along'].append(there)
        found['predict'].append(((flat(turned) - start).norm() / start.norm()).item())
        net.load_state_dict(keep)
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    found['shift'] = [shift(net, x, y, params, grads, convs[i - 1].weight, lr, keep) for i in LAYERS]
    hold_noise(net, False)
    return found


@torch.no_grad()
def handed_on(net, x):
    "Means and standard deviations, channel by channel, of what layer 8 hands to layer 9 in training mode."
    keep = {k: v.clone() for k, v in net.state_dict().items()}
    h = net[:8](x)
    net.load_state_dict(keep)
    return h.mean((0, 2, 3)), h.std((0, 2, 3))


def rounded(value):
    "Four digits, in lists and dictionaries too."
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return float(f'{value:.4g}') if isinstance(value, float) and math.isfinite(value) else value


def quiet(net, images):
    "The statistics of these images, without noise, in the buffers of batch norm, if there is any."
    if any(isinstance(m, NoisyBatchNorm) for m in net.modules()):
        batches = [take_batch(images, rows) for rows in torch.arange(len(images.y)).split(250)]
        recalibrate(net, batches, progress=False)


def train(configs):
    "One run, looked at on the way."
    (c,) = configs
    sets = image_sets('fashion_mnist')
    images = sets['train'].part(slice(c.n_train))
    order = batch_order(len(images.y), len(images.y), c.batch_size, c.seed)
    watched, _ = take_batch(sets['tune'], torch.arange(256))
    before = {}

    def look(t, trainer):
        (net,) = trainer.models()
        found = probe(net, *take_batch(images, order[t]), c.lr)
        before[t] = handed_on(net, watched)
        return found

    def look_again(t, trainer):
        (mean, std), (mean1, std1) = before[t], handed_on(trainer.models()[0], watched)
        return [((a - b).abs() / (std + 1e-6)).mean().item() for a, b in ((mean1, mean), (std1, std))]

    steps = range(0, len(order), c.every)
    at = {t: lambda trainer, t=t: look(t, trainer) for t in steps} | {
        t + 1: lambda trainer, t=t: look_again(t, trainer) for t in steps
    }
    trainer, losses, seen = fit_stack([model(c)], images, order[None], [c.lr], at=at)
    probes = [dict(step=t, **seen[t], drift=seen[t + 1]) for t in steps]
    (net,) = trainer.models()
    running = accuracy_loss(net.eval(), sets['test'], 2_000)[0].item()
    quiet(net, images.part(slice(c.n_stats)))
    (result,) = judged(trainer, losses, sets | dict(tune=sets['tune'].part(slice(c.n_tune))))
    result['running'] = running
    return [rounded(result | dict(losses=losses[0].tolist(), probes=probes))]


def grid():
    "Seed by seed."
    return [Why(norm, noise, lr, seed) for seed, (norm, noise), lr in product(range(5), NETS, LRS)]


SWEEP = Sweep(grid(), OUT / 'why_batchnorm.jsonl', train)

if __name__ == '__main__':
    main(why_batchnorm=SWEEP)
