"Reports fit on a screen, nonsense never passes, what is solved is remembered, and what is to be read exists."
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from graders import check_report
from torch import nn

from course_lib import grading
from course_lib.grading import EXERCISES, READ, Report, Result, course_progress, grade, load_topics
from course_lib.grading.rescue import sample_images
from course_lib.grading.words import PAGES, TITLES, place

ROOT = Path(__file__).resolve().parents[1]
load_topics()
sample_images()   # before any grader's clock runs


# ---- reports
@pytest.mark.parametrize('name', EXERCISES)
def test_worst_report_fits(name):
    "Everything wrong, each for a reason of its own that is as long as can be, and noise: still one screen."
    ex = EXERCISES[name]
    longest = max(READ, key=lambda k: len(place(k)))
    printed = 'x'*1_000_000
    for failed in range(len(ex.properties)+1):
        results = [Result(p.claim, '✗', f'{i} '+'word '*100, longest) if i < failed else Result(p.claim, '✓')
                   for i, p in enumerate(ex.properties)]
        check_report(str(Report(name, results, printed, ex.what)))
    check_report(str(Report(name, (), what=ex.what)))


def test_a_fourth_mistake_waits():
    text = str(Report('x', [Result(f'claim {i}', '✗', f'mistake {i}', 'outputs') for i in range(5)]))
    assert 'mistake 2' in text and 'mistake 3' not in text and text.count('when those above are mended') == 2


NONSENSE = [3, 'text', object, object(), [], {}, (1, 2), float('nan'), lambda: 0, nn.Identity, nn.Identity(),
            torch.zeros(3)]


@pytest.mark.parametrize('name', EXERCISES)
def test_nonsense_never_passes(name, capsys):
    for value in NONSENSE:
        assert not grade(name, value)
        check_report(capsys.readouterr().out)


@pytest.mark.parametrize('name', EXERCISES)
def test_not_begun(name, capsys, progress_folder):
    assert not grade(name, ...)
    assert capsys.readouterr().out.count('\n') == 1 and not list(progress_folder.iterdir())


def test_unknown_name():
    with pytest.raises(ValueError, match='did you mean: batchnorm'):
        grade('batchnrom', 1)


def test_strict(monkeypatch):
    monkeypatch.setenv('COURSE_SOLUTIONS', '1')
    with pytest.raises(AssertionError, match='offset_input is not solved'):
        grade('offset_input', 3.)


# ---- topics
def test_names_of_topics():
    "What a topic defines can be imported from the package, where it once stood."
    from course_lib.grading import PlainRun, collapsed_net, compare_prediction, numbers, show_bug
    from course_lib.grading.checkpoint import PlainRun as theirs
    assert PlainRun is theirs and all(map(callable, (collapsed_net, compare_prediction, numbers, show_bug)))
    assert not hasattr(grading, 'nothing_of_this_name')


@pytest.mark.parametrize('name', EXERCISES)
def test_what_to_read_is_known(name):
    ex = EXERCISES[name]
    assert ex.read in READ and all(p.read in READ for p in ex.properties if p.read)


def page_of(name):
    "The notebook that `READ` calls by this name: there is one, and no more."
    pages = [p for p in (ROOT/'nbs').rglob('*.ipynb')
             if re.fullmatch(rf'(\d\d[a-d]?_)?{name}.ipynb', p.relative_to(ROOT/'nbs').as_posix())]
    assert len(pages) == 1, (name, pages)
    return pages[0]


def prose_of(path):
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    return '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')+'\n'


@pytest.mark.parametrize('key', READ)
def test_what_to_read_exists(key):
    page, heading = READ[key]
    assert f'# {heading}\n' in prose_of(page_of(page)), (page, heading)
    assert place(key).startswith(f'"{heading}" in '.replace('""', '"'))


def test_titles_are_those_of_the_pages():
    "A report names a page by its title, so no two have the same."
    assert {page for page, _ in READ.values()} == TITLES.keys()
    for page, title in TITLES.items():
        assert prose_of(page_of(page)).startswith(f'# {title}\n'), page
    room = [(title, page.startswith('library/')) for page, title in TITLES.items()]
    assert len(set(room)) == len(room)


# ---- progress
ON_INIT = sum(e.page == 'init' for e in EXERCISES.values())


def test_progress(capsys):
    grade('offset_input', 3.)
    grade('offset_input', .02)
    grade('gain_dropout', 3.)
    course_progress('init')
    out = capsys.readouterr().out
    assert f'init: 1 of {ON_INIT}' in out and 'tries: 1' in out
    assert re.search(r'✓ solved on \d{4}-\d\d-\d\d +offset_input ', out)


def test_progress_keeps_the_order_of_the_pages(capsys):
    course_progress()
    out = capsys.readouterr().out
    shown = [found[1] for found in re.finditer(r'^    not begun +(\w+) ', out, re.M)]
    assert shown == ' '.join(PAGES.values()).split()


def test_progress_lists_what_is_new(monkeypatch, capsys):
    monkeypatch.setitem(EXERCISES, 'mine', EXERCISES['offset_input']._replace(page='my_page'))
    course_progress('my_page')
    assert re.search(r'my_page: 0 of 1\n    not begun +mine ', capsys.readouterr().out)


@pytest.mark.parametrize('content', [b'', b'{', b'[]', b'\xff\xfe', b'{"exercises": {"offset_input": 3}}',
                                     b'{"exercises": []}', b'null'])
def test_corrupt_progress_is_set_aside(progress_folder, content, capsys):
    file = progress_folder/'progress.json'
    for i in (1, 2):
        file.write_bytes(content)
        grade('offset_input', .02)
        assert f'kept as progress-unreadable-{i}.json' in capsys.readouterr().out
        assert (progress_folder/f'progress-unreadable-{i}.json').read_bytes() == content
        assert 'solved' in json.loads(file.read_text())['exercises']['offset_input']
    assert not list(progress_folder.glob('*.part'))


def test_folder_that_cannot_be_written(progress_folder, monkeypatch, capsys):
    (progress_folder/'file').write_text('')
    monkeypatch.setenv('COURSE_PROGRESS', str(progress_folder/'file'))
    assert grade('offset_input', .02) and 'not written down' in capsys.readouterr().out


def test_command():
    grade('offset_input', .02)
    code = ('import sys; from course_lib.grading import course_progress; '
            'sys.argv = ["course_progress", "--page", "init"]; course_progress()')
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT,
                         env=dict(os.environ, PYTHONIOENCODING='utf-8'))
    assert out.returncode == 0 and f'init: 1 of {ON_INIT}' in out.stdout, out.stdout+out.stderr
