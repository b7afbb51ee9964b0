"""Fashion-MNIST in five epochs below 100,000 parameters: python experiments/towards90.py [small|full]

Claims. fast.ai 2022, lesson "Initializing": five epochs, batch norm, 30,274 parameters: .900, one run. First edition of
    this course: its recipe reaches .928 with another network; what came from which was not told apart. Folklore of
    records: an improvement is an improvement of the recipe.

Question: what does each bring, recipe, network and norm?
Scientific variables: the network (`published`: five convolutions of stride 2, 0.22 million multiplications an image;
    `pooled`: 84,186 parameters, looks at each position before it shrinks, 6.9 million; `late`: the same parameters,
    pools one convolution later, 13.7 million); the recipe; in `small` the norm.
    published: batches of 256, momentum .85, three epochs at the rate and two at a quarter of it.
    cycle: batches of 128, Nesterov momentum .9, one cycle of the rate (up, then down to zero), weight decay 5e-4 on
        the weights, half of the images mirrored, zeros in the last layer at the start.
    All start from Kaiming's weights (He et al. 2015).
full: 60,000 images, five epochs, judged on the test images. The rate belongs to the recipe: .2 as published, .1 for
    cycle (the better of .05 and .1 for batches of 128, by single runs on 6,000 images). The four corners, published or
    cycle with `published` or `pooled`, five seeds, paired. And cycle with `late`; and, added when `small` liked it
    better, cycle at .3 with `published`.
small: the first 6,000 images, five epochs; nuisance variable, tuned for each cell: the rate, the same five for all;
    tuned on 5,000 of the last 10,000 training images, judged on the test images; five seeds, paired. The published
    network and cycle, with batch norm, without a norm, with group norm.

Verdicts, by 95 % t intervals of paired differences:
    "the recipe makes the record" holds if, on the published network, cycle - published is more than half of the whole
        way up to cycle with pooled; it fails if the interval of the recipe's part lies below half of the mean way; else
        it is open. (Written when the corner of pooled with the published recipe was not to be run. With it the rule
        turned out to ask the wrong question, since the parts do not add up; the page says so.)
    "the norm is worth points in this recipe": batch - none and batch - group above 0 (small, own rates); fails below 0.
    An entry of the record table counts if its runs beat the mark of .900 with p < .01 (one-sided t test).
Eight comparisons and eight entries; none is corrected for their number.

`cpu_seconds` is processor time of training alone, one thread. Four runs of `pooled` with cycle and three of `late` were
    made for the first edition, by the same steps in other code, and carried over (`made_by` in these rows; no processor
    seconds). Made again here, with other last bits: `pooled`, seed 0 .9189 in place of .9223; the five published ones
    .8956 on average in place of .8972.
Processor time: 2 s a small run, 17 s one of the published network on all images; a minute and a half one of `pooled`,
    three minutes one of `late`. The fifth rate, 1, was added when the first seed was best at .3. Planned and left out,
    for time: in `small` the corners at rates of their own, and cycle without its cycle. Other optimizers, and other
    norms with all images, were not planned.
"""

import time
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from course_lib.core import set_seed
from course_lib.datasets import DataLoaders, EpochSampler, MemoryLoader
from course_lib.init import init_weights
from course_lib.learner import BatchTransformCB, Learner, NaNGuardCB, random_flip
from course_lib.models import GeneralRelu, get_model, pooled_net
from course_lib.stacks import accuracy_loss, image_sets
from course_lib.sweep import Sweep, main
from course_lib.training import BatchSchedCB, RecorderCB

OUT = Path(__file__).resolve().parents[1] / 'nbs/results'
NORMS = dict(batch=nn.BatchNorm2d, none=None, group=partial(nn.GroupNorm, 4))
LRS = 0.01, 0.03, 0.1, 0.3, 1.0
EPOCHS = 5


@dataclass(frozen=True)
class Towards90:
    "A run."

    net: str  # 'published', 'pooled' or 'late'
    recipe: str  # 'published' or 'cycle'
    lr: float  # highest rate
    seed: int  # of weights, order and mirrored images
    norm: str = 'batch'  # key of `NORMS`
    n_train: int = 60_000  # images, the first ones


def model(c):
    "The network at its start."
    norm = NORMS[c.norm]
    if c.net == 'published':
        net = get_model(partial(GeneralRelu, leak=0.1, sub=0.4), norm=norm).apply(partial(init_weights, leaky=0.1))
        last = net[-2][0]
    else:
        net = pooled_net(norm, c.net == 'late').apply(init_weights)
        last = net[-1]
    if c.recipe != 'published':
        nn.init.zeros_(last.weight)  # at first no class is likelier than another
    return net.to(memory_format=torch.channels_last)


def sgd(params, lr, published):
    "The optimizer; with weight decay on weights of two and more dimensions, or as published."
    params = list(params)
    if published:
        return torch.optim.SGD(params, lr=lr, momentum=0.85)
    groups = [
        dict(params=[p for p in params if p.ndim > 1], weight_decay=5e-4),
        dict(params=[p for p in params if p.ndim < 2]),
    ]
    return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)


def fit(c, net, dls):
    "Losses of all steps."
    published = c.recipe == 'published'
    seen = RecorderCB(loss=lambda learn: learn.loss)
    cbs = [seen, NaNGuardCB()]
    if not published:
        steps = EPOCHS * len(dls.train)
        cycle = partial(OneCycleLR, max_lr=c.lr, total_steps=steps, cycle_momentum=False)
        cbs += [BatchSchedCB(cycle), BatchTransformCB(random_flip, on_valid=False)]
    learn = Learner(net, dls, lr=c.lr, cbs=cbs, opt_func=partial(sgd, published=published))
    losses = []
    for epochs, lr in ((3, c.lr), (2, c.lr / 4)) if published else ((EPOCHS, c.lr),):
        learn.fit(epochs, lr=lr, valid=False)
        losses += seen.values['loss']
    return losses


def both_ways(net, x):
    "Probabilities, averaged over an image and its mirror image."
    return (net(x).softmax(1) + net(x.flip(3)).softmax(1)).log()


def loaders(c):
    "Batches to train with; images for tuning, unless they are trained with; test images."
    sets = image_sets('fashion_mnist')
    train, tune = sets['train'], sets['tune']
    x, y = (torch.cat(pair)[: c.n_train] for pair in ((train.x, tune.x), (train.y, tune.y)))
    sampler = EpochSampler(len(y), 256 if c.recipe == 'published' else 128, seed=c.seed)
    dls = DataLoaders(MemoryLoader(x, y, sampler, train.mean, train.std), [])
    return dls, tune.part(slice(5_000)) if c.n_train <= len(train.y) else None, sets['test']


def train(configs):
    "A run."
    (c,) = configs
    set_seed(c.seed)
    dls, tune, test = loaders(c)
    net = model(c)
    start = time.process_time()
    try:
        losses = fit(c, net, dls)
    except FloatingPointError:
        return [dict(failure='diverged')]
    result = dict(cpu_seconds=round(time.process_time() - start, 1))
    accuracy, loss = accuracy_loss(net, test)
    result |= dict(accuracy=round(accuracy.item(), 4), loss=round(loss.item(), 4))
    if tune is None:
        result['mirrored'] = round(accuracy_loss(partial(both_ways, net), test)[0].item(), 4)
    tail = losses[-max(1, len(losses) // 10) :]
    result['train_loss'] = round(sum(tail) / len(tail), 4)
    if tune is not None:
        result['tune_accuracy'] = round(accuracy_loss(net, tune)[0].item(), 4)
    return [result]


def small():
    "Cell by cell."
    return [
        Towards90('published', 'cycle', lr, seed, norm, 6_000) for norm, seed, lr in product(NORMS, range(5), LRS)
    ]


def full():
    "Cell by cell."
    cells = ('published', 'published', 0.2), ('published', 'cycle', 0.1), ('pooled', 'cycle', 0.1)
    late = [Towards90('late', 'cycle', 0.1, seed) for seed in range(3)]
    steps = [Towards90(net, recipe, lr, seed) for (net, recipe, lr), seed in product(cells, range(5))] + late
    corners = ('published', 'cycle', 0.3), ('pooled', 'published', 0.2)
    return steps + [Towards90(net, recipe, lr, seed) for (net, recipe, lr), seed in product(corners, range(5))]


SMALL = Sweep(small(), OUT / 'towards90_small.jsonl', train)
FULL = Sweep(full(), OUT / 'towards90.jsonl', train)

if __name__ == '__main__':
    main(small=SMALL, full=FULL)
