"""LeNet-5 with sigmoids, with and without batch norm: python experiments/lenet.py [models|flags|gap|step]

Claim: Zhang et al. (d2l), section 8.5: with batch norm LeNet with sigmoids trains far better. One run each, one rate.

models. Scientific: PyTorch's batch norm or none. Nuisance: the rate, the same four for both. Fixed: Xavier's start,
    batches of 256, four epochs, plain SGD at a constant rate. Three seeds, judged on the test images, which choose the
    rate of `flags` as well: both are flattered a little.
flags. The rates that were best there, eight epochs, the second half falling to zero; this course's layer beside
    PyTorch's (`course`), which gives the same numbers. Seeds 2 to 4.

`gap` asks why seed 3 of the long runs falls to .644 in epoch 4 while its training is at .862. It trains the same runs
(seeds 2 to 6, the same numbers) and, on copies, measures after each epoch the accuracy on the 10,000 test images with
    running: the running statistics (momentum .1);
    batch: those of each test batch of 1,000;
    fresh: those of the first 5,000 training images, measured anew with the weights at rest;
    memory: the running statistics that momentum .01, .5 and 1 would have left behind (training is the same for all);
        at 1 they are those of the last batch, which were measured before the last step moved the weights;
    again: those of that same last batch, measured once more behind the step;
and after each of the last 20 steps of an epoch running and batch, on the first 1,000 test images, and the length of the
step, lr times the norm of the gradient.
Scientific: where the statistics come from. Fixed: everything else, the weights included.
Confirmed, "the fall is in the statistics, not in the weights": in epoch 4 of seed 3, fresh and batch are within .02 of
each other and .1 above running. Refuted, if they are as low as running.
Control, which memory? If it reaches too far back, .5 is nearer to fresh than .1, and .01 is further away. If single
batches throw it about, it is the other way round. If one step moved the weights away from under it (a pilot with seed 3
says so), no momentum helps, and again does. Control of the rate: it is constant for four epochs and then falls to zero,
so the gap should close by itself.

`gap` found that the step behind which seed 3 falls is the longest of all that it looked at, and that it was made by the
last batch of the epoch, which has 96 images and not 256. `step` asks whether that is the cause. It stops seed 3 before
this step and makes, from the same weights, the step itself and 20 others by each of
    96: 96 training images drawn at random;
    256: 256 of them;
    96_short: the draws of `96` at 96/256 of the rate: as small a batch, a shorter step.
Confirmed, "a small batch makes a long step, and that makes the gap": batch minus running is larger by 96 than by 256,
and by 96_short it is as small as by 256. Refuted, if 96 and 256 are alike (then it was that batch, not its size), or
96_short and 96 (then it is the statistics of few images, not the length of the step).
"""

import copy
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn, optim

from course_lib.core import set_seed
from course_lib.datasets import DataLoaders, get_dataset
from course_lib.learner import Callback, CancelFitException, Learner, MetricsCB
from course_lib.models import LeNet
from course_lib.norms import BatchNorm
from course_lib.norms.convert import norm_layers, recalibrate
from course_lib.norms.gap import accuracy_by_mode
from course_lib.sweep import Sweep, main
from course_lib.training import BatchSchedCB

OUT = Path(__file__).resolve().parents[1] / 'nbs/results'
NORMS = dict(none=(None, None), torch=(nn.BatchNorm2d, nn.BatchNorm1d), course=(BatchNorm, BatchNorm))
LRS = 0.1, 0.3, 1.0, 3.0
BEST = dict(torch=0.3, course=0.3, none=1.0)  # by seeds 0 and 1 of `models`


@dataclass(frozen=True)
class LeNetRun:
    "A run."

    norm: str  # key of `NORMS`
    lr: float  # at the start
    seed: int  # of weights and order
    epochs: int = 4
    falls: bool = False  # does the rate fall to zero in the second half?
    batch_size: int = 256  # images a step
    n_train: int = 60_000  # images, the first ones
    dataset: str = 'fashion_mnist'


def init(m):
    if isinstance(m, (nn.Conv2d, nn.Linear)):
        nn.init.xavier_uniform_(m.weight)


def share_of_rate(step, steps, falls):
    "All of it in the first half of the run, then, if it falls, straight down to zero."
    return min(1, 2 * (1 - step / steps)) if falls else 1


def images(c):
    "Training and test images."
    dd = get_dataset(c.dataset)
    dd['train'] = dd['train'].select(range(min(c.n_train, len(dd['train']))))
    return dd


def train(configs, look=None):
    "A run; `look` is a callback with more to tell."
    (c,) = configs
    set_seed(c.seed)
    metrics = MetricsCB(verbose=False, accuracy='MulticlassAccuracy')
    dls = DataLoaders.in_memory(images(c), c.batch_size, device='cpu', seed=c.seed, valid_batch_size=1000)
    model = LeNet(*NORMS[c.norm]).apply(init)
    share = partial(share_of_rate, steps=c.epochs * len(dls.train), falls=c.falls)
    cbs = [metrics, BatchSchedCB(partial(optim.lr_scheduler.LambdaLR, lr_lambda=share))]
    Learner(model, dls, lr=c.lr, cbs=cbs + [look] * (look is not None), opt_func=optim.SGD).fit(c.epochs)
    seen = {part: [o for o in metrics.history if o['train'] == part] for part in ('train', 'eval')}
    valid = [round(o['accuracy'], 4) for o in seen['eval']]
    layers = [] if c.norm == 'none' else norm_layers(model).values()
    learned = {k: [[round(v, 4) for v in getattr(m, k).tolist()] for m in layers] for k in ('weight', 'bias')}
    return [
        dict(
            accuracy=valid[-1] if valid else None,
            valid_accuracy=valid,
            valid_loss=[round(o['loss'], 4) for o in seen['eval']],
            train_accuracy=[round(o['accuracy'], 4) for o in seen['train']],
            **learned,
        )
    ]


def train_gap(configs):
    "A run of which `GapCB` keeps more."
    look = GapCB()
    (row,) = train(configs, look)
    return [row | dict(by_epoch=look.rows)]


def train_step(configs):
    "The first half of a run, and what its last step could have been."
    look = StepCB()
    train(configs, look)
    return [look.row]


class GapCB(Callback):
    "Accuracies of copies of the model that differ in nothing but their running statistics."

    MEMORIES = (0.01, 0.5, 1)

    def before_fit(self, learn):
        self.rows, self.steps = [], []
        self.norms = list(norm_layers(learn.model).values())
        self.kept = {
            m: [(torch.zeros_like(n.running_mean), torch.ones_like(n.running_var)) for n in self.norms]
            for m in self.MEMORIES
        }
        self.hooks = [n.register_forward_pre_hook(self.remembering(i)) for i, n in enumerate(self.norms)]
        batches = list(learn.dls.valid)
        self.valid, self.first = batches, batches[:1]
        train = DataLoaders.in_memory(get_dataset('fashion_mnist'), 1000, device='cpu', seed=0).train
        self.images = [xb for _, (xb, _) in zip(range(5), train)]

    def remembering(self, i):
        kept = {momentum: pairs[i] for momentum, pairs in self.kept.items()}

        def remember(norm, args):
            if not norm.training or not torch.is_grad_enabled():
                return  # evaluation, and all copies
            x = args[0].detach()
            var, mean = torch.var_mean(x, [d for d in range(x.ndim) if d != 1])
            for momentum, (old_mean, old_var) in kept.items():
                old_mean.lerp_(mean, momentum)
                old_var.lerp_(var, momentum)

        return remember

    def after_backward(self, learn):
        norms = [p.grad.norm() for p in learn.model.parameters()]
        self.length = learn.opt.param_groups[0]['lr'] * torch.stack(norms).norm().item()

    def after_batch(self, learn):
        if not learn.training or learn.iter < len(learn.dl) - 20:
            return
        row = accuracy_by_mode(learn.model, self.first) | dict(length=self.length)
        self.steps.append({k: round(v, 4) for k, v in row.items()})

    def after_epoch(self, learn):
        if not learn.training:
            return
        row = accuracy_by_mode(learn.model, self.valid)
        fresh = copy.deepcopy(learn.model)
        recalibrate(fresh, self.images, progress=False)
        row['fresh'] = self.accuracy(fresh)
        again = copy.deepcopy(learn.model).train()
        for norm in norm_layers(again).values():
            norm.momentum = 1.0
        with torch.no_grad():
            again(learn.batch[0])
        row['again'] = self.accuracy(again)
        for momentum, kept in self.kept.items():
            other = copy.deepcopy(learn.model)
            for norm, (mean, var) in zip(norm_layers(other).values(), kept):
                norm.running_mean.copy_(mean)
                norm.running_var.copy_(var)
            row[f'memory_{momentum}'] = self.accuracy(other)
        self.rows.append({k: round(v, 4) for k, v in row.items()} | dict(last_steps=self.steps))
        self.steps = []

    @torch.no_grad()
    def accuracy(self, model):
        model.eval()
        return torch.cat([model(xb).argmax(1) == yb for xb, yb in self.valid]).float().mean().item()

    def after_fit(self, learn):
        for hook in self.hooks:
            hook.remove()


def one_step(model, xb, yb, lr, valid):
    "Accuracies behind one step of a copy, by mode, and the step's length."
    other = copy.deepcopy(model).train()
    F.cross_entropy(other(xb), yb).backward()
    length = 0.0
    with torch.no_grad():
        for p in other.parameters():
            length += (lr * p.grad).square().sum().item()
            p -= lr * p.grad
    row = accuracy_by_mode(other, valid) | dict(length=length**0.5)
    return {k: round(v, 4) for k, v in row.items()}


def step_variants(model, batch, lr, dd, valid, draws=20):
    "The step that was made, and others from the same weights."
    data = DataLoaders.in_memory(dd, 96, device='cpu', seed=0).train
    by_size = {96: [], 256: [], '96_short': []}
    for i in range(draws):
        rows = torch.randperm(len(data.y), generator=torch.Generator().manual_seed(i))[:256]
        xb = (data.x[rows].float() / 255 - data.mean) / data.std
        yb = data.y[rows]
        by_size[256].append(one_step(model, xb, yb, lr, valid))
        by_size[96].append(one_step(model, xb[:96], yb[:96], lr, valid))
        by_size['96_short'].append(one_step(model, xb[:96], yb[:96], lr * 96 / 256, valid))
    return dict(actual=one_step(model, *batch, lr, valid), size=len(batch[1]), draws=by_size)


class StepCB(Callback):
    "Stops before the last step of the fourth epoch and looks at what it could be."

    def before_batch(self, learn):
        if learn.training and learn.epoch == 3 and learn.iter == len(learn.dl) - 1:
            lr = learn.opt.param_groups[0]['lr']
            valid = list(learn.dls.valid)[:1]
            self.row = step_variants(learn.model, learn.batch, lr, get_dataset('fashion_mnist'), valid)
            raise CancelFitException


def long_run(norm, seed):
    return LeNetRun(norm, BEST[norm], seed, epochs=8, falls=True)


MODELS = Sweep(
    [LeNetRun(norm, lr, seed) for seed, lr, norm in product(range(3), LRS, ('none', 'torch'))],
    OUT / 'lenet_models.jsonl',
    train,
)
FLAGS = Sweep(
    [long_run(norm, seed) for norm, seed in product(('torch', 'course', 'none'), range(2, 5))],
    OUT / 'lenet_flags.jsonl',
    train,
)
GAP = Sweep([long_run('torch', seed) for seed in range(2, 7)], OUT / 'lenet_gap.jsonl', train_gap)
STEP = Sweep([long_run('torch', 3)], OUT / 'lenet_step.jsonl', train_step)

if __name__ == '__main__':
    main(models=MODELS, flags=FLAGS, gap=GAP, step=STEP)
