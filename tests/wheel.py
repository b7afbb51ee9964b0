"""The package as a reader installs it. `python tests/wheel.py [--workers N] [notebooks]`

Builds sdist and wheel, installs the wheel with pip into a fresh virtual environment in which nothing else can be
imported than what the wheel requires (and a Jupyter kernel), and runs each lesson there, alone in an empty folder:
no checkout, no dev extras, no network. The heavy packages are links to those of the running environment.
"""
import argparse, json, os, re, shutil, subprocess, sys, tempfile, time, venv
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import lint as L

SOURCES = ('settings.ini', 'setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE', 'course_lib', 'nbs/results')
KERNEL = 'ipykernel'   # what a notebook needs besides the package: Jupyter and Colab bring it


def build(out, root=L.ROOT):
    "Build the sdist, and the wheel from it, in a copy of the tree; returns their paths"
    tree = Path(out)/'tree'
    for f in SOURCES:
        src,dst = Path(root)/f,tree/f
        dst.parent.mkdir(parents=True, exist_ok=True)
        if src.is_dir(): shutil.copytree(src, dst, ignore=shutil.ignore_patterns('__pycache__', '.*'))
        else: shutil.copy(src, dst)
    isolated = int(distribution('setuptools').version.split('.')[0]) < 77   # then pip fetches what pyproject.toml asks for
    cmd = [sys.executable, '-m', 'build', '--outdir', str(Path(out)/'dist'), str(tree)] + ['--no-isolation']*(not isolated)
    res = subprocess.run(cmd, capture_output=True, text=True, env=clean_env())
    if res.returncode: raise RuntimeError(f'build failed:\n{res.stdout[-2000:]}{res.stderr[-2000:]}')
    return next((Path(out)/'dist').glob('*.tar.gz')), next((Path(out)/'dist').glob('*.whl'))

def clean_env(**kw):
    "The environment of a reader: nothing that leads to this checkout or to data"
    drop = ('PYTHONPATH', 'PYTHONHOME', 'VIRTUAL_ENV', 'COURSE_DATA', 'COURSE_SAMPLE')
    return {k:v for k,v in os.environ.items() if k not in drop} | kw

def name_of(req): return re.match(r'[\w.-]+', req)[0]

def closure(names):
    "Distributions that `names` need, without extras, as far as they are installed here"
    from packaging.requirements import Requirement
    todo,seen = list(names),{}
    while todo:
        n = re.sub(r'[-_.]+', '-', todo.pop()).lower()
        if n in seen: continue
        try: seen[n] = distribution(n)
        except PackageNotFoundError: continue   # a requirement of another platform
        for r in map(Requirement, seen[n].requires or []):
            if r.marker is None or r.marker.evaluate({'extra': ''}): todo.append(r.name)
    return seen

class Fresh:
    "A virtual environment with the wheel, and of all else only what it requires"
    def __init__(self, folder, wheel):
        self.folder = Path(folder)
        venv.create(self.folder, with_pip=True, symlinks=True)
        self.bin = self.folder/'bin'
        self.python = self.bin/'python'
        self.run(self.python, '-m', 'pip', 'install', '-q', '--no-deps', '--no-index', '--disable-pip-version-check', wheel)
        self.site = next(self.folder.glob('lib/python*/site-packages'))
        meta = next(self.site.glob('course_lib-*.dist-info'))/'METADATA'
        needs = [l.split(': ', 1)[1] for l in meta.read_text(encoding='utf-8').splitlines() if l.startswith('Requires-Dist:') and 'extra ==' not in l]
        for d in closure([*map(name_of, needs), KERNEL]).values():
            for top in {f.parts[0] for f in d.files or [] if f.parts[0] not in ('..', '__pycache__') and f.suffix!='.pth'}:
                src,dst = Path(d.locate_file(top)),self.site/top
                if src.exists() and not dst.exists(): dst.symlink_to(src.resolve())
        spec = self.folder/'share/jupyter/kernels/fresh'
        spec.mkdir(parents=True)
        argv = [str(self.python), '-m', 'ipykernel_launcher', '-f', '{connection_file}']
        (spec/'kernel.json').write_text(json.dumps(dict(argv=argv, display_name='fresh', language='python')))

    def env(self, cwd): return clean_env(COURSE_SAMPLE='1', IN_TEST='1', HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1', PATH=f'{self.bin}:/usr/bin:/bin',
                                         HOME=str(cwd), MPLCONFIGDIR=str(self.folder/'mpl'), PYTHONNOUSERSITE='1')
    def run(self, *cmd, cwd=None):
        "Run a command in the empty folder `cwd`, or fail with what it said"
        with tempfile.TemporaryDirectory() as tmp:
            cwd = cwd or tmp
            res = subprocess.run([str(o) for o in cmd], cwd=cwd, env=self.env(cwd), capture_output=True, text=True)
        if res.returncode: raise RuntimeError(f"{' '.join(map(str, cmd))}:\n{res.stdout[-1500:]}{res.stderr[-3000:]}")
        return res.stdout

    def lesson(self, path, timeout=1500):
        "Run a notebook alone in an empty folder; returns its seconds and its error, or None"
        import nbformat
        from jupyter_client.kernelspec import KernelSpecManager
        from jupyter_client.manager import AsyncKernelManager
        from nbclient import NotebookClient
        nb = nbformat.read(path, 4)
        nb.cells = [c for c in nb.cells if not re.search(r'^#\| *(eval: *false|notest)', c.source, re.M)]
        start = time.time()
        with tempfile.TemporaryDirectory() as cwd:
            specs = KernelSpecManager(kernel_dirs=[str(self.folder/'share/jupyter/kernels')], ensure_native_kernel=False)
            km = AsyncKernelManager(kernel_name='fresh', kernel_spec_manager=specs)
            client = NotebookClient(nb, km=km, timeout=timeout, resources=dict(metadata=dict(path=cwd)))
            try: client.execute(env=self.env(cwd), cleanup_kc=True)  # a kernel manager of our own would outlive the notebook
            except Exception as e: return time.time()-start, f'{type(e).__name__}: {str(e)[-1500:]}'
        return time.time()-start, None

def notebooks(root=L.ROOT): return [p.path for p in L.pages_of(root)]

def run_lessons(fresh, paths, workers=2, say=print):
    "Run each lesson alone, two at a time; returns {name: error or None}"
    def one(p):
        seconds,err = fresh.lesson(p)
        say(f"{'failed' if err else 'ran   '} {p.name:32} {seconds:4.0f} s" + (f'\n{err}' if err else ''), flush=True)
        return p.name, err
    with ThreadPoolExecutor(workers) as ex: return dict(ex.map(one, paths))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('notebooks', nargs='*', type=Path, help='default: all')
    ap.add_argument('--workers', type=int, default=2, help='notebooks that run at a time')
    a = ap.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        fresh = Fresh(Path(tmp)/'venv', build(tmp)[1])
        res = run_lessons(fresh, [p.resolve() for p in a.notebooks] or notebooks(), a.workers)
    bad = [n for n,e in res.items() if e]
    print(f"wheel: {len(res)-len(bad)} notebooks ran alone in an empty folder, {len(bad)} failed{': ' if bad else ''}{', '.join(bad)}")
    sys.exit(bool(bad))


if __name__=='__main__': main()
