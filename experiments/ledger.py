"""The ledger of repairs, one row a lesson: python experiments/ledger.py

Claim of the course, to be tested: each repair of the first lessons lets the same network learn at rates at which it
    did not, or learn better at the best one. Leads: fast.ai 2022, lesson "Initializing", single runs at rate .2 or
    .4: Kaiming .845, with normalized input .843, GeneralRelu .866, LSUV .860, layer norm .868, batch norm .868.

Scientific variable: the repair (`START`). PyTorch's start and Kaiming's on pixels in [0, 1] and on normalized ones;
    a shifted leaky ReLU; LSUV in place of Kaiming; then Kaiming on normalized pixels with each norm.
Nuisance variable, tuned for each repair: the learning rate, the same six for all, a factor 2 apart. No repair is
    judged at another's rate; what happens at each rate is shown as well.
Fixed: the course's network of five convolutions, Fashion-MNIST, 50,000 images seen three times in batches of 1,024,
    SGD with momentum .85, a constant rate. Seeds 0 to 4 give weights and order, so runs are paired by seed.
Tuned on the last 10,000 training images, judged on the test images. A run counts as failed if its loss ended NaN
    or its accuracy is below .2.

Confirmed, "a good start widens the range of usable rates": the largest rate at which all five seeds learn is larger
    with Kaiming than with PyTorch's start, on the same input. Refuted, if it is the same or smaller.
Confirmed, "a repair helps at the best rate": the 95 % t interval of the paired difference to the row above it lies
    above 0. Else open, or refuted if it lies below 0. Ten such comparisons are made; one of them may be by chance.
Control: normalized input alone, without Kaiming, since both change the scale of the first layer.

About 9 s a run on one core: 330 runs in about 50 minutes. Left out: other networks, schedules, weight decay, more
    epochs.
"""

from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

from torch import nn

from course_lib.core import set_seed
from course_lib.init import init_weights
from course_lib.lsuv import lsuv_init
from course_lib.models import GeneralRelu, get_model
from course_lib.norms import RunningBatchNorm
from course_lib.stacks import batch_order, fit_stack, image_sets, judged, take_batch
from course_lib.sweep import Sweep, main

OUT = Path(__file__).resolve().parents[1] / 'nbs/results'
LRS = 0.2, 0.05, 0.4, 0.1, 0.8, 1.6
NORMS = dict(
    layer=partial(nn.GroupNorm, 1),
    batch=nn.BatchNorm2d,
    instance=partial(nn.InstanceNorm2d, affine=True),
    group=partial(nn.GroupNorm, 4),
    running=RunningBatchNorm,
)
RAW = 'default', 'kaiming'  # on pixels in [0, 1]
STARTS = 'default', 'default_input', 'kaiming', 'kaiming_input', 'general_relu', 'lsuv', *NORMS


@dataclass(frozen=True)
class Ledger:
    "A run."

    start: str  # of `STARTS`
    lr: float  # learning rate, constant
    seed: int  # of weights and order
    epochs: int = 3  # times that each image is seen
    batch_size: int = 1024  # images a step
    momentum: float = 0.85  # of SGD
    n_train: int = 50_000  # images
    dataset: str = 'fashion_mnist'


def pixels(c):
    "The data set in its parts; with the mean and scale that the run sees."
    sets = image_sets(c.dataset)
    if c.start in RAW:
        sets = {name: replace(images, mean=0.0, std=1.0) for name, images in sets.items()}
    return sets


def model(c, images, order):
    "The network at its start; `order` gives LSUV its batch."
    set_seed(c.seed)
    if c.start == 'general_relu':
        return get_model(partial(GeneralRelu, leak=0.1, sub=0.4)).apply(partial(init_weights, leaky=0.1))
    net = get_model(norm=NORMS.get(c.start))
    if c.start == 'lsuv':
        lsuv_init(net, take_batch(images, order[0])[0])
    elif not c.start.startswith('default'):
        net.apply(init_weights)
    return net


def train(configs):
    "A run."
    (c,) = configs
    sets = pixels(c)
    images = sets['train'].part(slice(c.n_train))
    order = batch_order(len(images.y), len(images.y) * c.epochs, c.batch_size, c.seed)
    net = model(c, images, order)
    trainer, losses, _ = fit_stack([net], images, order[None], [c.lr], momentum=c.momentum)
    (row,) = judged(trainer, losses, sets)
    return [row | dict(first_loss=round(losses[0, 0].item(), 4))]


def grid():
    "Seed by seed, repair by repair."
    return [Ledger(start, lr, seed) for seed, start, lr in product(range(5), STARTS, LRS)]


SWEEP = Sweep(grid(), OUT / 'ledger.jsonl', train)

if __name__ == '__main__':
    main(ledger=SWEEP)
