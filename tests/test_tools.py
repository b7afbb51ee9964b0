"What kept tools find: unused names and widths (ruff), backward imports (import-linter), spelling (codespell)."
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lint as L
import mutants

BIN = Path(sys.executable).parent


def run(*cmd, cwd=L.ROOT, **env):
    res = subprocess.run([BIN/cmd[0], *cmd[1:]], cwd=cwd, env=os.environ | env, capture_output=True, text=True)
    return res.returncode, res.stdout + res.stderr


def test_ruff():
    assert run('ruff', 'check', '--no-cache', '.')==(0, 'All checks passed!\n')


@pytest.mark.parametrize('source, rule', [
    ('import os\n', 'F401'), ('def f():\n    x = 1\n', 'F841'), ('a = 1; b = 2\n', 'E702'),
    ('if True: a = 1\n', 'E701'), (f"a = '{'x'*120}'\n", 'E501')])
def test_ruff_finds(tmp_path, source, rule):
    shutil.copy(L.ROOT/'pyproject.toml', tmp_path)
    (tmp_path/'new.py').write_text(source)
    code, said = run('ruff', 'check', '--no-cache', '.', cwd=tmp_path)
    assert code and rule in said


def test_exempt_files_are_there():
    "A file that is renamed or rewritten leaves the list"
    config = pytest.importorskip('tomllib').loads((L.ROOT/'pyproject.toml').read_text(encoding='utf-8'))
    exempt = config['tool']['ruff']['lint']['per-file-ignores']
    assert [f for f in exempt if not (L.ROOT/f).exists()]==[]


def test_nbdev_3_reads_the_same():
    text = (L.ROOT/'pyproject.toml').read_text(encoding='utf-8')
    config = pytest.importorskip('tomllib').loads(text)['tool']['nbdev']
    ini = L.settings()
    assert config['lib_path']==ini['lib_name'] and str(config['custom_sidebar'])==ini['custom_sidebar']
    assert config['allowed_cell_metadata_keys']==ini['allowed_cell_metadata_keys'].split()


def lint_imports(cwd):
    return run('lint-imports', '--no-cache', cwd=cwd, PYTHONPATH=str(cwd))


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(L.ROOT/'course_lib', tmp_path/'course_lib', ignore=shutil.ignore_patterns('__pycache__', 'data'))
    shutil.copy(L.ROOT/'.importlinter', tmp_path)
    return tmp_path


def test_shelves(copy):
    assert lint_imports(copy)[0]==0


@pytest.mark.parametrize('module, line, said', [
    ('core', 'from . import init', 'course_lib.core is not allowed to import course_lib.init'),
    ('models', 'from . import norms', 'course_lib.models is not allowed to import course_lib.norms'),
    ('layernorm', 'from .norms import convert', 'course_lib.layernorm is not allowed to import course_lib.norms')])
def test_backward_import(copy, module, line, said):
    f = copy/f'course_lib/{module}.py'
    f.write_text(f.read_text(encoding='utf-8') + f'\n{line}\n', encoding='utf-8')
    code, out = lint_imports(copy)
    assert code and said in ' '.join(out.split())


def test_module_without_a_shelf(copy):
    (copy/'course_lib/stray.py').write_text('')
    code, out = lint_imports(copy)
    assert code and 'stray' in out


def prose(folder):
    "The prose of all pages as text files"
    for p in L.pages_of():
        (folder/f"{p.name.replace('/', '_')}.md").write_text(p.md, encoding='utf-8')
    for q in [*L.ROOT.glob('*.md'), *(L.ROOT/'nbs').rglob('*.qmd')]:
        shutil.copy(q, folder/f'{q.name}.md')


def test_spelling(tmp_path):
    prose(tmp_path)
    assert run('codespell', '--ignore-words-list', 'fro', str(tmp_path))==(0, '')   # fro: the Frobenius norm
    (tmp_path/'new.md').write_text('The recieved gradient.')
    assert 'received' in run('codespell', str(tmp_path))[1]


def test_listed_defects_fit_the_code():
    "Each stands once in one exported cell, and changes it; the drawn ones are the same each time"
    assert len([planted for _, _, after, was, planted in mutants.listed() if planted in after and was != planted]) > 20
    assert mutants.drawn(5, 0) == mutants.drawn(5, 0)
