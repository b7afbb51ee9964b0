"""One epoch of `DataLoaders.in_memory` against one of `DataLoaders.from_dd`, in one process, on the same network.

    COURSE_DATA=<folder> python tools/bench_loaders.py [--repeats 3] [--png] [--out nbs/results/loaders.jsonl]

An epoch is `fit(1)`: all training images, then all validation images. Both loaders give the same normalized batches
(checked below); the streaming one makes them with a transform per image, as torchvision's users do. `loading` is the
part of an epoch in which the network waits for a batch. `--png` also streams the images as PNG, which is how the Hugging
Face Hub stores them. Each row is the median of the repeats, which are interleaved so that a busy moment hits all loaders
alike. On a machine that others use too, set OMP_NUM_THREADS=1: two threads that wait for each other take many times as
long as one.
"""
import argparse, io, json, os, platform, time
from pathlib import Path
from statistics import median

import datasets, torch, torchvision
from PIL import Image
from torch.testing import assert_close
from torchvision.transforms import Compose, Normalize, ToTensor

from course_lib.core import def_device, set_seed
from course_lib.datasets import DataLoaders, get_dataset
from course_lib.learner import DeviceCB, MomentumLearner
from course_lib.models import get_model


def as_png(ds):
    "The same data set with every image re-encoded as PNG"
    def encode(im):
        f = io.BytesIO()
        im.save(f, 'PNG')
        return dict(bytes=f.getvalue(), path=None)
    return datasets.Dataset.from_dict(dict(image=[encode(im) for im in ds['image']], label=ds['label']), ds.features)

class Timed:
    "A loader that adds up the seconds in which the network waits for it"
    def __init__(self, dl): self.dl,self.seconds = dl,0.
    def __len__(self): return len(self.dl)
    def __iter__(self):
        it,end = iter(self.dl),object()
        while True:
            start = time.perf_counter()
            b = next(it, end)
            self.seconds += time.perf_counter()-start
            if b is end: return
            yield b

def epoch(dls):
    "Seconds of `fit(1)`, and how many of them were spent waiting for the loaders"
    set_seed(42)
    timed = DataLoaders(Timed(dls.train), Timed(dls.valid))
    learn = MomentumLearner(get_model().to(memory_format=torch.channels_last), timed, lr=.2, cbs=[DeviceCB()])
    start = time.perf_counter()
    learn.fit(1)
    if torch.cuda.is_available(): torch.cuda.synchronize()
    return dict(epoch=time.perf_counter()-start, loading=timed.train.seconds+timed.valid.seconds)

def main(bs=1024, repeats=3, png=False, out=None):
    dd = get_dataset()
    print(dd['train'].info.description, flush=True)
    start = time.perf_counter()
    memory = DataLoaders.in_memory(dd, bs)
    once = time.perf_counter()-start
    tfm = Compose([ToTensor(), Normalize(memory.mean, memory.std)])
    loaders = {'in_memory':memory, 'from_dd':DataLoaders.from_dd(dd, bs, tfm=tfm)}
    if png:
        files = datasets.DatasetDict({k:as_png(v) for k,v in dd.items()})
        loaders['from_dd, PNG'] = DataLoaders.from_dd(files, bs, tfm=tfm)
    first = {k:[o.cpu() for o in next(iter(dls.train))] for k,dls in loaders.items()}
    for b in first.values(): assert_close(b, first['in_memory'])

    busy = os.getloadavg()[0] if hasattr(os, 'getloadavg') else 0.
    if busy>os.cpu_count(): print(f'load {busy:.1f} on {os.cpu_count()} cores: this machine is busy, do not trust the seconds')
    epoch(DataLoaders(list(memory.valid)[:2], []))  # warm up
    rows = [dict(loader=k, repeat=i, **epoch(dls)) for i in range(repeats) for k,dls in loaders.items()]
    med = {k:{w:median(r[w] for r in rows if r['loader']==k) for w in ('epoch','loading')} for k in loaders}
    images = sum(len(o) for o in dd.values())
    print(f'one epoch, {images:,} images, batch size {bs}, {def_device}, {torch.get_num_threads()} threads; '
          f'decoding once took {once:.1f} s')
    print(f'{"":14}{"epoch":>10}{"loading":>10}{"share":>8}{"epoch / in_memory":>20}')
    for k,o in med.items():
        print(f"{k:14}{o['epoch']:8.2f} s{o['loading']:8.2f} s{o['loading']/o['epoch']:8.1%}{o['epoch']/med['in_memory']['epoch']:20.2f}")
    info = dict(bs=bs, images=images, device=def_device, threads=torch.get_num_threads(), load=busy, decode_once=once, torch=torch.__version__,
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
