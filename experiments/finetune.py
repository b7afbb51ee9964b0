"""Fine-tuning at batch size 2: what to do with the batch norms of a trained network.

    COURSE_DATA=<folder with fashion-mnist/> python experiments/finetune.py

A small ResNet learns five classes of Fashion-MNIST at batch size 128 and is then fine-tuned on 1,000 images of the five
others. Learning rates are chosen on held-out training images with two seeds; five other seeds are measured on the test
images. Appends one row a run to nbs/results/fine_tuning.jsonl and skips the runs that are already there.
"""
import copy, json, time
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import nn, optim

from course_lib.core import set_seed
from course_lib.datasets import DataLoaders, EpochSampler, MemoryLoader, get_dataset, pixel_stats, pixels
from course_lib.learner import MomentumLearner, NaNGuardCB
from course_lib.models import ResBlock, conv
from course_lib.norms.convert import convert_norms, freeze_norms, recalibrate
from course_lib.training import BatchSchedCB

OUT = Path(__file__).resolve().parents[1]/'nbs/results/fine_tuning.jsonl'
OLD, NEW = (1, 5, 7, 8, 9), (0, 2, 3, 4, 6)   # trousers, shoes and bags; then the five kinds of tops
LRS, TUNE, FINAL = (.001, .003, .01, .03, .1), (10, 11), (0, 1, 2, 3, 4)
PRE = dict(lr=.1, bs=128, epochs=1)
FINE = dict(n=1_000, epochs=2, momentum=.9)
# what is trained -> its batch size; 'batch' is measured twice, as it is and recalibrated
BASES = dict(batch=2, frozen=2, recalibrated_frozen=2, group=2, running=2, batch32=32)


def resnet(n_out):
    return nn.Sequential(conv(1, 8, norm=nn.BatchNorm2d), *[ResBlock(c, 2*c, 2, norm=nn.BatchNorm2d) for c in (8, 16, 32)],
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, n_out))


class Data:
    "Images and labels of some classes, labels counted from 0; normalized as the old classes ask for"
    def __init__(self, dd):
        self.x = {k:pixels(dd[k]) for k in ('train', 'test')}
        self.y = {k:torch.tensor(dd[k]['label']) for k in ('train', 'test')}
        self.stats = pixel_stats(self.x['train'][self.rows('train', OLD)])
    def rows(self, split, classes): return torch.isin(self.y[split], torch.tensor(classes)).nonzero()[:, 0]
    def loader(self, split, classes, bs, shuffle, seed, rows=None):
        rows = self.rows(split, classes) if rows is None else rows
        y = torch.searchsorted(torch.tensor(classes), self.y[split][rows])
        return MemoryLoader(self.x[split][rows], y, EpochSampler(len(rows), bs, shuffle, seed), *self.stats)


def fit(model, loader, lr, epochs, momentum=.9):
    "Train with a rate that falls straight to zero; False if the loss became NaN or infinite"
    sched = partial(optim.lr_scheduler.LinearLR, start_factor=1., end_factor=0., total_iters=epochs*len(loader))
    learn = MomentumLearner(model, DataLoaders(loader, []), lr=lr, momentum=momentum, cbs=[BatchSchedCB(sched), NaNGuardCB()])
    try: learn.fit(epochs, valid=False)
    except FloatingPointError: return False
    return True


@torch.no_grad()
def accuracy(model, loader):
    model.eval()
    right = sum((model(x).argmax(1)==y).sum().item() for x, y in loader)
    return round(right/len(loader.y), 4)


def pretrain(data, seed):
    set_seed(seed)
    model = resnet(len(OLD))
    fit(model, data.loader('train', OLD, PRE['bs'], True, seed), PRE['lr'], PRE['epochs'])
    return model, accuracy(model, data.loader('test', OLD, 500, False, seed))


def fine_tune(data, model, base, lr, seed, final):
    "Accuracy by method: one, or two for 'batch'"
    new = data.rows('train', NEW)
    order = new[torch.randperm(len(new), generator=torch.Generator().manual_seed(seed))]
    rows, held_out = order[:FINE['n']], order[FINE['n']:FINE['n']+2_000]
    train = data.loader('train', NEW, BASES[base], True, seed, rows)
    measure = data.loader('test', NEW, 500, False, seed) if final else data.loader('train', NEW, 500, False, seed, held_out)
    population = [b[0] for b in data.loader('train', NEW, 250, False, seed, rows)]
    set_seed(seed)
    model = copy.deepcopy(model)
    model[-1] = nn.Linear(64, len(NEW))
    if base in ('group', 'running'): model = convert_norms(model, base)
    if base=='recalibrated_frozen': recalibrate(model, population, progress=False)
    if base.endswith('frozen'): freeze_norms(model)
    with torch.backends.mkldnn.flags(enabled=BASES[base]>2):   # oneDNN costs more than it saves at batch size 2
        ok = fit(model, train, lr, FINE['epochs'], FINE['momentum'])
    if not ok: return {base: None}
    res = {base: accuracy(model, measure)}
    if base=='batch':
        recalibrate(model, population, progress=False)
        res['recalibrated'] = accuracy(model, measure)
    return res


def best_rates(rows):
    "Method -> the learning rate with the best mean accuracy over the tuning seeds; a failed run counts as 0"
    acc = {}
    for r in rows:
        if r['part']=='tune':
            for m, a in r['accuracy'].items(): acc.setdefault(m, {}).setdefault(r['lr'], []).append(a or 0.)
    return {m:max(lrs, key=lambda lr: sum(lrs[lr])/len(lrs[lr])) for m, lrs in acc.items()}


def main():
    torch.set_num_threads(1)
    data = Data(get_dataset('fashion_mnist'))
    rows = [json.loads(o) for o in OUT.read_text().splitlines()] if OUT.exists() else []
    done = {(r['part'], r['base'], r['lr'], r['seed']) for r in rows}
    def run(part, seed, todo):
        todo = [(b, lr) for b, lr in todo if (part, b, lr, seed) not in done]
        if not todo: return
        model, old = pretrain(data, seed)
        for base, lr in todo:
            t = time.time()
            acc = fine_tune(data, model, base, lr, seed, part=='final')
            row = dict(part=part, base=base, lr=lr, seed=seed, bs=BASES[base], accuracy=acc, old_accuracy=old, **FINE,
                       seconds=round(time.time()-t, 1), torch=torch.__version__)
            rows.append(row)
            with OUT.open('a') as f: f.write(json.dumps(row)+'\n')
            print(part, base, lr, seed, acc, row['seconds'], flush=True)
    for seed in TUNE: run('tune', seed, product(BASES, LRS))
    best = best_rates(rows)
    todo = dict.fromkeys((b, best[b]) for b in BASES) | dict.fromkeys([('batch', best['recalibrated'])])
    for seed in FINAL: run('final', seed, todo)


if __name__ == '__main__': main()
