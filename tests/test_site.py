"""The pages as a reader sees them, in a real browser: nothing is cut, nothing scrolls sideways, all can be read.

Where Quarto is on the PATH it renders them; else pandoc does, with the rules of the site's own style sheet.
"""

import base64
import json
import re
import shutil
import subprocess

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
WITH = 'Quarto' if shutil.which('quarto') else "pandoc and the site's style sheet"
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
const cut = e => e.tagName == 'PRE' && e.scrollWidth > e.clientWidth + 1;
return [...document.querySelectorAll('main img, main table, main .cell-output pre:not(.sourceCode)')]
  .filter(e => e.getClientRects().length && !e.closest('[id^=norm-axes]') && (out(e) || cut(e)))
  .map(e => e.tagName + ': ' + (e.alt || e.textContent).slice(0, 60));
"""
SMALL = 'nav.quarto-page-breadcrumbs a, details > summary, .nav-page a, figcaption, .nav-footer p, .caption'
COLOURS = """
const solid = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
  if (!/, 0\\)$|transparent/.test(c)) return c; } return getComputedStyle(document.body).backgroundColor; };
return [...document.querySelectorAll(arguments[0])].filter(e => e.getClientRects().length)
  .map(e => [e.textContent.trim().slice(0, 40), getComputedStyle(e).color, solid(e)]);
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
    nb = json.loads(page.path.read_text(encoding='utf-8'))
    drawn = [o for c in nb['cells'] for o in c.get('outputs', []) if 'image/png' in o.get('data', {})]
    markdown = P.as_quarto_joins(nb)
    for o in drawn:
        markdown = markdown.replace('![](figure.png)\n', picture(o), 1)
    command = ['pandoc', '--from=markdown-citations', '--to=html', '--mathml']
    body = subprocess.run(command, input=markdown, capture_output=True, encoding='utf-8', check=True).stdout
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><style>{style(dark)}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body><main>{body}</main></body></html>'


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "From the name of a page and a theme to its address"
    folder = tmp_path_factory.mktemp('pages')
    proc = P.build(folder)
    built = {p.name: p for p in P.read_pages(proc) if p.nb}
    print(f'\nrendered by {WITH}')
    if shutil.which('quarto'):
        rendered, _ = P.render(proc)
        return {(n, dark): (rendered / p.html).as_uri() for n, p in built.items() for dark in (False, True)}
    addresses = {}
    shutil.copytree(proc / 'images', folder / 'images')
    for n, p in built.items():
        for dark in (False, True):
            path = folder / f'{n.replace("/", "-")}-{dark}.html'
            path.write_text(by_pandoc(p, dark), encoding='utf-8')
            addresses[n, dark] = path.as_uri()
    return addresses


@pytest.mark.parametrize('width,dark', [(1280, False), (390, False), (1280, True)])
def test_nothing_is_cut(site, width, dark):
    faults = []
    with B.browser(width, 900, dark) as d:
        for (name, theme), address in site.items():
            if theme != dark:
                continue
            d.get(address)
            if (scrolls := d.execute_script('return document.documentElement.scrollWidth')) > width:
                faults.append(f'{name}: the page scrolls sideways, {scrolls} px')
            faults += [f'{name}: {e}' for e in d.execute_script(TOO_WIDE)]
            for text, ink, paper in d.execute_script(COLOURS, SMALL):
                rgb = [tuple(int(float(o)) / 255 for o in re.findall(r'[\d.]+', c)[:3]) for c in (ink, paper)]
                if (found := contrast(*rgb)) < 4.5:
                    faults.append(f'{name}: {text!r} has a contrast of {found:.1f}')
            severe = [e['message'] for e in d.get_log('browser') if e['level'] == 'SEVERE']
            faults += [f'{name}: {m}' for m in severe if not re.search('ERR_INTERNET_DISCONNECTED|ERR_NAME_NOT', m)]
    assert not faults, '\n'.join(faults)


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
