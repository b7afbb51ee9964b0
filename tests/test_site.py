"""The pages as a reader sees them, in a real browser: nothing is cut, nothing scrolls sideways, all can be read.

Where Quarto is on the PATH it renders them, or `SITE` names the folder of a site that it has rendered; else pandoc
makes them, with the rules of the site's own style sheet. The test says which.
"""

import base64
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import browser as B
import lint as L
import pages as P
import pytest

from course_lib.plot import contrast

pytestmark = [
    pytest.mark.skipif(bool(B.missing()), reason=B.missing() or 'there is a browser'),
    pytest.mark.skipif(not P.has_pandoc(), reason='no pandoc on the PATH (Debian: apt-get install pandoc)'),
    pytest.mark.timeout(1800),
]
# a page may ask for fonts and MathJax, which a test without a network does not get
OUTSIDE = re.compile(r'https://\S+ - Failed to load resource: net::ERR_')
# What Bootstrap and Quarto would say of the column and of folded code
BASE = """
body {{ margin: 0; font: 17px/1.5 sans-serif; color: {ink}; background: {paper}; }}
main {{ max-width: 785px; margin: 0 auto; padding: 0 12px; }}
a {{ color: {link}; }} pre {{ overflow-x: auto; }} td, th {{ padding: .5rem; }}
"""
# what does not fit in the column: pictures, tables and printed outputs
TOO_WIDE = """
const column = document.querySelector('main').getBoundingClientRect();
const out = e => { const r = e.getBoundingClientRect();
  return r.right > column.right + 1 || r.left < column.left - 1; };
const own = e => innerWidth < 576 && e.classList.contains('columns');   // on a phone a printed table scrolls by itself
const cut = e => e.tagName == 'PRE' && e.scrollWidth > e.clientWidth + 1 && !own(e);
return [...document.querySelectorAll('main img, main table, main .cell-output pre:not(.sourceCode)')]
  .filter(e => e.getClientRects().length && !e.closest('[id^=norm-axes]') && (out(e) || cut(e)))
  .map(e => e.tagName + ': ' + (e.alt || e.textContent).slice(0, 60));
"""
PATH_ENDS = """
const path = document.querySelector('.quarto-secondary-nav .breadcrumb');
return path ? path.getBoundingClientRect().right : 0;
"""
SMALL = (
    'nav.quarto-page-breadcrumbs a, details > summary, .nav-page a, figcaption, .nav-footer p, .caption, main .btn'
)
COLOURS = """
const solid = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
  if (!/, 0\\)$|transparent/.test(c)) return c; } return getComputedStyle(document.body).backgroundColor; };
const opacity = e => { let o = 1; for (; e; e = e.parentElement) o *= getComputedStyle(e).opacity; return o; };
return [...document.querySelectorAll(arguments[0])].filter(e => e.getClientRects().length)
  .map(e => [e.textContent.trim().slice(0, 40), getComputedStyle(e).color, solid(e), opacity(e)]);
"""


def style(dark):
    "The site's own rules, and its colours, as plain CSS"
    scss = (L.ROOT / f'nbs/{"dark" if dark else "light"}.scss').read_text(encoding='utf-8')
    defaults, _, rules = scss.partition('/*-- scss:rules --*/')
    colours = dict(re.findall(r'^\$([\w-]+): (\S+);', defaults, re.M))
    base = BASE.format(ink=colours['body-color'], paper=colours['body-bg'], link=colours['link-color'])
    return base + re.sub(r'^// .*$', '', rules, flags=re.M)


def picture(output):
    "A figure of a notebook as the site shows it: a sharp PNG at half its size"
    data = ''.join(output['data']['image/png'])
    width = int.from_bytes(base64.b64decode(data)[16:20], 'big') // 2
    image = f'<img width="{width}" alt="figure" src="data:image/png;base64,{data}">'
    return f'<figure>{image}<figcaption>Figure</figcaption></figure>\n'


def by_pandoc(page, dark):
    "A page as HTML"
    text = page.path.read_text(encoding='utf-8')
    cells = json.loads(text)['cells'] if page.nb else []
    drawn = [o for c in cells for o in c.get('outputs', []) if 'image/png' in o.get('data', {})]
    markdown = P.as_quarto_joins(dict(cells=cells)) if page.nb else text
    for o in drawn:
        markdown = markdown.replace('![](figure.png)\n', picture(o), 1)
    command = ['pandoc', '--from=markdown-citations', '--to=html', '--mathml']
    body = subprocess.run(command, input=markdown, capture_output=True, encoding='utf-8', check=True).stdout
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
    head = f'{meta}<style>{style(dark)}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body><main>{body}</main></body></html>'


def processed(folder):
    "The folder of the processed pages, and the pages by name"
    proc = P.build(folder)
    return proc, {p.name: p for p in P.read_pages(proc)}


def rendered_names(site):
    "The pages of a rendered site, without those that redirect"
    moved = {a.lstrip('/') for addresses in P.aliases(L.ROOT).values() for a in addresses}
    html = {f.relative_to(site).as_posix() for f in site.rglob('*.html')}
    return {n: n for n in sorted(html - moved) if not n.startswith('site_libs/')}


@pytest.fixture(scope='module')
def site(tmp_path_factory, request):
    "The address of the site, {(page, dark): address}, and whether Quarto rendered it"
    folder = tmp_path_factory.mktemp('pages')
    if quarto := 'SITE' in os.environ:
        folder = Path(os.environ['SITE']).resolve()
        names = {(n, dark): n for n in rendered_names(folder) for dark in (False, True)}
    elif quarto := bool(shutil.which('quarto')):
        proc, pages = processed(folder)
        folder, _ = P.render(proc)
        names = {(n, dark): p.html for n, p in pages.items() for dark in (False, True)}
    else:
        (folder / 'built').mkdir()
        proc, pages = processed(folder / 'built')
        shutil.copytree(proc / 'images', folder / 'images')
        names = {(n, dark): f'{n.replace("/", "-")}-{dark}.html' for n in pages for dark in (False, True)}
        for (n, dark), name in names.items():
            (folder / name).write_text(by_pandoc(pages[n], dark), encoding='utf-8')
    way = 'Quarto' if quarto else "pandoc with the site's style sheet"
    with request.config.pluginmanager.getplugin('capturemanager').global_and_fixture_disabled():
        print(f'\ntest_site: {len(names) // 2} pages, rendered by {way}')
    with B.serve(folder, L.settings()['doc_baseurl']) as address:
        yield address, {k: address + n for k, n in names.items()}, quarto


@pytest.fixture
def quarto_site(site):
    "The address of the site that Quarto has rendered; pandoc makes no search, navbar, scripts or redirects"
    address, _, quarto = site
    if not quarto:
        pytest.skip('Quarto did not render these pages')
    return address


def faults_of(d, name, width):
    "What is wrong with the page that the browser shows"
    if (scrolls := d.execute_script('return document.documentElement.scrollWidth')) > width:
        yield f'{name}: the page scrolls sideways, {scrolls} px'
    if (ends := d.execute_script(PATH_ENDS)) > width:
        yield f'{name}: the breadcrumb is clipped, it ends at {ends:.0f} px'
    yield from (f'{name}: {e}' for e in d.execute_script(TOO_WIDE))
    for text, ink, paper, opacity in d.execute_script(COLOURS, SMALL):
        ink, paper = ([int(float(o)) / 255 for o in re.findall(r'[\d.]+', c)[:3]] for c in (ink, paper))
        seen = [opacity * i + (1 - opacity) * p for i, p in zip(ink, paper)]
        if (found := contrast(tuple(seen), tuple(paper))) < 4.5:
            yield f'{name}: {text!r} has a contrast of {found:.1f}'
    for e in d.get_log('browser'):
        if e['level'] == 'SEVERE' and not OUTSIDE.search(e['message']):
            yield f'{name}: {e["message"]}'


@pytest.mark.parametrize('width', [1280, 390])
@pytest.mark.parametrize('dark', [False, True], ids=['light', 'dark'])
def test_nothing_is_cut(site, width, dark):
    faults = []
    with B.browser(width, 900, dark) as d:
        for (name, theme), address in site[1].items():
            if theme == dark:
                d.get(address)
                faults += faults_of(d, name, width)
    assert not faults, '\n'.join(faults)


def wait_for(d, seen):
    "Wait until the function `seen` of the browser gives something true, and return it"
    from selenium.webdriver.support.wait import WebDriverWait

    return WebDriverWait(d, 30).until(seen)


def results(d, query):
    "Titles and sections that the search of the site finds"
    d.execute_script("document.querySelector('#quarto-search button').click()")
    field = wait_for(d, lambda d: d.find_element('css selector', '.aa-DetachedOverlay input'))
    typed = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))"
    d.execute_script(typed, field, query)  # at once: each letter more is another query
    wait_for(d, lambda d: d.find_elements('css selector', '.search-result-container, .search-item'))
    return [e.text for e in d.find_elements('css selector', '.search-item')]


@pytest.mark.parametrize(
    'query, found',
    [
        ('running mean momentum', 'A chain of lerp'),
        ('momentum running mean', 'A chain of lerp'),
        ('fan gain init_weights', 'The one we use'),
        ('recalibrate', 'Recalibrate'),
    ],
)
def test_search(quarto_site, query, found):
    "The words of a query are found in any order, and formulas are no TeX"
    with B.browser() as d:
        d.get(quarto_site)
        texts = results(d, query)
    assert any(found in t for t in texts[:5]), texts
    assert not any(r'\(' in t or r'\frac' in t for t in texts)


MARKED = """
const names = [...document.querySelectorAll('.navbar .nav-link[aria-current]')].map(a => a.textContent.trim());
const bar = document.getElementById('quarto-sidebar').getBoundingClientRect();
const item = document.querySelector('#quarto-sidebar .sidebar-link.active').getBoundingClientRect();
return [names, item.top >= bar.top && item.bottom <= bar.bottom];
"""


@pytest.mark.parametrize(
    'page, part',
    [
        ('library/fused.html', 'Library'),
        ('exercises/projects.html', 'Exercises'),
        ('play/values.html', 'Play'),
        ('towards_90.html', 'Lessons'),
    ],
)
def test_reader_sees_where_he_is(quarto_site, page, part):
    "The navbar marks the part of the page, and the page itself is in sight in the sidebar"
    with B.browser(1280) as d:
        d.get(quarto_site + page)
        wait_for(d, lambda d: d.execute_script(MARKED) == [[part], True])


def test_printed_tables_scroll_on_a_phone(quarto_site):
    "Lines in columns stay lines where the screen is narrow; at a desk they wrap like the rest"
    for width, white in ((390, 'pre'), (1280, 'pre-wrap')):
        with B.browser(width) as d:
            d.get(quarto_site + 'why_batchnorm.html')
            style = "return getComputedStyle(document.querySelector('pre.columns')).whiteSpace"
            assert d.execute_script(style) == white


@pytest.mark.parametrize('old, new', [('core.html', 'library/core.html'), ('12b_axes.html', 'play/axes.html')])
def test_old_addresses(quarto_site, old, new):
    with B.browser() as d:
        d.get(quarto_site + old)
        wait_for(d, lambda d: d.current_url == quarto_site + new)


def test_a_fault_is_seen(tmp_path):
    "A picture, a table and a line that are too wide, and grey on grey"
    image = '<img width="2000" height="9" alt="wide">'
    table = '<table style="display:table;max-width:none;width:2000px"><tr><td>wide</td></tr></table>'
    long = f'<div class="cell-output"><pre style="white-space:pre">{"a line " * 90}</pre></div>'
    path = tmp_path / 'page.html'
    head = f'<style>{style(False)} main img {{ max-width: none; }}</style>'
    path.write_text(f'{head}<main>{image}{table}{long}</main>')
    with B.browser() as d:
        d.get(path.as_uri())
        assert [e.split(':')[0] for e in d.execute_script(TOO_WIDE)] == ['IMG', 'TABLE', 'PRE']
