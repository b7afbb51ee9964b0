"""What the course may cost: the import of all modules, at most 1.2 times torch's, and `nbdev_test`, at most 12 minutes.

`python tools/budgets.py` measures both on the shipped sample and ends with status 1 where one is over."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMPORTS, MINUTES = 1.2, 12


def import_times(code):
    "Seconds of torch, and milliseconds of each module of the course, as `-X importtime` counts in a new process"
    command = [sys.executable, '-W', 'ignore', '-X', 'importtime', '-c', code]
    told = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stderr
    lines = [o.removeprefix('import time:').split('|') for o in told.splitlines() if o.startswith('import time:')]
    own = {k.strip(): int(t) / 1e3 for t, _, k in lines if k.strip().split('.')[0] == 'course_lib'}
    return next(int(total) for _, total, k in lines if k.strip() == 'torch') / 1e6, own


def bench_imports(rounds=6):
    "Import of torch and the own lines of all modules against torch alone: median and interval; of each module, median"
    import numpy as np

    from course_lib.timing import median_interval

    lib = ROOT / 'course_lib'
    files = [p.relative_to(lib).with_suffix('') for p in sorted(lib.rglob('*.py')) if not p.stem.startswith('_')]
    code = ', '.join(['import torch', *('course_lib.' + '.'.join(p.parts) for p in files)])
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(import_times, [code] * rounds))
    ratio, lo, hi = median_interval([1 + sum(own.values()) / 1e3 / base for base, own in found])
    own = {k: round(float(np.median([o[k] for _, o in found])), 2) for k in found[0][1]}
    torch_s = round(float(np.median([base for base, _ in found])), 2)
    return dict(ratio=round(ratio, 4), lo=round(lo, 4), hi=round(hi, 4), torch_s=torch_s, own_ms=own)


def bench_pages(folder='nbs', workers=2):
    "Minutes that `nbdev_test` takes on the shipped sample; `RuntimeError` if a notebook fails"
    env = {k: v for k, v in os.environ.items() if k != 'COURSE_DATA'}
    start = time.perf_counter()
    command = ['nbdev_test', '--path', str(folder), '--n_workers', str(workers)]
    run = subprocess.run(command, capture_output=True, text=True, env=env)
    if run.returncode:
        raise RuntimeError(f'nbdev_test failed:\n{(run.stdout + run.stderr)[-2000:]}')
    return (time.perf_counter() - start) / 60


def main():
    imports = bench_imports()
    print('import of torch and all {} modules / torch: {ratio} [{lo}, {hi}]'.format(len(imports['own_ms']), **imports))
    minutes = bench_pages(ROOT / 'nbs')
    print(f'nbdev_test: {minutes:.1f} minutes')
    sys.exit(imports['ratio'] > IMPORTS or minutes > MINUTES)


if __name__ == '__main__':
    main()
