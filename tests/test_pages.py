"The site, built as CI can build it (without Quarto), has no fault; and each fault that is planted is found."

import ast, base64, json, re, shutil
import pytest

import derived as D, doc_tables as T, lint as L, pages as P, readable as R


@pytest.fixture(scope='session')
def proc(tmp_path_factory):
    return P.build(tmp_path_factory.mktemp('site'))


@pytest.mark.timeout(900)
def test_site(proc):
    assert {p.name for p in P.read_pages(proc)} == set(D.site_pages(L.ROOT))
    assert list(P.check_proc(proc)) == []


def names_of(code):
    "Names that a piece of code defines, and names that it reads"
    tree = ast.parse(re.sub(r'^ *[%!].*$', '', code, flags=re.M))
    imported = {
        (a.asname or a.name).split('.')[0]
        for n in ast.walk(tree)
        if isinstance(n, (ast.Import, ast.ImportFrom))
        for a in n.names
    }
    defined = {n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    names = [n for n in ast.walk(tree) if isinstance(n, ast.Name)]
    stored = {n.id for n in names if isinstance(n.ctx, ast.Store)}
    return imported | defined | stored, {n.id for n in names if isinstance(n.ctx, ast.Load)}


def test_code_can_be_copied():
    "What a page shows of its code runs without the cells that it hides, but for the one that installs the course"
    missing = []
    for p in L.pages_of():
        if not (p.is_lesson or p.is_exercise):
            continue
        defined = {True: set(), False: set()}
        for c in p.code:
            if 'google.colab' in c['source'] or c['source'].startswith('%%'):
                continue
            hidden = bool(re.search(r'^#\| *hide(?![\w:])', c['source'], re.M))
            now, read = names_of(c['source'])
            if not hidden:
                missing += [f'{p.name}: {n}' for n in sorted(read & defined[True] - defined[False] - now)]
            defined[hidden] |= now
    assert missing == []


def test_head_of_a_lesson(proc):
    "Badge and minutes, which nbdev drops with the title, stand on the built page, on exercises too"
    for p in P.read_pages(proc):
        if D.part_of(L.ROOT, p.name) not in (None, 'Library'):
            text = '\n'.join(c['source'] for c in p.cells[:3])
            assert (P.READ_ONLY in text) == (D.part_of(L.ROOT, p.name) == "Exercises")
            assert re.search(r'About \d+ minutes', text) and ('colab-badge' in text or not p.nb), p.name


def test_star_of_a_shape(proc):
    "A docstring that names a shape (N, C, *) stays in italics to its end"
    cells = [c for p in P.read_pages(proc) if p.nb for c in p.cells if c.get('has_sd')]
    docs = [o['data']['text/markdown'] for c in cells for o in c['outputs']]
    assert any(r'(N, C, \*)' in d for d in docs) and not any(
        '(N, C, *)' in ''.join(d).rpartition('```')[2] for d in docs
    )


def test_minutes_are_those_of_the_table(proc):
    table = L.lesson_table()
    for p in L.pages_of():
        if p.is_lesson:
            assert re.search(rf'\({p.name}\).*\| {D.minutes(p)} \|', table), p.name


@pytest.mark.skipif(
    not shutil.which('quarto'), reason='quarto is not on the PATH: the HTML is checked where the site is published'
)
def test_rendered(proc):
    site, warned = P.render(proc)
    assert warned == [] and list(P.check_html(site)) == [] and list(P.check_redirects(site, proc)) == []


# ---- planted faults, on a site of two pages
def cell(src, kind='markdown', **kw):
    c = dict(cell_type=kind, id='c', metadata={}, source=P.as_lines(src))
    return c | (dict(outputs=[], execution_count=None) | kw if kind == 'code' else {})


def image(src, width=600):
    png = base64.b64encode(bytes(16) + (2 * width).to_bytes(4, 'big')).decode()
    return cell(src, 'code', outputs=[dict(output_type='display_data', metadata={}, data={'image/png': png})])


def out(text):
    return cell('x', 'code', outputs=[dict(output_type='stream', name='stdout', text=[text])])


def shown(sig):
    return f'---\n\n[source](https://example.org/u#L1){{target="_blank"}}\n\n### f\n\n```python\ndef f(\n{sig}\n):\n```\n\n*Does f.*'  # noqa: E501


def table(sig):
    return cell(
        '#| echo: false\nshow_doc(f)',
        'code',
        has_sd=True,
        outputs=[dict(output_type='execute_result', metadata={}, data={'text/markdown': [T.rewritten(shown(sig))]})],
    )


FINE = [
    cell(
        '## Two words & `code`\n\n$$x$$ {#eq-one}\n\nSee @eq-one, @fig-a, [there](01_b.ipynb#the-end), [b](b.html) and [@ioffe2015].'  # noqa: E501
    ),
    image('#| label: fig-a\n#| fig-cap: "A"\n#| fig-alt: "a"'),
    cell('[up](#two-words-code) `@not-one` and mail@host.org'),
    table('    x:int=1, # a number\n    **kwargs'),
]


def site(tmp, *cells, bar=None, front='title: A\ndescription: d'):
    (tmp / 'proc').mkdir()
    (tmp / 'tools').mkdir()
    (tmp / 'tools/order.yml').write_text('lessons: {Base: [00_a, 01_b], More: [03_c]}')
    for n, cs, f in (
        ('00_a.ipynb', [*FINE, *cells], front),
        ('01_b.ipynb', [cell('## The end')], 'title: B\ndescription: d\noutput-file: b.html'),
    ):
        nb = dict(cells=[cell(f'---\n{f}\n---\n', 'raw')] + cs, metadata={}, nbformat=4, nbformat_minor=5)
        (tmp / 'proc' / n).write_text(json.dumps(nb))
    (tmp / 'proc/sidebar.yml').write_text(bar or BAR)
    (tmp / 'proc/references.bib').write_text('@article{ioffe2015,\n title={x}}\n')
    pages = P.read_pages(tmp / 'proc')
    return [
        m
        for rule in (
            P.check_links(pages, tmp / 'proc'),
            P.check_pages(pages),
            P.check_sidebar(pages, tmp / 'proc', tmp),
            P.check_api(pages),
        )
        for m in rule
    ]


BAR = 'website:\n  sidebar:\n    contents:\n      - section: Base\n        contents:\n          - 00_a.ipynb\n          - 01_b.ipynb\n'  # noqa: E501


def test_fine(tmp_path):
    assert site(tmp_path) == []


@pytest.mark.parametrize(
    'fault, said',
    [
        (cell('[x](02_c.ipynb)'), 'broken link 02_c.ipynb'),
        (cell('[x](01_b.ipynb#middle)'), 'no anchor #middle on 01_b.ipynb'),
        (cell('[x](#nowhere)'), 'no anchor #nowhere'),
        (cell('<a href="c.html">c</a>'), 'broken link c.html'),
        (cell('[[`f`](01_b.ipynb#the-end)](01_b.ipynb)'), 'a link in a link'),
        (cell('![a cat](cat.png)'), 'broken link cat.png'),
        (cell('![](https://example.org/cat.png)'), 'without alt text'),
        (cell('[`f`](%s%sa.html#f)' % (L.settings()['doc_host'], L.settings()['doc_baseurl'])), 'broken link'),
        (cell('[x](%s/blob/main/nbs/none.py)' % L.settings()['git_url']), 'a file that is not there'),
        (cell('[x](%s/blob/main/setup.py#L9999)' % L.settings()['git_url']), 'no such line'),
        (cell('as [@nobody1999] said'), '@nobody1999 is not in references.bib'),
        (cell('see @fig-none'), '@fig-none refers to nothing'),
        (image('#| label: fig-b\n#| fig-cap: "B"'), 'figure without fig-alt'),
        (image('#| fig-alt: "b"\n#| fig-cap:'), 'figure without fig-cap'),
        (image('#| fig-cap: "B"\n#| fig-alt: "b"', 731), 'a figure of 731 px is too wide'),
        (cell('#| label: fig-c\n#| fig-cap: "C"\n#| fig-alt: "c"', 'code'), 'a caption without its figure'),
        (out('Traceback (most recent call last)\n'), 'an error or warning'),
        (out('x.py:3: UserWarning: no\n'), 'an error or warning'),
        (out('saved to /usr/local/lib/x.py'), 'a machine path'),
        (out('<object at 0x7f3a10b2c4d0>'), 'an error or warning'),
        (cell('x', 'code', outputs=[dict(output_type='error', ename='E', evalue='', traceback=[])]), 'a saved error'),
        (table('    x:int, # a number\n    y, z:tuple=(1, 2)'), 'f: no comment for y, z'),
    ],
)
def test_planted(tmp_path, fault, said):
    msgs = site(tmp_path, fault)
    assert len(msgs) == 1 and said in msgs[0], msgs


def test_doc_tables():
    "A name in the library has a signature and a table; on a lesson, which shows the source, an address"
    md = T.rewritten(
        shown('    x:Tensor, # a number | or two\n    eps:float=1e-05, # small\n    device:NoneType=None, # where')
    )
    assert '```python\nf(x, eps=1e-05, device=None)\n```' in md and '*Does f.*' in md
    assert '| `x` | `Tensor` |  | a number \\| or two |' in md and '| `device` |  | `None` | where |' in md
    assert T.uncommented(T.rewritten(shown('    x,\n    y, z:int=1, # two numbers'))) == ['x']
    assert T.uncommented(T.rewritten(shown('    x,\n    y:int'))) == ['x', 'y']
    assert '| `x` | `int | None` |' in T.rewritten(
        shown('    x:int|None, # a number')
    )  # to pandoc a bar in code is no border
    untyped = T.rewritten(shown('    clock:builtin_function_or_method=perf_counter, # tells the time'))
    assert '|  | default | what it is |' in untyped and '| `clock` | `perf_counter` | tells the time |' in untyped
    inherited = T.rewritten(shown('    *args, **kwargs'))
    assert '```' not in inherited and '|---' not in inherited and '### f' in inherited
    assert 'Call self' not in T.rewritten(shown('    learn').replace('Does f', 'Call self as a function'))
    assert T.anchor(shown('    x')) == '[]{#f}[source](https://example.org/u#L1){target="_blank"}'


MODULE = """from dataclasses import dataclass
from torch import nn

@dataclass
class Run:
    "A run."
    rate: float = .1  # at its highest

class Norm(nn.LayerNorm):
    "As PyTorch's."

def f(
    x,          # numbers
    **kwargs,   # for g
):              # their sum, --all of <them>
    "Does f."
"""


def test_doc_tables_ask_the_source(tmp_path):
    "What show_doc leaves out stands in the module: comments of fields, of **kwargs and of what is returned"
    path = tmp_path / 'm.py'
    path.write_text(MODULE)
    assert '| `rate` | `float` | `0.1` | at its highest |' in T.table('def Run(\n    rate:float=0.1\n)->None:', path)
    shown = T.table('def f(\n    x,\n    **kwargs\n):', path)
    assert '| `**kwargs` | for g |' in shown
    assert r'| **returns** | their sum, \--all of \<them> |' in shown  # as text, no HTML and no dash
    norm = T.table('def Norm(\n    normalized_shape:int, device=None, # for backward compatibility\n):', path)
    assert 'torch.nn.LayerNorm.html' in norm and 'backward' not in norm
    assert 'backward' in T.table('def Norm(\n    device=None, # for backward compatibility\n):')  # nothing to ask


def test_source_of_what_is_exported():
    "On a library page each definition stands by itself, in its order, with its source; imports stay hidden"
    def made(source):
        cell = dict(cell_type='code', id='c', metadata={}, outputs=['o'], source=source.splitlines(True))
        return P.with_source(cell)

    imports = '#| export\nimport torch\nfrom torch import nn'
    assert [''.join(c['source']) for c in made(imports)] == [imports]
    two = made('#| export\ndef f():\n    return 1  # one\n\n# second\ndef g():\n    return 2\n\nX = 3')
    texts = [''.join(c['source']) for c in two]
    assert texts[0] == '#| exports\ndef f():\n    return 1  # one'
    assert texts[1] == '#| exports\n# second\ndef g():\n    return 2'
    assert texts[2] == '#| exporti\nX = 3' and texts[3].endswith('eval: false\nX = 3') and 'code-fold: true' in texts[3]
    assert len({c['id'] for c in two}) == len(two) and two[-1]['outputs'] == ['o'] and not two[0]['outputs']
    hidden, shown = made('#| exporti\nclass A:\n    pass')
    assert ''.join(hidden['source']).startswith('#| exporti') and '#| exp' not in ''.join(shown['source'])
    assert '#| code-summary: "Source of A"\n' in ''.join(shown['source'])
    assert P.summary_of('a, b = 1, 2\nc = d = 3') == 'Source of a, b, c …' and P.summary_of('f(1)') == 'Source'
    plain = dict(cell_type='code', id='d', source=['print(1)'], outputs=[])
    assert P.with_source(plain) == [plain]


def test_links_of_one_cell_stand_together():
    "nbdev puts the links of the second and third definition below the cell, where they seem to be the next one's"
    def doc(name):
        md = f'[]{{#{name.lower()}}}[source](a#{name})'
        return dict(cell_type='code', has_sd=True, source='', outputs=[dict(data={'text/markdown': md})])

    code = dict(cell_type='code', outputs=[], source=P.NBDEV_FOLD + 'def f(): pass\nclass B: pass')
    single = dict(cell_type='code', outputs=[], source=P.NBDEV_FOLD + 'def one(): pass')
    cells = [doc('f'), code, doc('B'), doc('one'), single]
    P.gather_links(cells)
    shown = [c['outputs'][0]['data']['text/markdown'] if c['outputs'] else c['source'][-20:] for c in cells]
    assert shown[0] == '[]{#b}[B](a#B)' and shown[1] == '[]{#f}[f](a#f)'
    assert cells[2] is code and shown[3] == '[]{#one}[source](a#one)' and cells[4] is single


def test_folds_have_names():
    "On the site the title of a folded cell is the name of its fold, and no line of its code"
    assert (
        P.unformed('#| code-fold: true\n# @title Loss "A"\nplot()')
        == '#| code-fold: true\n#| code-summary: "Loss \\"A\\""\nplot()'
    )
    named = '#| code-fold: true\n#| code-summary: "Imports"\n# @title Imports\nimport torch'
    assert P.unformed(named) == '#| code-fold: true\n#| code-summary: "Imports"\nimport torch'
    assert P.unformed('x = 1') == 'x = 1'


def test_no_empty_figure():
    "A cell that draws only when something is predicted has a caption when it has drawn"
    source = '#| label: fig-x\n#| fig-cap: "X"\n#| fig-alt: "x"\nplot()'
    assert P.unnumbered(dict(source=source, outputs=[])) == 'plot()'
    assert P.unnumbered(dict(source=source, outputs=[dict(data={'image/png': 'x'})])) == source


@pytest.mark.skipif(not P.has_pandoc(), reason='no pandoc on the PATH (Debian: apt-get install pandoc)')
@pytest.mark.parametrize(
    'tex, text',
    [
        (r'\sigma^2=\frac1m\sum_i(x_i-\mu)^2', 'σ^2 = 1/m∑_i(x_i−μ)^2'),
        (r'\sqrt{\sigma^2+\epsilon}', '√(σ^2+ε)'),
        (r'\frac{a+b}{2}', '(a+b)/2'),
        (r'-\ln 10', '− ln 10'),
        (r'\hat x', 'x'),
        (r'\begin{aligned}a&=b\\c&=d\end{aligned}', 'a = b; c = d'),
        (r'\mathbb{E}[x]', 'E[x]'),
    ],
)
def test_readable_formulas(tex, text):
    assert R.formulas([tex]) == {tex: text}


@pytest.mark.skipif(not P.has_pandoc(), reason='no pandoc on the PATH (Debian: apt-get install pandoc)')
def test_search_index(tmp_path):
    "Titles, sections and text have their formulas readable, and the rest stays"
    entries = [dict(title='A', section=r'The \(x_1\)', text='as\n\\[y &lt; \\frac{1}{2}\\]\nsaid', href='a.html')]
    (tmp_path / 'search.json').write_text(json.dumps(entries))
    R.finish(tmp_path / 'search.json')
    assert json.loads((tmp_path / 'search.json').read_text()) == [
        dict(title='A', section='The x_1', text='as\ny &lt; 1/2\nsaid', href='a.html')
    ]
    (tmp_path / 'search.json').write_text(
        json.dumps([dict(href=h) for h in ('other.html', 'b.html#x', 'a.html', 'b.html')])
    )
    R.finish(tmp_path / 'search.json', ['a.html', 'b.html'])
    assert [e['href'] for e in json.loads((tmp_path / 'search.json').read_text())] == [
        'a.html',
        'b.html#x',
        'b.html',
        'other.html',
    ]


# ---- line breaks: a notebook, the page that nbdev makes of it, and what `finish` writes
needs_pandoc = pytest.mark.skipif(not P.has_pandoc(), reason='no pandoc on the PATH (Debian: apt-get install pandoc)')
PROSE = (
    '## First\n\nA paragraph\nof two lines, $x_1$ and\n\n$$y = 2\n+ 3$$\n\n'
    '- one item\n- another\n\n| a | b |\n|---|---|\n| 1 | 2 |'
)
CODE = '#| code-fold: true\nx = 2\nif x:\n    print(x)'


def finished(tmp, prose=PROSE, code=CODE, printed='2\n3\n'):
    "Messages about a lesson whose processed page has this prose, code and output"
    out = [dict(output_type='stream', name='stdout', text=printed.splitlines(keepends=True))]
    badge, _ = L.colab_parts('00_a.ipynb', L.settings())
    source = [
        cell(f'# Title\n\n> A claim.\n\n{badge}'),
        cell('#| hide\nimport sys', 'code'),
        cell(PROSE),
        cell(CODE, 'code', outputs=[out[0] | dict(text=['2\n', '3\n'])]),
    ]
    front = cell('---\ntitle: Title\ndescription: A claim.\n---\n', 'raw')
    built = [front, cell(prose), cell(code, 'code', outputs=out)]
    for folder, cells in (('nbs', source), ('proc', built)):
        (tmp / folder).mkdir()
        (tmp / folder / '00_a.ipynb').write_text(
            json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5))
        )
    (tmp / 'tools').mkdir()
    (tmp / 'tools/order.yml').write_text('lessons: {Base: [00_a]}')
    shutil.copy(L.ROOT / 'settings.ini', tmp)
    P.finish(tmp / 'proc', tmp)
    pages = P.read_pages(tmp / 'proc')
    return [*P.check_sources(pages), *P.check_lines(pages, tmp)]


@needs_pandoc
@pytest.mark.parametrize(
    'change, said',
    [
        ({}, None),
        (dict(code=CODE.replace('if x:\n', '')), "'if x:' was written, but a reader sees 'print(x)'"),
        (dict(code=CODE.replace(':\n', ':')), "'if x:' was written, but a reader sees 'if x:    print(x)'"),
        (dict(code='#| echo: false\n' + CODE), "'x = 2' was written, but a reader sees '2'"),
        (dict(prose=PROSE.replace('First\n\n', 'First ')), "'## First' was written, but a reader sees '## First A p"),
        (dict(prose=PROSE.replace('##', '###')), "'## First' was written, but a reader sees '### First'"),
        (
            dict(prose=PROSE.replace('h\nof', 'hof')),
            "two lines x 1 and' was written, but a reader sees 'A paragraphof two",
        ),
        (
            dict(prose=PROSE.replace('\n- another', ' - another')),
            "'one item' was written, but a reader sees 'one item an",
        ),
        (dict(prose=PROSE.replace('|\n| 1', '|| 1')), "'a' was written, but a reader sees '1 2'"),
        (dict(prose=PROSE + '\n\nMore.'), "'x = 2' was written, but a reader sees 'More'"),
        (dict(printed='2 3\n'), "'2' was written, but a reader sees '2 3'"),
        (dict(printed='2\n3\n4\n'), "'(nothing)' was written, but a reader sees '4'"),
    ],
)
def test_lines(tmp_path, change, said):
    msgs = finished(tmp_path, **change)
    assert (not msgs) if said is None else len(msgs) == 1 and said in msgs[0], msgs


@needs_pandoc
def test_sources_in_one_string(tmp_path, monkeypatch):
    "As `finish` once wrote them: the title is lost, headings run on, code is one line"
    monkeypatch.setattr(P, 'as_lines', lambda source: source)
    (tmp_path / 'small').mkdir()
    no_list, no_title = finished(tmp_path / 'small')
    assert '4 of 4 cells have no list of lines as source' in no_list
    assert "'# 00 Title' was written, but a reader" in no_title


@needs_pandoc
@pytest.mark.parametrize('name', ['index.ipynb', '07_batchnorm.ipynb', 'exercises/batchnorm.ipynb'])
def test_page_in_one_string(proc, tmp_path, name):
    "So is a page of the site"
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    nb = json.loads((proc / name).read_text(encoding='utf-8'))
    for c in nb['cells']:
        c['source'] = ''.join(c['source'])
    path.write_text(json.dumps(nb), encoding='utf-8')
    pages = P.read_pages(tmp_path)
    assert len([*P.check_sources(pages)]) == len([*P.check_lines(pages)]) == 1


@needs_pandoc
def test_last_line_of_the_api_page(proc, tmp_path):
    "A page without code, too, is read to its end"
    text = (proc / 'api.qmd').read_text(encoding='utf-8').rstrip()
    (tmp_path / 'api.qmd').write_text(text, encoding='utf-8')
    assert list(P.check_lines(P.read_pages(tmp_path))) == []
    rows = text.removesuffix(':::').rstrip()  # of the last module
    (tmp_path / 'api.qmd').write_text(rows.rpartition('\n')[0] + '\n\n:::', encoding='utf-8')
    assert 'but a reader sees \'(nothing)\'' in next(P.check_lines(P.read_pages(tmp_path)))


@pytest.mark.parametrize(
    'old, new, said',
    [
        ('          - 01_b.ipynb\n', '', '01_b.ipynb is missing'),
        ('01_b', '00_a', '00_a.ipynb stands there 2 times'),
        ('01_b', '03_c', '03_c.ipynb is no page'),
        ('Base', 'More', 'stands in More, not in Base'),
        ('00_a.ipynb\n          - 01_b', '01_b.ipynb\n          - 00_a', 'not in the order'),
    ],
)
def test_sidebar(tmp_path, old, new, said):
    assert any(said in m for m in site(tmp_path, bar=BAR.replace(old, new)))


def test_no_title(tmp_path):
    assert any('no description' in m for m in site(tmp_path, front='title: A'))


@pytest.mark.parametrize(
    'name, part',
    [
        ('02_signal.ipynb', 'Initialization'),
        ('09_runningbatchnorm.ipynb', 'Normalization'),
        ('10_seeds.ipynb', 'Experiments'),
        ('26_towards_90.ipynb', 'Your own model'),
        ('exercises/training.ipynb', 'Exercises'),
        ('play/axes.qmd', 'Play'),
        ('library/core.ipynb', 'Library'),
        ('api.qmd', 'Library'),
        ('index.ipynb', None),
        ('14_none.ipynb', None),
    ],
)
def test_parts(name, part):
    assert D.part_of(L.ROOT, name) == part


def test_order_of_the_sidebar():
    "Lessons by number, then exercises, play and library: what stands in the list, in its order"
    parts = list(D.parts(L.ROOT))
    assert parts[-3:] == ['Exercises', 'Play', 'Library'] and parts[0] == 'Start'
    numbers = [D.number_of(n) for part in parts[:-3] for n in D.parts(L.ROOT)[part]]
    assert numbers == sorted(set(numbers)) and all(numbers)
    bar = D.sidebar(L.ROOT, L.pages_of())
    assert all(f'text: "{n} ' in bar for n in numbers)


def test_old_addresses_redirect(proc):
    "Each address of the first edition that changed is an alias of a page that is there, and of one page only"
    was = D.order(L.ROOT)['was']
    pages = {p.name: p for p in P.read_pages(proc)}
    found = [a for n, p in pages.items() for a in p.front.get('aliases', ())]
    assert sorted(found) == sorted(f'/{o}.html' for o in was)
    assert pages['library/core.ipynb'].front['aliases'] == ['/core.html'] and pages['play/axes.qmd'].front[
        'aliases'
    ] == ['/12b_axes.html']


@pytest.mark.parametrize(
    'redirects, said', [('{"":"new.html"}', None), ('{"":"other.html"}', 'does not'), (None, 'does not')]
)
def test_redirects(tmp_path, monkeypatch, redirects, said):
    "An address that leads to another page, or nowhere, is found"
    for d in ('site', 'proc'):
        (tmp_path / d).mkdir()
    (tmp_path / 'proc/new.qmd').write_text('---\ntitle: New\n---\n')
    (tmp_path / 'site/new.html').write_text('new')
    if redirects:
        (tmp_path / 'site/old.html').write_text(f'<script>var redirects = {redirects};</script>')
    monkeypatch.setattr(P, 'aliases', lambda root: {'new.qmd': ['/old.html']})
    msgs = list(P.check_redirects(tmp_path / 'site', tmp_path / 'proc'))
    assert (not msgs) if said is None else len(msgs) == 1 and said in msgs[0], msgs


@pytest.mark.parametrize(
    'html, said',
    [
        ('<a href="b.html">b</a><img src="x.png" alt="x"><h2 id="top2"></h2><a href="#top2">t</a>', None),
        ('<a href="c.html">c</a>', 'broken link c.html'),
        ('<a href="b.html#none">b</a>', 'no anchor b.html#none'),
        ('<img src="x.png">', 'without alt'),
        ('<img src="y.png" alt="y">', 'broken link y.png'),
        ('<span class="quarto-unresolved-ref">fig-x</span>', 'not resolved'),
        ('<span class="citation"\ndata-cites="ioffe2015">(<strong>ioffe2015?</strong>)</span>', 'not resolved'),
        ('<strong>Why?</strong>', None),
        (f'<a href="{L.settings()["doc_baseurl"]}b.html#p">as on the page that is not found</a>', None),
        (f'<a href="{L.settings()["doc_baseurl"]}c.html">c</a>', 'broken link /c.html'),
    ],
)
def test_html(tmp_path, html, said):
    (tmp_path / 'a.html').write_text(html)
    (tmp_path / 'b.html').write_text('<p id="p">b</p>')
    (tmp_path / 'x.png').write_bytes(b'')
    msgs = list(P.check_html(tmp_path))
    assert (not msgs) if said is None else len(msgs) == 1 and said in msgs[0], msgs


@pytest.mark.parametrize(
    'text, anchor',
    [
        ('Two words & `code`'.replace('`', ''), 'two-words-code'),
        ('1. A first', 'a-first'),
        ('DataLoaders.from_dd', 'dataloaders.from_dd'),
        ('What is γ?', 'what-is-γ'),
        ('(N, C, H·W)', 'n-c-hw'),
        ('2024', 'section'),
    ],
)
def test_anchor_is_pandocs(text, anchor):
    assert P.auto_id(text) == anchor


@pytest.mark.parametrize('dark', [False, True])
def test_theme_contrast(dark):
    "Text, links and code on the page: 4.5 to 1 (WCAG 2.1, 1.4.3); white on the bar, too"
    from course_lib.plot import contrast

    c = dict(re.findall(r'\$([\w-]+): (#\w{6});', D.theme(L.ROOT, dark)))
    assert (
        min(
            contrast(c['body-color'], c['body-bg']),
            contrast(c['link-color'], c['body-bg']),
            contrast(c['code-color'], c['code-bg']),
            contrast(c['link-color'], c['code-bg']),
            contrast('#ffffff', c['primary']),
        )
        >= 4.5
    )


def test_social_card():
    "Made by tools/make_card.py for the title that settings.ini has"
    from PIL import Image

    with Image.open(L.ROOT / 'nbs/images/card.png') as im:
        assert im.size == (1200, 630) and im.text['Title'] == L.settings()['title']


def test_template_passes_the_lint(tmp_path):
    "The template of a lesson, copied as the guide says, is a page without faults once it has been run"
    for d in ('nbs', 'tools'):
        (tmp_path / d).mkdir()
    for f in ('settings.ini', 'nbs/index.ipynb'):
        shutil.copy(L.ROOT / f, tmp_path / f)
    (tmp_path / 'tools/order.yml').write_text('lessons: {New: [30_new]}')
    shutil.copy(L.ROOT / 'nbs/_template.ipynb', tmp_path / 'nbs/30_new.ipynb')
    cfg = L.settings(tmp_path)
    L.fix(L.Page(tmp_path / 'nbs/30_new.ipynb', tmp_path), cfg)
    L.fix_index(tmp_path)
    assert list(L.lint(tmp_path)) == []
    assert (
        '30_new.ipynb' in (tmp_path / 'nbs/sidebar.yml').read_text()
        and '30_new.ipynb' in (tmp_path / 'README.md').read_text()
    )
