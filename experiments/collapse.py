"""Why do runs end at guessing, and do they come back? python experiments/collapse.py

Claim: at rate .2 PyTorch's start on pixels in [0, 1] often ends at an accuracy of .1. The first edition of this
    course said: its units die, and a dead network never comes back. Re-run for ten epochs, one network that was
    counted as dead reached .81, and one that was not returned to .1 and stayed there.

Two mechanisms, told apart by what is measured over all 10,000 test images:
    plateau: what the network says hardly differs between images, so the gradient is small, but it is not 0;
    death: in one layer every unit is 0 for every image, so all images look alike, and no weight below gets a gradient.
Scientific variables: the rate (.2, .3, .4; .05 as a control) and, at .4, the start (PyTorch's; Kaiming's, whose signal
    is not small; PyTorch's with a leak of .1, whose units cannot die). Kaiming's takes the first cause away, the leak
    the second. (At .2 four seeds of five learn with these batches, and one of five with batches of 1,024, see
    ledger.py: .3 and the controls at .4 were chosen after .2 was seen.)
Fixed: the course's network of five convolutions, Fashion-MNIST with pixels in [0, 1], 20,000 images ten times in
    batches of 512 (390 steps), SGD with momentum .85, a constant rate. Seeds 0 to 4 give weights and order.
Nothing is tuned here: a rate is a condition. `tune_accuracy` is kept as in each experiment.

Kept in each row: `left`, the first step of ten whose mean loss is below 2.2 (ln 10 is 2.303); and
    after each epoch (and before the first) accuracy, loss, `dead` (share of dead units of each hidden layer) and
    `spread` (standard deviation of the scores between images, averaged over the ten classes). A unit is a channel;
    it is dead if it is 0 at every position of every image.
Rescue: what is below .2 after three epochs, and finite, is copied; each copy trains two more epochs at rate .05, from
    rest:
    `lower` changes nothing else;
    `revive` raises the bias of each dead unit, layer by layer, until the unit is on at half of the positions of
        512 training images; no other number changes;
    `rescale` divides each layer's output by one number, so that its standard deviation is 1 (the weights by that
        number, the biases by its product with those of the layers before): no sign changes, so the dead stay dead;
    `both` does the one and the other.
Pilot (50,000 images, batches of 1,024, seeds 0 and 1): reviving alone makes the loss 500 and more and kills again,
    rescaling alone leaves the dead dead, both together learn at once. The jump has left weights that are too large,
    held down by biases that are too low.

Confirmed, "a dead network stays dead": no run with a layer whose units are all dead is above .2 afterwards.
Confirmed, "a plateau is left again": most runs below .2 after three epochs without such a layer are above .2, or have
    multiplied their spread by ten, at some later epoch. Refuted, if none.
Confirmed, "dead units and a wrong scale together keep them there": `both` brings most to .5, neither part alone does.
Confirmed, "the collapse needs units that die": with the leak no run is below .2 after ten epochs. Refuted, if as many
    are, or diverge. "The first plateau is the small signal": it is shorter with Kaiming's start, as long with the leak.

About 8 s a run on one core, 14 s with a rescue: 30 runs in about 6 minutes. Left out: other networks, momenta.
"""

import copy
import math
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import nn

from course_lib.core import set_seed
from course_lib.init import init_weights
from course_lib.models import GeneralRelu, get_model
from course_lib.stacks import batch_order, fit_stack, image_sets, judged, take_batch
from course_lib.sweep import Sweep, main

OUT = Path(__file__).resolve().parents[1] / 'nbs/results'
CELLS = ('default', 0.2), ('default', 0.4), ('leak', 0.4), ('default', 0.3), ('kaiming', 0.4), ('default', 0.05)
ACTS = dict(leak=partial(GeneralRelu, leak=0.1))
RESCUES = 'lower', 'revive', 'rescale', 'both'


@dataclass(frozen=True)
class Collapse:
    "A run."

    start: str  # 'default', 'leak' (the same weights, leaky activations) or 'kaiming'
    lr: float  # learning rate, constant
    seed: int  # of weights and order
    epochs: int = 10  # times that each image is seen
    rescue_at: int = 3  # epochs before the rescue
    rescue_lr: float = 0.05  # rate after it
    rescue_epochs: int = 2  # epochs after it
    batch_size: int = 512  # images a step
    momentum: float = 0.85  # of SGD
    n_train: int = 20_000  # images
    dataset: str = 'fashion_mnist'


def model(c):
    "The network at its start."
    set_seed(c.seed)
    net = get_model(ACTS.get(c.start, nn.ReLU))
    return net.apply(init_weights) if c.start == 'kaiming' else net


@torch.no_grad()
def look(net, images):
    "Accuracy, loss, dead shares and spread over all of some images."
    on, scores = [], []
    for rows in torch.arange(len(images.y)).split(1000):
        x, _ = take_batch(images, rows)
        layers = []
        for block in net[:-2]:
            x = block(x)
            layers.append((x != 0).any(3).any(2).any(0))
        on.append(layers)
        scores.append(net[-2:](x))
    scores = torch.cat(scores)
    alive = [torch.stack(layer).any(0) for layer in zip(*on)]
    loss = nn.functional.cross_entropy(scores, images.y).item()
    return dict(
        accuracy=round((scores.argmax(1) == images.y).float().mean().item(), 4),
        loss=round(loss, 4) if math.isfinite(loss) else None,
        dead=[round(1 - a.float().mean().item(), 4) for a in alive],
        spread=float(f'{scores.double().std(0).mean().item():.3g}') if math.isfinite(loss) else None,
    )


@torch.no_grad()
def mend(net, x, revive, rescale):
    "Raise the bias of each dead unit to the median of its input; give each layer an output of deviation 1."
    total = 1.0
    for block in net[:-1]:
        layer = block[0]
        layer.bias /= total  # as its input was
        if revive and isinstance(block[-1], nn.ReLU):
            before = layer(x)
            dead = before.amax((0, 2, 3)) <= 0
            layer.bias[dead] -= before.transpose(0, 1).flatten(1).median(1).values[dead]
        if rescale:
            std = layer(x).std()
            layer.weight /= std
            layer.bias /= std
            total *= std
        x = block(x)


def rescued(c, net, sets, order):
    "Before and after each epoch at the lower rate, for each rescue."
    images = sets['train'].part(slice(c.n_train))
    per_epoch = len(order) // c.epochs
    later = order[c.rescue_at * per_epoch :][: c.rescue_epochs * per_epoch]
    results = {}
    for name in RESCUES:
        fresh = copy.deepcopy(net)
        mend(fresh, take_batch(images, later[0])[0], name in ('revive', 'both'), name in ('rescale', 'both'))
        at = {t * per_epoch: lambda trainer: look(trainer.model, sets['test']) for t in range(c.rescue_epochs + 1)}
        _, _, seen = fit_stack([fresh], images, later[None], [c.rescue_lr], momentum=c.momentum, at=at)
        results[name] = [{k: seen[t][k] for k in ('accuracy', 'loss', 'spread')} for t in sorted(seen)]
    return results


def left_plateau(losses):
    "The first step of ten whose mean loss is below 2.2; None if there is none."
    below = (losses.unfold(0, min(10, len(losses)), 1).mean(1) < 2.2).nonzero()
    return int(below[0]) if len(below) else None


def train(configs):
    "A run."
    (c,) = configs
    sets = image_sets(c.dataset)
    sets = {name: replace(images, mean=0.0, std=1.0) for name, images in sets.items()}
    images = sets['train'].part(slice(c.n_train))
    order = batch_order(len(images.y), len(images.y) * c.epochs, c.batch_size, c.seed)
    per_epoch = len(order) // c.epochs
    rescue = {}

    def after(epoch, trainer):
        seen = look(trainer.model, sets['test'])
        if epoch == c.rescue_at and seen['accuracy'] < 0.2 and seen['loss'] is not None:
            rescue.update(rescued(c, trainer.model, sets, order))
        return dict(epoch=epoch) | seen

    at = {epoch * per_epoch: partial(after, epoch) for epoch in range(c.epochs + 1)}
    trainer, losses, seen = fit_stack([model(c)], images, order[None], [c.lr], momentum=c.momentum, at=at)
    (row,) = judged(trainer, losses, sets)
    history = [seen[t] for t in sorted(seen)]
    return [row | dict(left=left_plateau(losses[0]), history=history, rescue=rescue)]


def grid():
    "Cell by cell."
    return [Collapse(start, lr, seed) for (start, lr), seed in product(CELLS, range(5))]


SWEEP = Sweep(grid(), OUT / 'collapse.jsonl', train)

if __name__ == '__main__':
    main(collapse=SWEEP)
