"""One epoch of `DataLoaders.in_memory` against one of `DataLoaders.from_dd`, in one process, on the same network.

    COURSE_DATA=<folder> python tests/bench_loaders.py [--repeats 3] [--png] [--out nbs/results/loaders.jsonl]

An epoch is `fit(1)`: all training images, then all validation images. Both loaders give the same normalized batches
(checked below); the streaming one makes them with a transform per image, as torchvision's users do. `loading` is the
same epoch without the network. `--png` also streams the images as PNG, which is how the Hugging Face Hub stores them.
Each row is the median of the repeats, which are interleaved so that a busy moment hits all loaders alike.
"""
import argparse, io, json, platform, time
from pathlib import Path
from statistics import median

import datasets, torch, torchvision
from PIL import Image
from torch.testing import assert_close
from torchvision.transforms import Compose, Normalize, ToTensor

from course_lib.core import def_device, set_seed
from course_lib.datasets import DataLoaders, get_dataset, pixels
from course_lib.learner import DeviceCB, MomentumLearner
from course_lib.models import get_model


def as_png(ds):
    "The same data set with every image re-encoded as PNG"
    def encode(im):
        f = io.BytesIO()
        im.save(f, 'PNG')
        return dict(bytes=f.getvalue(), path=None)
    return datasets.Dataset.from_dict(dict(image=[encode(im) for im in ds['image']], label=ds['label']), ds.features)

def seconds(f):
    if torch.cuda.is_available(): torch.cuda.synchronize()
    start = time.perf_counter()
    f()
    if torch.cuda.is_available(): torch.cuda.synchronize()
    return time.perf_counter()-start

def load(dls):
    for dl in (dls.train, dls.valid):
        for b in dl: pass

def train(dls):
    set_seed(42)
    learn = MomentumLearner(get_model(), dls, lr=.2, cbs=[DeviceCB()])
    return lambda: learn.fit(1)

def main(bs=1024, repeats=3, png=False, out=None):
    dd = get_dataset()
    print(dd['train'].info.description)
    start = time.perf_counter()
    memory = DataLoaders.in_memory(dd, bs)
    once = time.perf_counter()-start
    tfm = Compose([ToTensor(), Normalize(memory.mean, memory.std)])
    loaders = {'in_memory':memory, 'from_dd':DataLoaders.from_dd(dd, bs, tfm=tfm)}
    if png:
        dd = datasets.DatasetDict({k:as_png(v) for k,v in dd.items()})
        loaders['from_dd, PNG'] = DataLoaders.from_dd(dd, bs, tfm=tfm)
    first = {k:next(iter(dls.train)) for k,dls in loaders.items()}
    for k,b in first.items(): assert_close([o.cpu() for o in b], [o.cpu() for o in first['in_memory']], msg=f'{k}: other batches')

    train(DataLoaders(list(memory.valid)[:2], []))()  # warm up
    rows = [dict(loader=k, repeat=i, epoch=seconds(train(dls)), loading=seconds(lambda: load(dls)))
            for i in range(repeats) for k,dls in loaders.items()]
    med = {k:{w:median(r[w] for r in rows if r['loader']==k) for w in ('epoch','loading')} for k in loaders}
    images = sum(len(o) for o in dd.values())
    print(f'one epoch, {images:,} images, batch size {bs}, {def_device}, {torch.get_num_threads()} threads; '
          f'decoding once took {once:.1f} s')
    print(f'{"":14}{"epoch":>10}{"loading":>10}{"share":>8}{"epoch / in_memory":>20}')
    for k,o in med.items():
        print(f"{k:14}{o['epoch']:8.2f} s{o['loading']:8.2f} s{o['loading']/o['epoch']:8.1%}{o['epoch']/med['in_memory']['epoch']:20.2f}")
    info = dict(bs=bs, images=images, device=def_device, threads=torch.get_num_threads(), decode_once=once, torch=torch.__version__,
                torchvision=torchvision.__version__, datasets=datasets.__version__, machine=platform.machine())
    if out: Path(out).write_text(''.join(json.dumps({**r, **info})+'\n' for r in rows))
    return med

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--bs', type=int, default=1024, help='batch size')
    p.add_argument('--repeats', type=int, default=3, help='epochs of each loader')
    p.add_argument('--png', action='store_true', help='also stream PNG images')
    p.add_argument('--out', help='file for the raw rows (JSON lines)')
    main(**vars(p.parse_args()))
