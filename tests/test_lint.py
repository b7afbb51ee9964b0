"The lint passes on this repository and finds each fault that is planted in a copy."

import json, re, shutil
import pytest

import derived as D
import lint as L


def test_repository_is_clean():
    assert list(L.lint()) == []


def cell(src, kind='code', **kw):
    c = dict(cell_type=kind, id=f'c{abs(hash(src)) % 10**7}', metadata={}, source=src.splitlines(keepends=True))
    return c | (dict(execution_count=None, outputs=[]) | kw if kind == 'code' else {})


def page(root, name, *cells, lesson=True):
    "A page that passes, plus `cells`"
    badge, colab = L.colab_parts(name, L.settings(root))
    out = [dict(name='stdout', output_type='stream', text=['1\n'])]
    base = [
        cell(f'# T\n\n> Claim.\n\n{badge}', 'markdown'),
        cell(colab, metadata=L.FOLDED),
        cell('print(1)', outputs=out),
    ]
    end = [cell('## Summary\n\n## References', 'markdown')]
    nb = dict(cells=base + list(cells) + end, metadata={}, nbformat=4, nbformat_minor=5)
    (root / 'nbs' / name).write_text(json.dumps(nb))


@pytest.fixture
def root(tmp_path):
    (tmp_path / 'nbs').mkdir()
    (tmp_path / 'tools').mkdir()
    (tmp_path / 'tools/order.yml').write_text(
        'lessons: {Base: [00_a], Experiments: [01_b, 02_z]}\nexercises: [t]\nplay: []\nlibrary: {base: [], tools: []}\nwas: {}\n'  # noqa: E501
    )
    shutil.copy(L.ROOT / 'settings.ini', tmp_path)
    page(tmp_path, '00_a.ipynb', cell('#| default_exp a\ndef f(): pass'))
    nb = dict(cells=[cell('# Home', 'markdown')], metadata={}, nbformat=4, nbformat_minor=5)
    (tmp_path / 'nbs/index.ipynb').write_text(json.dumps(nb))
    L.fix_index(tmp_path)
    return tmp_path


def unplaced(msgs):
    return [m for m in msgs if 'tools/order.yml names' not in m]  # lessons that a test did not make


def test_clean_copy_passes(root):
    assert unplaced(L.lint(root)) == []


fig = dict(output_type='display_data', metadata={}, data={'image/png': 'x'})
err = dict(output_type='error', ename='ValueError', evalue='', traceback=[])
std = dict(output_type='stream', name='stderr', text=['warn'])


@pytest.mark.parametrize(
    'cells, said',
    [
        ([cell('#| default_exp b\ndef f(): pass')], '`f` is defined in 00_a.ipynb, 01_b.ipynb'),
        ([cell('See [a](05_a.ipynb).', 'markdown')], '05_a.ipynb: is 00_a.ipynb now'),
        ([cell('# as in 07_z.html')], '07_z.html: is 02_z.html now'),
        ([cell('as lesson %d says' % 12, 'markdown')], 'lesson %d: call it by its name' % 12),
        ([cell('#| label: fig-one'), cell('#| label: fig-one')], None),
        ([cell('#| label: fig-zed')], 'fig-zed labels a figure of 01_b.ipynb and of 02_z.ipynb'),
        ([cell('#| default_exp b\nfrom course_lib.a import *')], 'import *'),
        ([cell('def helper():\n' + '    x = 1\n' * 15)], '`helper` has 16 lines'),
        ([cell('def helper(): pass')], None),
        ([cell('1/0', outputs=[err])], 'saved error output (ValueError)'),
        ([cell('x', outputs=[std])], 'saved stderr'),
        ([cell('plot()', outputs=[fig])], 'figure without #| fig-alt:'),
        ([cell('x = "' + 'y' * 510_000 + '"')], 'more than 500'),
        ([cell('x = 1\n' * 31)], '31 lines'),
        ([cell('def (:')], 'invalid syntax'),
        ([cell("rows = Path('results/a.jsonl').read_text()")], 'use `read_results`'),
    ],
)
def test_planted(root, cells, said):
    page(root, '01_b.ipynb', *cells)
    page(root, '02_z.ipynb', cell('#| default_exp z\ndef zz(): pass'), cell('#| label: fig-zed'))
    L.fix_index(root)
    msgs = unplaced(L.lint(root))
    assert any(said in m for m in msgs) if said else msgs == [], msgs


@pytest.mark.parametrize(
    'old, said',
    [
        ('## Summary', 'no "## Summary"'),
        ('## References', 'no "## References"'),
        ('# T', 'no "# Title"'),
        ('> Claim.', 'no "> claim"'),
        ('colab-badge', 'badge'),
        ('google.colab', 'install cell'),
    ],
)
def test_missing_part(root, old, said):
    p = root / 'nbs/00_a.ipynb'
    p.write_text(re.sub(re.escape(old), '', p.read_text()))
    assert any(said in m for m in L.lint(root))


EXERCISE = ["#| exercise: f1\ndef f(x): ...", "grade('f1', f)", 'course_progress()']
FOLDED = '<details id="hint-f1"><summary>Hint</summary>\n\nh\n\n</details>\n\n<details id="solution-f1">\n\n```python\ndef f(x): return x\n```\n\n</details>'  # noqa: E501


@pytest.mark.parametrize(
    'old, new, said',
    [
        ('', '', None),
        ('def f(x): ...', '', None),
        ("grade('f1'", "grade('f2'", 'no grade call'),
        ('hint-f1', 'hint-f2', 'no hint'),
        ('solution-f1', 'solution-f2', 'no solution'),
        ('return x', 'return (', 'its solution'),
        ('course_progress()', '', 'no cell that calls course_progress'),
        ('"1\\n"', '"f1 solved on 2026-11-30\\n"', "somebody's progress"),
        ('exercise: f1', 'f1', 'no starting cell'),
        ('summary>Hint', 'summary>[a](../03_none.ipynb)', 'does not exist'),
        ('colab-badge', 'badge', 'badge'),
        ('> Claim.', '', 'no "> claim"'),
    ],
)
def test_exercise_page(root, old, new, said):
    (root / 'nbs/exercises').mkdir()
    page(root, 'exercises/t.ipynb', *[cell(o) for o in EXERCISE], cell(FOLDED, 'markdown'))
    p = root / 'nbs/exercises/t.ipynb'
    p.write_text(p.read_text().replace(old, new) if old else p.read_text())
    found = list(L.lint(root))
    found = [m for m in unplaced(found) if 'is stale' not in m]  # the tree of this test was made before the page
    assert any(said in m for m in found) if said else not found, found


def test_drawing_of_imports(root):
    "Only the drawing is made anew; what the modules import is drawn"
    (root / 'course_lib').mkdir()
    (root / 'course_lib/a.py').write_text('from .b import x\nimport torch\n')
    (root / 'course_lib/b.py').write_text('from . import core\n')
    guide = 'Before.\n\n<!-- imports -->\n```\nold\n```\n\nAfter.\n\n```sh\nrun\n```\n'
    (root / 'CONTRIBUTING.md').write_text(guide)
    assert any('drawing of imports is stale' in m for m in L.lint(root))
    L.fix_index(root)
    before, drawn, after = re.fullmatch(
        r'(Before.\n\n<!-- imports -->\n```\n)(.*?)(\n```\n\nAfter.\n\n```sh\nrun\n```\n)',
        (root / 'CONTRIBUTING.md').read_text(),
        re.S,
    ).groups()
    assert drawn == 'tools:\nlessons:\n  a <- -\nbase:'
    page(root, '01_b.ipynb', cell('#| default_exp b\nx = 1'))
    assert '  b <- -\n  a <- b' in L.import_drawing(root, L.pages_of(root))


def api_messages(root, names):
    (root / 'tools/api.yml').write_text(f'Do it: [{", ".join(names)}]')
    return [m for m in L.rule_api(L.pages_of(root), root)]


def test_api_page(root):
    "At most 200 names, public, each once, and what a lesson imports is there"
    (root / 'course_lib').mkdir()
    names = [f'f{i}' for i in range(201)]
    code = '\n'.join(f'def {n}(): "Does it."' for n in names)
    (root / 'course_lib/a.py').write_text(f'__all__ = {names}\n{code}\ndef hidden(): pass\n')
    assert api_messages(root, names[:200]) == []
    assert '[f7](00_a.ipynb#f7) | `a` | Does it. |' in D.api(root, L.pages_of(root))
    assert any('201 names' in m for m in api_messages(root, names))
    assert any('f1 stands there 2 times' in m for m in api_messages(root, ['f1', 'f1']))
    assert any('hidden is no public' in m for m in api_messages(root, ['hidden']))
    page(root, '01_b.ipynb', cell('from course_lib.a import f3, hidden'))
    assert api_messages(root, ['f3']) == []
    assert api_messages(root, ['f1']) == ['01_b.ipynb: imports f3, which has no place in tools/api.yml']


def test_stale_readme(root):
    (root / 'README.md').write_text('old')
    assert any('README.md differs' in m for m in L.lint(root))


def test_landing_page_knows_nothing_by_itself(root):
    p = root / 'nbs/index.ipynb'
    p.write_text(p.read_text().replace('# Home', 'Python 3.1 or newer'))
    (root / 'nbs/images').mkdir(exist_ok=True)
    (root / 'nbs/images/fig-old.png').write_bytes(b'')
    msgs = list(L.lint(root))
    assert any('Python 3.1 or newer, but' in m for m in msgs) and any('fig-old.png introduces' in m for m in msgs), msgs


def test_paper_without_its_key(root):
    (root / 'nbs/references.bib').write_text(
        '@misc{blue1978portable, author={Blue, J.}, title={A Portable Program: With Two Scales}, year={1978}}\n'
    )
    p = root / 'nbs/00_a.ipynb'
    plain = p.read_text()
    for item, n in (('- J. Blue, *A portable program*', 1), ('- @blue1978portable, *A portable program*', 0)):
        p.write_text(plain.replace('## References', f'## References\\n\\n{item}'))
        assert sum('as @blue1978portable' in m for m in L.lint(root)) == n


def test_source_in_one_string(root):
    "Found, and mended by --fix: Quarto would lose the line breaks"
    p = root / 'nbs/00_a.ipynb'
    nb = json.loads(p.read_text())
    nb['cells'][0]['source'] = ''.join(nb['cells'][0]['source'])
    p.write_text(json.dumps(nb))
    msgs = unplaced(L.lint(root))
    assert len(msgs) == 1 and 'its source is no list of lines' in msgs[0], msgs
    L.fix(L.Page(p, root), L.settings(root))
    assert unplaced(L.lint(root)) == []


@pytest.mark.parametrize(
    'source, wrong',
    [
        ([], False),
        (['a'], False),
        (['a\n', '\n', 'b'], False),
        (['a\n'], False),
        ('', True),
        ('a', True),
        (['a', 'b'], True),
        (['a\nb'], True),
    ],
)
def test_not_lines(source, wrong):
    assert L.not_lines(source) == wrong


def test_fix_writes_the_badge(root):
    p = root / 'nbs/00_a.ipynb'
    p.write_text(p.read_text().replace('open in colab', '').replace('[![Open', '[![Shut'))
    L.fix(L.Page(p, root), L.settings(root))
    assert not any('badge' in m for m in L.lint(root))


def test_readme_commands_are_those_of_ci():
    cmds = [l for l in (L.ROOT / 'README.md').read_text().splitlines() if l.startswith('pip install -e')]
    assert cmds[0].endswith('&& course_train') and cmds[1].endswith('&& nbdev_test && pytest -q')


def test_module_too_long(root):
    "A module of 301 lines is found, one of 300 and what nbdev writes are not"
    lib = root / L.settings(root)['lib_name']
    lib.mkdir()
    (lib / 'short.py').write_text('x = 1\n' * 300)
    (lib / '_modidx.py').write_text('x = 1\n' * 400)
    assert list(L.rule_modules(root)) == []
    (lib / 'long.py').write_text('x = 1\n' * 301)
    (message,) = L.rule_modules(root)
    assert 'long.py: 301 lines' in message
