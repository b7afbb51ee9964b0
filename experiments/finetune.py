"""Fine-tuning at batch size 2, new data: python experiments/finetune.py [tune|final]

Claims. Practice in detection (torchvision's FrozenBatchNorm2d):
    with one or two images a device, freeze the batch norms of a trained network. Wu and He 2018, and many who ask:
    replace them by group norm. First edition of this course, five seeds: converting to group norm costs .020, all else
    is level, "who wants the last hundredth may try running batch norm" (fresh seeds of a reviewer: -.001 +- .012).

Question: a network that has learned with batch norm sees new data, two images at a time. What to do with its norms?
Scientific variables: what is done (`METHODS`); what is new in the data: the classes, or the classes and the camera
    (every pixel, normalized, times 0.4 plus 1: less contrast, more light).
Nuisance variable, tuned for each cell: the learning rate, the same six for all.
Fixed: a small residual network (76,349 parameters, last maps 2x2) that has seen 25,000 images of five classes of
    Fashion-MNIST (trousers, shoes, bags) once, in batches of 128, rate .1 falling to zero; then a new last layer and
    1,000 images of the five others (tops), seen twice, SGD with momentum .9, a rate that falls straight to zero.
Tuned on 2,000 of the last 10,000 training images with three seeds (`tune`, nbs/results/finetune_tune.jsonl), judged on
    the 5,000 test images of the new classes with ten other seeds, five where the camera is new (`final`,
    nbs/results/finetune.jsonl). A seed gives one trained network for all methods, and one order of images, so runs are
    paired.

What a row holds beside the engine's: `recalibrated`, `tune_recalibrated`: the same network with statistics measured
    anew on its 1,000 images after training (batch norm that is left as it is); `old`: accuracy
    of the trained network on the test images of the old classes; `moved`: the same with its norms replaced or frozen
    and its old last layer, before anything is trained.
Controls. `batch32`: the same images in batches of 32: what small batches cost. `group_before`: a network that was
    trained with group norm from the start: is it group norm that is worse, or converting? `camera`: the case where old
    statistics must be wrong, since the input itself is: does the measurement see it if frozen statistics do harm?

Verdicts, each on a mean difference with its 95 % t interval: a claim "a is ahead of b" holds if the interval lies above
    0, fails if it lies below 0 or within +-.01, else it is open.
    frozen - batch: freezing helps (new classes).
    group - batch: converting to group norm helps (new classes).
    group_before - group: converting is what costs.
    running - batch: the last hundredth is in running batch norm.
    recalibrated - batch: the running statistics are to be measured anew after training.
    fresh_frozen - frozen: before they are frozen, statistics are to be measured anew; new classes, and new camera.
    frozen - batch at new camera: freezing helps there too.
Eight comparisons; none is corrected for their number.

Stacks of eighteen and ten; about 2 s of processor time a run: 180 runs to tune, 85 to judge.
    Left out: larger networks, more images, layer norm, unfreezing in steps, a rate for each layer.
"""

import copy
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from course_lib.core import set_seed
from course_lib.models import ResBlock, conv
from course_lib.norms.convert import convert_norms, freeze_norms, recalibrate
from course_lib.rows import read_rows
from course_lib.small_batch import SCHEDULES
from course_lib.stacks import Images, accuracy_loss, batch_order, fit_stack, image_sets, judged, take_batch
from course_lib.statistics import group_rows, tuned
from course_lib.sweep import Sweep, main, same_cell

OUT = Path(__file__).resolve().parents[1] / 'nbs/results'
OLD, NEW = (1, 5, 7, 8, 9), (0, 2, 3, 4, 6)
METHODS = 'batch', 'frozen', 'fresh_frozen', 'group', 'running', 'group_before', 'batch32'
CELLS = [(m, 'classes') for m in METHODS] + [(m, 'camera') for m in ('batch', 'frozen', 'fresh_frozen')]
LRS = 0.001, 0.003, 0.01, 0.03, 0.1, 0.3
TUNE_SEEDS, SEEDS = (100, 101, 102), tuple(range(10))


@dataclass(frozen=True)
class FineTune:
    "A run."

    method: str  # of `METHODS`
    new: str  # 'classes' or 'camera' (and classes)
    lr: float  # at the start
    seed: int  # of the trained network, its new last layer and the images
    n_train: int = 1_000  # images of the new classes
    epochs: int = 2  # times that each is seen
    n_old: int = 25_000  # images of the old classes that the network was trained with, each seen once
    n_tune: int = 2_000  # held-out images for tuning
    momentum: float = 0.9  # of SGD


def task(images, classes, n=None):
    "The images of five classes, labels counted from 0; at most `n`, the first ones."
    rows = torch.isin(images.y, torch.tensor(classes)).nonzero()[:n, 0]
    return Images(images.x[rows], torch.searchsorted(torch.tensor(classes), images.y[rows]), images.mean, images.std)


def other_camera(images):
    "Normalized pixels times 0.4 plus 1."
    return replace(images, mean=images.mean - images.std / 0.4, std=images.std / 0.4)


def resnet(kind):
    "A convolution and three residual blocks: maps of 14, 7, 4 and 2 pixels."
    blocks = [ResBlock(c, 2 * c, 2, norm=nn.BatchNorm2d) for c in (8, 16, 32)]
    first = conv(1, 8, norm=nn.BatchNorm2d)
    net = nn.Sequential(first, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, len(OLD)))
    return convert_norms(net, 'group') if kind == 'group' else net


@lru_cache(64)
def trained(kind, seed, n_old):
    "A network that knows the old classes, and its accuracy on their test images."
    sets = image_sets('fashion_mnist')
    set_seed(seed)
    old = task(sets['train'], OLD, n_old)
    order = batch_order(len(old.y), len(old.y), 128, seed)
    trainer, _, _ = fit_stack([resnet(kind)], old, order[None], [0.1], SCHEDULES['linear'], momentum=0.9)
    (net,) = trainer.models()
    return net, accuracy_loss(net.eval(), task(sets['test'], OLD))[0].item()


def new_images(c):
    "For each part: images of the new classes, as the run sees them; its own 1,000, drawn by its seed."
    sets = {name: task(images, NEW) for name, images in image_sets('fashion_mnist').items()}
    if c.new == 'camera':
        sets = {name: other_camera(images) for name, images in sets.items()}
    drawn = torch.randperm(len(sets['train'].y), generator=torch.Generator().manual_seed(c.seed))[: c.n_train]
    return sets | dict(train=sets['train'].part(drawn), tune=sets['tune'].part(slice(c.n_tune)))


def measured(net, images):
    "`net` with running statistics that are those of `images`."
    recalibrate(net, [take_batch(images, rows) for rows in torch.arange(len(images.y)).split(250)], progress=False)
    return net


def prepared(net, method, images):
    "A copy of a trained network with its norms as the method wants them."
    net = copy.deepcopy(net).train()
    if method in ('group', 'running'):
        net = convert_norms(net, method)
    if method == 'fresh_frozen':
        measured(net, images)
    if method.endswith('frozen'):
        freeze_norms(net)
    return net


def train(configs):
    "A stack."
    c = configs[0]
    size = 32 if c.method == 'batch32' else 2
    nets, before, parts = [], [], []
    for o in configs:
        net, old = trained('group' if o.method == 'group_before' else 'batch', o.seed, o.n_old)
        parts.append(new_images(o))
        net = prepared(net, o.method, parts[-1]['train'])
        moved = accuracy_loss(copy.deepcopy(net).eval(), task(image_sets('fashion_mnist')['test'], OLD))[0].item()
        before.append(dict(old=round(old, 4), moved=round(moved, 4)))
        set_seed(o.seed)
        net[-1] = nn.Linear(64, len(NEW))
        nets.append(net)
    own = [p['train'] for p in parts]
    n = len(own[0].y)
    pool = replace(own[0], x=torch.cat([o.x for o in own]), y=torch.cat([o.y for o in own]))
    orders = [batch_order(n, n * c.epochs, size, o.seed) + i * n for i, o in enumerate(configs)]
    trainer, losses, _ = fit_stack(
        nets, pool, torch.stack(orders), [o.lr for o in configs], SCHEDULES['linear'], momentum=c.momentum
    )
    results = judged(trainer, losses, parts[0])
    if c.method in ('batch', 'batch32'):
        for net, images, result in zip(trainer.models(), own, results):
            again = measured(net, images).eval()
            for name, part in (('recalibrated', 'test'), ('tune_recalibrated', 'tune')):
                result[name] = round(accuracy_loss(again, parts[0][part])[0].item(), 4)
    return [result | o for result, o in zip(results, before)]


TUNE = Sweep(
    [FineTune(method, new, lr, seed) for method, new in CELLS for seed in TUNE_SEEDS for lr in LRS],
    OUT / 'finetune_tune.jsonl',
    train,
    same_cell,
    stack=18,
)


def final():
    "Each method at the rate that was best on the held-out images."
    if TUNE.pending():
        raise SystemExit('finetune: tune first')
    cells = group_rows(read_rows(TUNE.path), 'method', 'new')
    best = {cell: tuned(rows, by='tune_accuracy')['lr'] for cell, rows in cells.items()}
    configs = [
        FineTune(method, new, best[method, new], seed)
        for method, new in CELLS
        for seed in SEEDS[: 5 if new == 'camera' else None]
    ]
    return Sweep(configs, OUT / 'finetune.jsonl', train, same_cell, stack=10)


if __name__ == '__main__':
    main(tune=TUNE, final=final)
