"""The course as its readers install it: `python tests/environments.py colab|oldest|newest [options] [notebooks]`

colab: the packages of tests/colab.txt, as Google Colab has them; oldest: the lowest version of everything that
settings.ini allows; newest: whatever pip finds. Each is a virtual environment of its own in which pip resolves for
real: the packages, then a wheel built from this tree, and nothing else. There every notebook runs alone in an empty
folder, without network; then the tests of layers and tools, and every command. In Colab's environment the wheel may
replace no package.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'tools'))
import lint as L

SOURCES = (
    'settings.ini',
    'setup.py',
    'pyproject.toml',
    'MANIFEST.in',
    'README.md',
    'LICENSE',
    'course_lib',
    'nbs/results',
)
PYTHON = dict(colab='3.13', oldest='3.10', newest='3.13')
COLAB = Path(__file__).with_name('colab.txt')
# what notebooks and tests need besides the package: accelerate is an extra
TOOLS = ('ipykernel', 'pytest', 'pytest-timeout', 'hypothesis', 'accelerate>=1.0')
TESTS = (
    'test_norms_api.py',
    'test_norms.py',
    'test_checks.py',
    'test_convert.py',
    'test_models.py',
    'test_init.py',
    'test_lsuv.py',
    'test_learner.py',
    'test_sweep.py',
    'test_fused.py',
)
COMMANDS = (
    'course_train --bs 500 --epochs 1 --lr .05 --device cpu --out run',
    'course_sweep --samples 64 --seeds 1 --sizes 8 --norms none,batch --out sweep.jsonl',
    'course_report --files sweep.jsonl',
    'course_bench --help',
    'course_progress',
)
CONTROL = dict(
    cells=[dict(cell_type='code', id='c', metadata={}, execution_count=None, outputs=[], source=['open("README.md")'])],
    metadata={},
    nbformat=4,
    nbformat_minor=5,
)  # reads a file that only the checkout has: must fail


# ---- what is installed
def requirements(root=L.ROOT):
    "What settings.ini asks for at run time"
    return L.settings(root)['requirements'].split()


def packages(kind, root=L.ROOT):
    "What is installed before the wheel"
    if kind == 'colab':
        return [l for l in COLAB.read_text(encoding='utf-8').split('\n') if l and not l.startswith('#')]
    if kind == 'oldest':
        return [re.sub(r'>=([^,]+).*', r'==\1', r) for r in requirements(root)]
    return []


def replaced(report, installed):
    "Names in the report of `pip install --dry-run --report` that are `installed` already, with both versions"
    canonical = lambda name: re.sub(r'[-_.]+', '-', name).lower()
    have = {canonical(p.partition('==')[0]): p.partition('==')[2] for p in installed}
    new = [(canonical(o['metadata']['name']), o['metadata']['version']) for o in report['install']]
    return [f'{name} {have[name]} -> {v}' for name, v in new if name in have]


def interpreter(wanted):
    "A Python of the wanted version: on the PATH, or one of pyenv's; None if there is none"
    pyenv = Path(os.environ.get('PYENV_ROOT', Path.home() / '.pyenv')) / 'versions'
    found = [shutil.which(f'python{wanted}'), *sorted(map(str, pyenv.glob(f'{wanted}.*/bin/python')))]
    for python in filter(None, [sys.executable, *found]):
        code = 'import sys; print(*sys.version_info[:2], sep=".")'
        res = subprocess.run([python, '-c', code], capture_output=True, text=True)
        if res.stdout.strip() == wanted:
            return python


def build(out, root=L.ROOT):
    "Build the sdist, and the wheel from it, in a copy of the tree; returns their paths"
    tree = Path(out) / 'tree'
    for f in SOURCES:
        src, dst = Path(root) / f, tree / f
        dst.parent.mkdir(parents=True, exist_ok=True)
        if src.is_dir():
            shutil.copytree(src, dst, ignore=shutil.ignore_patterns('__pycache__', '.*'))
        else:
            shutil.copy(src, dst)
    isolated = int(version('setuptools').split('.')[0]) < 77  # then pip fetches what pyproject.toml asks for
    cmd = [sys.executable, '-m', 'build', '--outdir', str(Path(out) / 'dist'), str(tree)] + ['--no-isolation'] * (
        not isolated
    )
    res = subprocess.run(cmd, capture_output=True, text=True, env=clean_env())
    if res.returncode:
        raise RuntimeError(f'build failed:\n{res.stdout[-2000:]}{res.stderr[-2000:]}')
    return next((Path(out) / 'dist').glob('*.tar.gz')), next((Path(out) / 'dist').glob('*.whl'))


def clean_env(**kw):
    "The environment of a reader: nothing that leads to this checkout or to data"
    drop = ('PYTHONPATH', 'PYTHONHOME', 'VIRTUAL_ENV', 'COURSE_DATA', 'COURSE_SAMPLE')
    return {k: v for k, v in os.environ.items() if k not in drop} | kw


class Environment:
    "A virtual environment with `packages`, and what is run in it"

    def __init__(self, folder, python):
        self.folder = Path(folder).resolve()
        self.bin, self.python = self.folder / 'bin', self.folder / 'bin/python'
        if not self.python.exists():
            subprocess.run([python, '-m', 'venv', str(self.folder)], check=True)

    def pip(self, *args):
        "pip, with real resolution; returns what it printed"
        cmd = [str(self.python), '-m', 'pip', '--disable-pip-version-check', *map(str, args)]
        res = subprocess.run(cmd, capture_output=True, text=True, env=clean_env(), cwd=self.folder)
        if res.returncode:
            raise RuntimeError(f"pip {' '.join(map(str, args))}:\n{res.stdout[-3000:]}{res.stderr[-3000:]}")
        return res.stdout

    def install(self, kind, wheel, say=print):
        "Packages, wheel, tools; says what the wheel brought. Returns messages on what is wrong"
        have, bad = packages(kind), []
        if have:
            self.pip('install', '-q', *have)
        if kind == 'colab':
            self.pip('install', '-q', '--dry-run', '--report', self.folder / 'report.json', wheel)
            report = json.loads((self.folder / 'report.json').read_text(encoding='utf-8'))
            say('the wheel brings', ', '.join(o['metadata']['name'] for o in report['install']))
            bad += [f'the wheel replaces {o}' for o in replaced(report, have)]
        self.pip('install', '-q', *have, wheel)
        self.pip('install', '-q', '--no-deps', '--force-reinstall', wheel)  # not that of another tree, if it has stayed
        try:
            self.pip('check')
        except RuntimeError as e:
            bad.append(str(e))
        self.pip('install', '-q', *have, *TOOLS)
        names = [re.match(r'[\w-]+', r)[0] for r in requirements()]
        code = 'import sys; from importlib.metadata import version as v; '
        code += f'print(sys.version.split()[0], *[f"{{n}} {{v(n)}}" for n in {names}], sep=", ")'
        say('Python', self.run(self.python, '-c', code).strip())
        return bad

    def env(self, cwd):
        return clean_env(
            COURSE_SAMPLE='1',
            IN_TEST='1',
            HF_HUB_OFFLINE='1',
            OMP_NUM_THREADS='1',
            PYTHONNOUSERSITE='1',
            PYDEVD_DISABLE_FILE_VALIDATION='1',
            PYTHONDONTWRITEBYTECODE='1',
            PATH=f'{self.bin}:/usr/bin:/bin',
            HOME=str(cwd),
            MPLCONFIGDIR=str(self.folder / 'mpl'),
        )

    def run(self, *cmd, cwd=None):
        "Run a command, in an empty folder if no other is given, or fail with what it said"
        with tempfile.TemporaryDirectory() as tmp:
            cwd = cwd or tmp
            res = subprocess.run([str(o) for o in cmd], cwd=cwd, env=self.env(cwd), capture_output=True, text=True)
        if res.returncode:
            raise RuntimeError(f"{' '.join(map(str, cmd))}:\n{res.stdout[-6000:]}{res.stderr[-3000:]}")
        return res.stdout

    def notebook(self, nb, timeout=1500):
        "Run a notebook (its cells as JSON) alone in an empty folder; returns its seconds and its error, or None"
        import nbformat
        from jupyter_client.kernelspec import KernelSpecManager
        from jupyter_client.manager import AsyncKernelManager
        from nbclient import NotebookClient

        spec = self.folder / 'share/jupyter/kernels/reader'
        spec.mkdir(parents=True, exist_ok=True)
        argv = [str(self.python), '-m', 'ipykernel_launcher', '-f', '{connection_file}']
        file = spec / 'kernel.json'
        if not file.exists():  # one at a time: the control runs before the others, and nobody reads half a file
            file.write_text(json.dumps(dict(argv=argv, display_name='reader', language='python')))
        nb = nbformat.reads(json.dumps(nb), 4)
        nb.cells = [c for c in nb.cells if not re.search(r'^#\| *(eval: *false|notest)', c.source, re.M)]
        start = time.time()
        with tempfile.TemporaryDirectory() as cwd:
            specs = KernelSpecManager(kernel_dirs=[str(spec.parent)], ensure_native_kernel=False)
            km = AsyncKernelManager(kernel_name='reader', kernel_spec_manager=specs)
            client = NotebookClient(nb, km=km, timeout=timeout, resources=dict(metadata=dict(path=cwd)))
            # a kernel manager of our own would outlive the notebook, so nbclient shuts it down
            try:
                client.execute(env=self.env(cwd), cleanup_kc=True)
            except Exception as e:
                return time.time() - start, f'{type(e).__name__}: {str(e)[-1500:]}'
        return time.time() - start, None


# ---- what is run
def run_notebooks(env, paths, workers=2, say=print):
    "Run each notebook alone; returns messages on those that failed"

    def one(path):
        seconds, error = env.notebook(json.loads(path.read_text(encoding='utf-8')))
        say(
            f"{'failed' if error else 'ran   '} {path.name:32} {seconds:4.0f} s" + (f'\n{error}' if error else ''),
            flush=True,
        )
        return f'{path.name} failed' if error else None

    with ThreadPoolExecutor(workers) as ex:
        return list(filter(None, ex.map(one, paths)))


def run_tests(env, files=TESTS, say=print):
    "The tests of layers and tools on the installed package; returns messages"
    cmd = [env.bin / 'pytest', '-q', '-p', 'no:cacheprovider', *(Path(__file__).parent / f for f in files)]
    try:
        out = env.run(*cmd)
    except RuntimeError as e:
        out = str(e)
    say(out[-3000:])
    return [l for l in out.split('\n') if l.startswith(('FAILED', 'ERROR'))] + ['pytest did not end'] * (
        ' passed' not in out
    )


def run_commands(env, say=print):
    "Every command of settings.ini; returns messages"
    named = {c.split()[0] for c in COMMANDS}
    bad = [
        f'{c} is not tried'
        for c in (o.split('=')[0] for o in L.settings()['console_scripts'].split())
        if c not in named
    ]
    with tempfile.TemporaryDirectory() as tmp:
        for c in COMMANDS:
            name, *args = c.split()
            try:
                env.run(env.bin / name, *args, cwd=tmp)
            except RuntimeError as e:
                bad.append(str(e))
            else:
                say(f'ran    {c}')
    return bad


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('kind', choices=list(PYTHON))
    ap.add_argument('notebooks', nargs='*', type=Path, help='default: all')
    ap.add_argument('--folder', help='where the environment stays; what is there is used again (default: thrown away)')
    ap.add_argument(
        '--python', help='interpreter (default: Python %s)' % ', '.join(f'{v} for {k}' for k, v in PYTHON.items())
    )
    ap.add_argument('--workers', type=int, default=2, help='notebooks that run at a time')
    ap.add_argument(
        '--skip', nargs='*', default=[], choices=['notebooks', 'tests', 'commands'], help='parts to leave out'
    )
    a = ap.parse_args()
    python = a.python or interpreter(PYTHON[a.kind])
    if not python:
        print(f'there is no Python {PYTHON[a.kind]} here: {a.kind} is tried on Python {sys.version.split()[0]}')
        python = sys.executable
    paths = [p.resolve() for p in a.notebooks] or [p.path for p in L.pages_of()]
    if missing := [str(p) for p in a.notebooks if not p.is_file()]:
        ap.error(f"no notebook {', '.join(missing)}; expected a path such as nbs/06_layernorm.ipynb")
    with tempfile.TemporaryDirectory() as tmp:
        env, bad = Environment(a.folder or Path(tmp) / 'venv', python), []
        start = time.time()
        bad += env.install(a.kind, build(tmp)[1])
        print(f'installed in {time.time() - start:.0f} s')
        error = env.notebook(CONTROL)[1] or 'no error'
        if 'FileNotFoundError' not in error:
            bad.append(f'a notebook that reads a file of the checkout: {error}')
        ran = 0
        if 'notebooks' not in a.skip:
            bad += (failed := run_notebooks(env, paths, a.workers))
            ran = len(paths) - len(failed)
        if 'commands' not in a.skip:
            bad += run_commands(env)
        if 'tests' not in a.skip:
            bad += run_tests(env)
    print('\n'.join(bad))
    print(f'environments: {a.kind}: {ran} notebooks ran alone in an empty folder, {len(bad)} failures')
    sys.exit(bool(bad))


if __name__ == '__main__':
    main()
