"What is built from this tree; what the environments are made of; a replaced package or a failed page is noticed."

import json
import re
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
    assert sum(f.file_size for f in zipfile.ZipFile(built[1]).infolist()) < 10e6


def test_sdist_builds_the_wheel(built):
    "`build` made the wheel from the sdist, so it holds all that setup.py reads"
    assert {'settings.ini', 'README.md', 'LICENSE'} <= {n.split('/')[-1] for n in tarfile.open(built[0]).getnames()}


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
