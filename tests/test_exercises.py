"Every exercise notebook is solved by its own solutions, goes on as it is given, and folds what it tells."

import json
import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import derived as D
from course_lib.grading import EXERCISES, assess, grade, load_topics, words
from course_lib.grading.debugging import BUGS, show_bug
from course_lib.grading.rescue import sample_images

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / 'nbs/exercises').glob('*.ipynb'))
load_topics()
sample_images()  # before any grader's clock runs


def cells_of(path):
    return [(c['cell_type'], ''.join(c['source'])) for c in json.loads(path.read_text(encoding='utf-8'))['cells']]


def solution(md, name):
    m = re.search(rf'<details id="solution-{name}">[\s\S]*?```python\n([\s\S]*?)```', md)
    assert m, f'{name} has no solution'
    return m[1]


def run_page(path, solved):
    "Execute a page as it is, or with solutions and something predicted; the names of its exercises and predictions."
    cells, names, predicted = cells_of(path), [], []
    md = '\n'.join(s for k, s in cells if k == 'markdown')
    ns = dict(__name__='__main__')
    for kind, src in cells:
        if kind != 'code' or 'google.colab' in src:
            continue
        if m := re.search(r'^#\| exercise: (\w+)', src):
            names.append(m[1])
            if solved:
                src = solution(md, m[1])
        if src.startswith('#| predict\n'):
            predicted += re.findall(r'^(\w+) = \.\.\.', src, re.M)
            if solved:
                src = re.sub(r'^(\w+) = \.\.\.', r'\1 = 1.', src, flags=re.M)
        exec(compile(src, str(path), 'exec'), ns)
    return names, predicted


def starting_cells(path):
    return {
        m[1]: src for kind, src in cells_of(path) if kind == 'code' and (m := re.search(r'^#\| exercise: (\w+)', src))
    }


IN_LESSONS = {
    name: (path, src)
    for path in sorted((ROOT / 'nbs').glob('[0-9]*.ipynb'))
    for name, src in starting_cells(path).items()
}


@pytest.mark.parametrize('name', IN_LESSONS)
def test_exercise_in_a_lesson(name, monkeypatch, capsys):
    "Stub and grader share a cell: as given it is not begun and goes on; with the solution that unfolds it is solved."
    plt = pytest.importorskip('matplotlib.pyplot')
    plt.switch_backend('Agg')
    monkeypatch.setenv('IN_TEST', '1')
    path, src = IN_LESSONS[name]
    cells = cells_of(path)
    md = '\n'.join(s for k, s in cells if k == 'markdown')
    ns = dict(torch=torch, nn=nn, F=F, math=math, grade=grade)
    exec(next((s for k, s in cells if k == 'code' and '# @title Imports' in s), ''), ns)
    exec(src, ns)
    assert re.search(rf'^{name}: not begun', capsys.readouterr().out, re.M)
    monkeypatch.setenv('COURSE_SOLUTIONS', '1')
    assert f'<details id="hint-{name}">' in md
    exec(solution(md, name) + '\n' + src[src.index(f"grade('{name}'") :], ns)  # what is drawn below the grader as well
    assert re.search(rf'^{name}: .*, solved$', capsys.readouterr().out, re.M)
    plt.close('all')


@pytest.mark.parametrize('path', PAGES, ids=lambda p: p.stem)
def test_solutions_pass(path, monkeypatch, capsys):
    pytest.importorskip('matplotlib').use('Agg')
    monkeypatch.setenv('IN_TEST', '1')
    monkeypatch.setenv('COURSE_SOLUTIONS', '1')
    monkeypatch.setenv('COURSE_SAMPLE', '1')
    names, predicted = run_page(path, True)
    out = capsys.readouterr().out
    assert len(re.findall(r'^(?:You said|It is)', out, re.M)) == len(predicted) and 'No prediction yet' not in out
    for n in names:
        assert re.search(rf'^{n}: .*, solved$', out, re.M), out
    here = {k for k, e in EXERCISES.items() if e.page == path.stem}  # what stands in a lesson may stand here as well
    assert here - set(IN_LESSONS) <= set(names) <= here and len(set(names)) == len(names)


QUICK = [p for p in PAGES if p.stem != 'batchnorm']  # that one trains: nbdev_test runs it


@pytest.mark.parametrize('path', QUICK, ids=lambda p: p.stem)
def test_page_as_given(path, monkeypatch, capsys):
    "Nothing fails, every exercise is not begun, and no result of a prediction shows."
    plt = pytest.importorskip('matplotlib.pyplot')
    plt.switch_backend('Agg')
    plt.close('all')
    monkeypatch.setenv('IN_TEST', '1')
    names, predicted = run_page(path, False)
    out = capsys.readouterr().out
    for n in names:
        assert re.search(rf'^{n}: not begun', out, re.M), out
    assert out.count('No prediction yet') == len(predicted) and not plt.get_fignums()
    assert not re.search('You said|[Ii]t is ', out), out


@pytest.mark.parametrize('path', PAGES, ids=lambda p: p.stem)
def test_explanations_fold(path):
    "Whatever tells a solution or a result is folded; what a fold tells of a result is asserted at the very end."
    cells = cells_of(path)
    for kind, src in cells:
        if kind != 'markdown':
            continue
        assert src.count('<details') == src.count('</details>') and '<details open' not in src
        outside = re.sub(r'<details[\s\S]*?</details>', '', src)
        assert '```' not in outside, outside
        for m in re.finditer(r'<details id="(\w+)-[\s\S]*?</summary>(\n*)', src):
            assert m[1] in ('hint', 'solution', 'seen') and m[2] == '\n\n', m[0]
        if '<details id="seen-' in src:
            assert cells[-1][0] == 'code' and cells[-1][1].startswith('#| hide\n') and 'assert ' in cells[-1][1]
    text = '\n'.join(s for k, s in cells if k == 'code')
    for l in text.split('\n'):
        assert len(l) <= 96 or l.startswith('#|') or '%pip' in l, l
    asked = [m for m in re.findall(r'^#\| predict\n(?:\w+ = .*\n?)+', text, re.M)]
    assert text.count('#| predict') == len(asked) <= text.count('compare_prediction(')


def test_snippets_on_the_page_are_those_of_the_grader():
    nb = json.loads((ROOT / 'nbs/exercises/debugging.ipynb').read_text(encoding='utf-8'))
    shown = {
        ''.join(c['source']): ''.join(c['outputs'][0]['data']['text/markdown'])
        for c in nb['cells']
        if c['cell_type'] == 'code' and any('data' in o for o in c['outputs'])
    }
    assert shown == {f'show_bug({k!r})': show_bug(k).data for k in BUGS} and len(shown) == 8


def test_each_prediction_is_explained():
    "A page that asks for a prediction explains it below; only the schedule's, of a single run, speaks for itself."
    for p in PAGES:
        text = '\n'.join(s for _, s in cells_of(p))
        assert text.count('#| predict\n') == text.count('<details id="seen-') + (p.stem == 'batchnorm'), p.stem


def test_lessons_link_their_exercises():
    "Each lesson that a page of exercises names links to it."
    for p in PAGES:
        text = '\n'.join(s for k, s in cells_of(p) if k == 'markdown')
        for lesson in re.findall(
            r'\]\(\.\./(\w+)\.ipynb\)',
            next(s for s in text.split('\n') if s.startswith('These exercises go with'))
            if 'These exercises go with' in text
            else '',
        ):
            md = '\n'.join(s for k, s in cells_of(ROOT / f'nbs/{lesson}.ipynb') if k == 'markdown')
            assert f'](exercises/{p.name})' in md.split('## Exercises')[-1], (lesson, p.name)


def test_every_page_exists():
    assert {p.stem for p in PAGES} == {e.page for e in EXERCISES.values()}


def test_order_of_exercises():
    "Pages in the order of the course; on each what only a lesson asks, then what the page asks, as they stand there."
    assert list(words.PAGES) == [Path(n).stem for n in D.parts(ROOT)['Exercises']]
    for p in PAGES:
        here = list(starting_cells(p))
        asked = [k for k in IN_LESSONS if EXERCISES[k].page == p.stem and k not in here]
        assert words.PAGES[p.stem].split() == asked + here, p.stem


def test_page_on_grading_links_every_page_of_exercises():
    text = '\n'.join(s for k, s in cells_of(ROOT / 'nbs/library/grading.ipynb') if k == 'markdown')
    for p in PAGES:
        title = re.match('# Exercises: (.*)', cells_of(p)[0][1])[1]
        assert f'[{title}](../exercises/{p.name})' in text, p.stem


QUESTIONS = [
    'bn_parameters',
    'ema',
    'batchnorm',
    'builtin_net',
    'schedule',
    'layernorm',
    'instancenorm',
    'three_groups',
    'runningbatchnorm',
    'tiny_batch',
]  # the study group's nine; the ninth has two halves


def test_all_nine_questions():
    text = '\n'.join(s for p in PAGES for k, s in cells_of(p) if k == 'code')
    for name in QUESTIONS:
        assert re.search(rf"grade\('{name}'", text), name


class Unbuilt(nn.Module):
    "No exercise gives it what it wants"

    def __init__(self, *, wanted):
        super().__init__()
        self.wanted = wanted

    def forward(self, x):
        return self.wanted * x


LAYERS = [name for name, e in EXERCISES.items() if e.properties[0].claim == 'can be built and called']


@pytest.mark.parametrize('name', LAYERS)
def test_what_cannot_be_built_is_said_once(name):
    first, *others = assess(name, Unbuilt).results
    assert first.mark == '✗' and {o.mark for o in others} == {'–'}
