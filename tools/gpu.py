"""What a GPU changes, checked by one command: python tools/gpu.py [--device cpu] [--wheels folder] [--out gpu.json]

Each section has a limit of its own; together they take less than eight minutes. After each one its rows are saved.
What cannot run here is skipped and says why. What fails, or takes too long, makes the exit status 1, and the others go
on. No network is needed: the data are the shipped sample, and pure-Python packages that are not installed may lie as
wheels in a folder. With `--device cpu` everything is small and shows only that the command works.
"""

import argparse
import copy
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).resolve().parents[1]
LESSONS = ('01_start', '03_init', '06_layernorm', '07_batchnorm')
MODES = {  # how a layer is run: dtype of autocast, memory format, the largest difference that rounding may make
    'float32': (None, 'contiguous', 1e-4),
    'bfloat16 autocast': ('bfloat16', 'contiguous', 2e-2),
    'float16 autocast': ('float16', 'contiguous', 5e-3),
    'channels_last': (None, 'channels_last', 1e-4),
    'compiled': (None, 'contiguous', 1e-4),
    'reduce-overhead': (None, 'contiguous', 1e-4),
}


class Skip(Exception):
    "A section cannot run here; the message says why."


# ---- sections: each yields rows, dictionaries with `what`, what was measured, and `ok` where it can be wrong
def some_steps(layer, xs, g, dtype):
    "Outputs, gradients and buffers of a step of gradient descent for each of `xs`"
    import torch

    params, seen = list(layer.parameters()), []
    for x in xs:
        x = x.clone().requires_grad_()
        autocast = torch.autocast(x.device.type, getattr(torch, dtype or 'bfloat16'), enabled=dtype is not None)
        with autocast:
            y = layer(x)
        grads = torch.autograd.grad(y, [x, *params], g.to(y.dtype))
        with torch.no_grad():
            for p, d in zip(params, grads[1:]):
                p.sub_(1e-3 * d)
        seen += [o.detach().clone() for o in (y, *grads, *layer.buffers())]
    return seen


def difference(ours, theirs):
    "The largest difference between two lists of tensors, each in units of the largest value there; NaN if there is one"
    import torch

    worst = []
    for a, b in zip(ours, theirs, strict=True):
        a, b = a.cpu().double(), b.cpu().double()
        worst.append((a - b).abs().max() / b.abs().max().clamp(min=1e-3))
    return torch.stack(worst).max().item()


def equal_layers(device):
    "Our layers against PyTorch's; RunningBatchNorm, which has no counterpart, against itself in float64 on the CPU"
    import torch
    from course_lib.bench import NORM_PAIRS, compiled, norm_pair
    from course_lib.core import can_compile

    shape = (16, 32, 14, 14) if device == 'cuda' else (4, 8, 5, 5)
    for mode, (dtype, fmt, most) in MODES.items():
        if mode == 'reduce-overhead' and device == 'cpu':
            yield dict(what=mode, skipped='CUDA graphs need a GPU')
            continue
        if mode == 'compiled' and device == 'cpu' and not can_compile():
            yield dict(what=mode, skipped='there is no C++ compiler')
            continue
        for name in ['batch'] if mode == 'compiled' and device == 'cpu' else NORM_PAIRS:
            torch._dynamo.reset()
            ours, theirs, x, g = norm_pair(name, shape, fmt, device)
            half = x.detach().to(getattr(torch, dtype)) if dtype else x.detach()
            xs, place = [half, 2 * half + 1, half.flip(0), half / 2, half - 1], {}
            if name == 'running':
                theirs, place = copy.deepcopy(ours).cpu().double(), dict(device='cpu', dtype=torch.float64)
            if mode == 'compiled':
                ours = torch.compile(ours, fullgraph=True, dynamic=False)
            if mode == 'reduce-overhead':
                ours = compiled(ours, device)
            want = some_steps(theirs, [o.to(**place) for o in xs], g.to(**place), None if place else dtype)
            diff = difference(some_steps(ours, xs, g, dtype), want)
            yield dict(what=f'{name}, {mode}', value=diff, unit=f'at most {most:g}', ok=diff <= most)


def count_waits(f, device):
    "How often Python waits for the GPU during a call of `f`, as torch's debug mode reports it"
    import torch

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        if device == 'cuda':
            torch.cuda.set_sync_debug_mode('warn')
        try:
            f()
        finally:
            if device == 'cuda':
                torch.cuda.set_sync_debug_mode('default')
    return sum('synchroniz' in str(o.message) for o in seen)


def learner_waits(device):
    "Does the Learner wait for the GPU more often in an epoch of more batches?"
    import torch
    from course_lib.activations import ActivationStats
    from course_lib.datasets import DataLoaders, get_dataset
    from course_lib.learner import DeviceCB, MetricsCB, MomentumLearner, ProgressCB
    from course_lib.models import get_model

    train = get_dataset()['train']

    def epoch(batches):
        ds = train.select(range(32 * batches))
        metrics = MetricsCB(verbose=False, accuracy='MulticlassAccuracy')
        cbs = [DeviceCB(device), metrics, ProgressCB(), ActivationStats(torch.nn.Conv2d)]
        learn = MomentumLearner(get_model(), DataLoaders.in_memory(dict(a=ds, b=ds), 32, device), lr=0.1, cbs=cbs)
        return count_waits(lambda: learn.fit(1), device)

    epoch(3)  # what happens once
    few, many = epoch(3), epoch(12)
    if device == 'cpu':
        raise Skip('torch reports only waiting for a GPU; tests/test_performance.py counts reads on the CPU')
    control = count_waits(lambda: torch.ones(1, device=device).item(), device)
    yield dict(what='one read, as a control', value=control, unit='waits', ok=control > 0)
    yield dict(what='12 batches rather than 3', value=many - few, unit='waits more', ok=many == few)


def norm_speed(device):
    "Each norm against PyTorch's and against the speed of a copy; `cpu` is the committed ratio for the same input"
    from course_lib.bench import NORM_PAIRS, bench_ceiling, bench_norm

    how = dict(device=device, rounds=7, min_time=0.01) if device == 'cuda' else dict(rounds=6, min_time=0)
    roofs = bench_ceiling(*((1024, 8192) if device == 'cuda' else (8, 128)), **how)
    yield dict(what='memory, read and written', value=roofs['gbs'], unit='GB/s')
    yield dict(what='matrix product, float32', value=roofs['gflops'] / 1000, unit='TFLOP/s')
    small, large = ((64, 64, 28, 28), (64, 256, 56, 56)) if device == 'cuda' else ((2, 8, 7, 7),) * 2
    jobs = [('eager', fmt, shape) for shape in dict.fromkeys((small, large)) for fmt in ('contiguous', 'channels_last')]
    committed = {(r['norm'], r['mode'], r['format'], *r['shape']): r['ratio'] for r in cpu_rows()['rows']}
    for mode, fmt, shape in jobs + [('compiled', 'contiguous', large)] * (device == 'cuda'):
        for name in NORM_PAIRS:
            row = bench_norm(name, shape, mode, fmt, **how)
            what = f"{name}, {mode}, {fmt}, {'x'.join(map(str, shape))}"
            yield dict(what=what, cpu=committed.get((name, mode, fmt, *shape)), **row)


def epoch_speed(device):
    "Epochs of the sample: the loader in memory, the stream, the computation alone, the Learner"
    from course_lib.bench import bench_epochs

    found = bench_epochs(*((6000, 1024) if device == 'cuda' else (64, 32)), device=device, rounds=6, warmup=1)
    committed = cpu_rows().get('epochs', {})
    for k, row in found.items():
        if isinstance(row, dict):
            yield dict(what=k, cpu=committed.get(k, {}).get('ratio'), **row)


def fused_kernel(device):
    "The hand-written LayerNorm, compiled by Triton: right, and how fast"
    import torch
    import torch.nn.functional as F
    import triton
    from course_lib.bench import NORM_PASSES, alternate, speed_ratio
    from course_lib.norms.fused import fused_layernorm, kernels_ready, layernorm_forward_kernel

    if not kernels_ready():
        raise Skip('Triton was loaded without its interpreter')
    rows, columns = (16384, 4096) if device == 'cuda' else (8, 20)
    x, g = (torch.randn(rows, columns, device=device) for _ in range(2))
    w, b = (torch.rand(columns, device=device) for _ in range(2))

    def step(f, dtype):
        args = [o.to(dtype).requires_grad_() for o in (x, w, b)]
        return lambda: torch.autograd.grad(f(*args), args, g.to(dtype))

    def theirs(x, w, b):
        return F.layer_norm(x, (columns,), w, b)

    for dtype, most in ((torch.float32, 1e-4), (torch.bfloat16, 3e-2), (torch.float16, 5e-3)):
        diff = difference(step(fused_layernorm, dtype)(), step(theirs, dtype)())
        yield dict(what=f'gradients, {dtype}', value=diff, unit=f'at most {most:g}', ok=diff <= most)
    really = isinstance(layernorm_forward_kernel, triton.JITFunction)
    yield dict(what='compiled by Triton', value=really, unit='', ok=really == (device == 'cuda'))
    if device == 'cpu':
        yield dict(what='its time', skipped='the interpreter is no kernel')
        return
    out = torch.empty_like(x)
    calls = dict(ours=step(fused_layernorm, x.dtype), theirs=step(theirs, x.dtype), copy=lambda: out.copy_(x))
    row = speed_ratio(alternate(calls, rounds=9))
    yield dict(what=f'a step of {rows}x{columns}', ours_limit=NORM_PASSES / 2 * row['copy_ms'] / row['ours_ms'], **row)


def stacked_models(device):
    "Small models at batch size 2, one by one over stacked"
    from course_lib.bench import bench_stack

    how = dict(device=device, rounds=7) if device == 'cuda' else dict(rounds=6, min_time=0)
    for models in (16, 64, 256) if device == 'cuda' else (3,):
        (row,) = bench_stack(models, 2, ['batch'], compile=False, **how)
        yield dict(what=f'{models} models, alone / stacked', **{k: v for k, v in row.items() if k != 'models'})


def peak_memory(device):
    "The most memory that a step of each norm needs at a time, in units of its input"
    import torch
    from course_lib.bench import NORM_PAIRS, fwd_bwd, norm_pair

    if device == 'cpu':
        raise Skip("only a GPU's allocator counts its peak")
    for name in NORM_PAIRS:
        ours, theirs, x, g = norm_pair(name, (64, 64, 28, 28), device=device)
        peaks = []
        for layer in (ours, theirs):
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            fwd_bwd(layer, x, g)()
            peaks.append((torch.cuda.max_memory_allocated() - before) / x.nbytes)
        yield dict(what=f'{name}, ours', value=peaks[0], unit=f"inputs; PyTorch's {peaks[1]:.2f}")


def lessons(device):
    "Lessons run on the sample as `nbdev_test` runs them"
    from budgets import bench_pages

    if not shutil.which('nbdev_test'):
        raise Skip('nbdev_test is not on the PATH')
    for name in LESSONS if device == 'cuda' else LESSONS[:1]:
        try:
            seconds = 60 * bench_pages(ROOT / f'nbs/{name}.ipynb', 0)
        except RuntimeError as e:
            yield dict(what=name, ok=False, error=str(e))
        else:
            yield dict(what=name, value=seconds, unit='s', ok=True)


SECTIONS = dict(  # name: function, seconds that it may take on a GPU
    fused=(fused_kernel, 30),
    layers=(equal_layers, 100),
    waits=(learner_waits, 20),
    norms=(norm_speed, 110),
    epochs=(epoch_speed, 50),
    stack=(stacked_models, 40),
    memory=(peak_memory, 10),
    lessons=(lessons, 110),
)


# ---- how they are run
def cpu_rows():
    "What `course_bench` measured on a CPU, as it is committed"
    from course_lib.core import read_results

    return read_results('bench_norms.json')[0]


def take_wheels(folder):
    "Unpack the pure-Python wheels whose package is not installed, for this process and those that it starts"
    place = tempfile.mkdtemp()
    for wheel in sorted(Path(folder).glob('*-none-any.whl')):
        try:
            distribution(wheel.name.split('-')[0])
        except PackageNotFoundError:
            ZipFile(wheel).extractall(place)
    sys.path.append(place)
    os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [os.environ.get('PYTHONPATH'), place]))


def run_section(f, limit, device):
    "State, reason, seconds, peak memory and rows of a section"
    import torch

    def too_late(*_):
        raise TimeoutError(f'not done after {limit} s')

    res, start = dict(state='ok', why='', rows=[]), time.time()
    signal.signal(signal.SIGALRM, too_late)
    signal.alarm(limit)
    try:
        if device == 'cuda':
            torch.cuda.reset_peak_memory_stats()
        for row in f(device):
            res['rows'].append(row)
    except Skip as e:
        res.update(state='skipped', why=str(e))
    except ModuleNotFoundError as e:
        res.update(state='skipped', why=f'{e.name} is not installed')
    except Exception as e:
        res.update(state='failed', why=f'{type(e).__name__}: {e}', trace=traceback.format_exc())
    finally:
        signal.alarm(0)
    wrong = [row['what'] for row in res['rows'] if row.get('ok') is False]
    if wrong:
        res.update(state='failed', why='; '.join(filter(None, [res['why'], *wrong])))
    if device == 'cuda':
        res['peak_gb'] = round(torch.cuda.max_memory_allocated() / 1e9, 3)
    return res | dict(seconds=round(time.time() - start, 1))


def line(row):
    "A row for people"
    said = f"  {row['what']:50}"
    if 'skipped' in row:
        return f"{said} skipped: {row['skipped']}"
    if 'ratio' in row:
        said += f" {row['ratio']:8.2f} [{row['lo']:.2f}, {row['hi']:.2f}]".ljust(30)
        said += f" {row['ours_ms']:.3f} / {row['theirs_ms']:.3f} ms"
    if 'ours_limit' in row:
        said += f", {row['ours_limit']:.0%} of a copy's speed"
    if row.get('cpu'):
        said += f", {row['cpu']:.2f} on a CPU"
    if 'value' in row:
        said += f" {row['value']:8.4g} {row['unit']}"
    return said + ('  WRONG' if row.get('ok') is False else '')


def main(args=None):
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--device', default='cuda', choices=['cuda', 'cpu'])
    ap.add_argument('--sections', default=','.join(SECTIONS), help='some of %(default)s')
    ap.add_argument('--wheels', help='folder of wheels for pure-Python packages that are not installed')
    ap.add_argument('--out', default='gpu.json', help='where to save (default: %(default)s)')
    a = ap.parse_args(args)
    names = a.sections.split(',')
    if set(names) - set(SECTIONS):
        ap.error(f"unknown sections {', '.join(set(names) - set(SECTIONS))}")
    os.environ.pop('COURSE_DATA', None)
    os.environ.update(COURSE_SAMPLE='1', HF_HUB_OFFLINE='1')
    if a.device == 'cpu':
        os.environ.setdefault('TRITON_INTERPRET', '1')  # before anything loads Triton
    os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    sys.path.insert(1, str(ROOT))
    if a.wheels:
        take_wheels(a.wheels)
    import torch
    from course_lib.bench import machine_info

    if a.device == 'cuda' and not torch.cuda.is_available():
        sys.exit('gpu.py: torch finds no NVIDIA GPU here; --device cpu runs the same code, small')
    found = dict(machine=machine_info(a.device), sections={})
    for name in names:
        f, limit = SECTIONS[name]
        res = found['sections'][name] = run_section(f, limit if a.device == 'cuda' else 600, a.device)
        Path(a.out).write_text(json.dumps(found) + '\n', encoding='utf-8')
        peak = f", {res['peak_gb']:.2f} GB at most" if 'peak_gb' in res else ''
        print(f"{name}: {res['state']}, {res['seconds']:.0f} s{peak}{res['why'] and ': ' + res['why']}")
        for row in res['rows']:
            print(line(row), flush=True)
    states = [o['state'] for o in found['sections'].values()]
    count = ', '.join(f'{states.count(o)} {o}' for o in ('ok', 'skipped', 'failed'))
    print(f"{found['machine']['gpu'] or 'CPU'}, torch {torch.__version__}: {count}; saved to {a.out}")
    return int('failed' in states)


if __name__ == '__main__':
    sys.exit(main())
