"What is built from this tree; what the environments are made of; a replaced package or a failed page is noticed."

import ast
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import environments as E
import lint as L


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    return E.build(tmp_path_factory.mktemp('build'))


def test_wheel_holds(built):
    names = zipfile.ZipFile(built[1]).namelist()
    has = lambda end: [n for n in names if n.endswith(end)]
    assert has('data/fashion_mnist_train.parquet') and has('data/fashion_mnist_test.parquet')
    assert has('data/NOTICE') and has('licenses/LICENSE')
    assert {Path(n).name for n in names if '/results/' in n} == {p.name for p in (L.ROOT / 'nbs/results').iterdir()}
    assert not has('.ipynb') and not [n for n in names if n.startswith(('tests', 'nbs'))]
    assert sum(f.file_size for f in zipfile.ZipFile(built[1]).infolist()) < 15e6


def test_sdist_builds_the_wheel(built):
    "`build` made the wheel from the sdist, so it holds all that setup.py reads; no test, which needs the checkout"
    names = ['/'.join(n.split('/')[1:]) for n in tarfile.open(built[0]).getnames()]
    assert {'settings.ini', 'README.md', 'LICENSE', 'course_lib/data/NOTICE'} <= set(names)
    rows = {Path(n).name for n in names if n.startswith('nbs/results/')}
    assert rows == {p.name for p in (L.ROOT / 'nbs/results').iterdir()}
    assert not [n for n in names if n.startswith('tests')]


def test_twine(built):
    pytest.importorskip('twine')
    res = subprocess.run([sys.executable, '-m', 'twine', 'check', '--strict', *built], capture_output=True, text=True)
    assert res.returncode == 0, res.stdout + res.stderr


# ---- dependencies
OPTIONAL = {
    'IPython': 'found in sys.modules, or where a notebook runs',
    'triton': 'comes with torch where there is a GPU; course_lib.norms.fused alone needs it',
    'accelerate': 'an extra; `AccelerateCB` alone needs it',
}
PACKAGES = {'PIL': 'pillow', 'yaml': 'pyyaml'}  # whose import has another name


def imported(folder):
    "Top-level names that the Python files of a folder import, but for Python's own and ours"
    found = set()
    for f in folder.rglob('*.py'):
        for node in ast.walk(ast.parse(f.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Import):
                found |= {o.name.split('.')[0] for o in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.split('.')[0])
    return found - set(sys.stdlib_module_names) - {'course_lib'}


def declared(key):
    return {re.match(r'[\w-]+', r)[0].lower() for r in L.settings()[key].split()}


def packages_of(names):
    return {PACKAGES.get(n, n).lower() for n in names}


def test_every_dependency_is_imported_and_every_import_declared():
    used = imported(L.ROOT / 'course_lib')
    assert OPTIONAL.keys() <= used
    assert packages_of(used - OPTIONAL.keys()) == declared('requirements')
    assert declared('accelerate_requirements') == {'accelerate'}


def test_what_tools_import_is_declared():
    known = declared('requirements') | declared('dev_requirements') | declared('accelerate_requirements')
    known |= {'nbformat', 'nbclient', 'jupyter_client', 'pyyaml', 'mistune', 'packaging'}  # jupyter, pytest bring them
    used = {o for d in ('tools', 'experiments', 'tests') for o in imported(L.ROOT / d)}
    local = {f.stem for d in ('tools', 'tests') for f in (L.ROOT / d).glob('*.py')}
    planted = {'there_is_no_such_package', 'only_in_a_wheel'}  # by tests
    known.add('mup')  # for tools/mup_table.py alone, which is run by hand
    assert packages_of(used - local - planted) <= known | OPTIONAL.keys()


def test_imports_are_cheap():
    "The norms cost what torch costs, and so do the commands: data, figures, statistics are loaded where they are used"
    code = 'import sys, torch; before = set(sys.modules); import course_lib.{}; print(*set(sys.modules)-before)'
    for modules, allowed in (('norms', set()), ('train, course_lib.bench, course_lib.small_batch', {'tqdm', 'torch'})):
        cmd = [sys.executable, '-c', code.format(modules)]
        new = {o.split('.')[0] for o in subprocess.run(cmd, capture_output=True, text=True, check=True).stdout.split()}
        assert new - set(sys.stdlib_module_names) <= {'course_lib', 'fastcore'} | allowed


def test_oldest_is_the_lowest_of_each():
    lowest = dict(o.split('==') for o in E.packages('oldest'))
    assert lowest.keys() == {re.match(r'[\w-]+', r)[0] for r in E.requirements()}
    assert lowest['torch'] == '2.8' and lowest['torchvision'] == '0.23' and lowest['fastcore'] == '1.7'


def test_colab_satisfies_the_requirements():
    "What Colab has lies in the ranges of settings.ini; only torcheval is missing there"
    from packaging.requirements import Requirement

    have = dict(o.split('==') for o in E.packages('colab'))
    wanted = [Requirement(r) for r in E.requirements()]
    assert {r.name for r in wanted} - have.keys() == {'torcheval'}
    assert all(have[r.name] in r.specifier for r in wanted if r.name in have)


@pytest.mark.parametrize(
    'new, said',
    [
        ({'course_lib': '1', 'torcheval': '0.0.7'}, []),
        ({'course_lib': '1', 'torch': '2.15.0'}, ['torch 2.11.0 -> 2.15.0']),
        ({'Typing.Extensions': '9'}, ['typing-extensions 4.16.0 -> 9']),
    ],
)
def test_replaced_package_is_named(new, said):
    report = dict(install=[dict(metadata=dict(name=k, version=v)) for k, v in new.items()])
    assert E.replaced(report, ['torch==2.11.0', 'typing_extensions==4.16.0']) == said


def test_pages_and_commands_that_fail_are_named(tmp_path):
    class Broken:
        bin = Path('bin')

        def notebook(self, nb):
            return 1.0, 'NameError: x' if 'bad' in str(nb) else None

        def run(self, name, *args, cwd):
            raise RuntimeError(f'{name.name}: no')

    for name in ('good', 'bad'):
        (tmp_path / f'{name}.ipynb').write_text(json.dumps(name))
    said = []
    say = lambda text, **kw: said.append(text)
    assert E.run_notebooks(Broken(), sorted(tmp_path.glob('*.ipynb')), say=say) == ['bad.ipynb failed']
    assert any('NameError' in o for o in said)
    assert E.run_commands(Broken(), say=say) == [f'{c.split()[0]}: no' for c in E.COMMANDS]


def test_interpreter():
    here = '.'.join(map(str, sys.version_info[:2]))
    assert E.interpreter(here) == sys.executable and E.interpreter('9.9') is None
