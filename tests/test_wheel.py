"A wheel built from this tree works in a fresh environment, outside the checkout, without dev extras."
import sys, tarfile, zipfile
from pathlib import Path
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import lint as L, wheel as W

@pytest.fixture(scope='module')
def built(tmp_path_factory): return W.build(tmp_path_factory.mktemp('build'))

@pytest.fixture(scope='module')
def fresh(built, tmp_path_factory): return W.Fresh(tmp_path_factory.mktemp('fresh')/'venv', built[1])

def test_wheel_holds(built):
    names = zipfile.ZipFile(built[1]).namelist()
    has = lambda end: [n for n in names if n.endswith(end)]
    assert has('data/fashion_mnist_train.parquet') and has('data/fashion_mnist_test.parquet') and has('data/NOTICE') and has('licenses/LICENSE')
    assert {Path(n).name for n in names if '/results/' in n} == {p.name for p in (L.ROOT/'nbs/results').iterdir()}
    assert not has('.ipynb') and not [n for n in names if n.startswith(('tests', 'nbs'))]
    assert sum(f.file_size for f in zipfile.ZipFile(built[1]).infolist()) < 10e6

def test_sdist_builds_the_wheel(built):
    "`build` made the wheel from the sdist, so it holds all that setup.py reads"
    assert {'settings.ini', 'README.md', 'LICENSE'} <= {n.split('/')[-1] for n in tarfile.open(built[0]).getnames()}

def test_only_the_wheel_is_there(fresh):
    out = fresh.run(fresh.python, '-c', 'import course_lib; print(course_lib.__file__)')
    assert Path(out.strip()).is_relative_to(fresh.folder)
    for dev in ('nbdev', 'execnb', 'pytest', 'hypothesis', 'build'):
        with pytest.raises(RuntimeError, match='ModuleNotFoundError'): fresh.run(fresh.python, '-c', f'import {dev}')

def test_course_train_outside_the_checkout(fresh, tmp_path):
    out = fresh.run(fresh.bin/'course_train', '--bs', '500', '--epochs', '1', '--lr', '.05', '--device', 'cpu', '--out', 'run', cwd=tmp_path)
    assert 'valid accuracy' in out and (tmp_path/'run/history.csv').exists()

def test_page_with_results_runs_alone(fresh): assert fresh.lesson(L.ROOT/'nbs/00_core.ipynb')[1] is None

def test_failing_page_is_seen(fresh, tmp_path):
    import nbformat
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('open("README.md")')])
    nbformat.write(nb, tmp_path/'x.ipynb')
    assert 'FileNotFoundError' in fresh.lesson(tmp_path/'x.ipynb')[1]
