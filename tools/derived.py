"""Files that are derived, never written by hand: `python tools/lint.py --fix` writes them, the lint compares them.

A page takes its place in the sidebar, the tables of lessons and library, the API page and llms.txt from
tools/order.yml.
"""

import ast, base64, re
from functools import lru_cache
from pathlib import Path

import yaml

APART = ('index.ipynb', '404.qmd')  # pages that belong to no part
HOME, API, LIBRARY = APART[0], 'api.qmd', 'Library'
MADE = 'Made by `python tools/lint.py --fix`: do not edit.'
ORDER = 'tools/order.yml'
LICENCES = {'apache2': 'Apache-2.0', 'mit': 'MIT'}


# ---- the order
@lru_cache(64)
def _parsed(text):
    return yaml.safe_load(text)


def order(root):
    "tools/order.yml: lessons, short, exercises, play, library, was"
    return _parsed((Path(root) / ORDER).read_text(encoding='utf-8'))


def parts(root):
    "{part: pages in order}, the names as below nbs/"
    o = order(root)
    res = {k: [f'{n}.ipynb' for n in ns] for k, ns in o['lessons'].items()}
    res['Exercises'] = [f'exercises/{n}.ipynb' for n in o.get('exercises', ())]
    res['Play'] = [f'play/{n}.qmd' for n in o.get('play', ())]
    res[LIBRARY] = [f'library/{n}.ipynb' for ns in o.get('library', {}).values() for n in ns] + [API]
    return {k: v for k, v in res.items() if v}


def part_of(root, name):
    "The part that the page `name` (its path below nbs/) belongs to, or None"
    return next((k for k, v in parts(root).items() if name in v), None)


def lessons(root):
    "Names of the lessons in order"
    return [f'{n}.ipynb' for ns in order(root)['lessons'].values() for n in ns]


def number_of(name):
    "The number of a lesson, as its file has it; none for other pages"
    m = re.match(r'(\d\d[a-d]?)_', name)  # 07b: the second half of 07
    return m[1] if m else ''


def site_pages(root):
    "Names of all pages of the site that are there"
    nbs = Path(root) / 'nbs'
    names = sorted(p.relative_to(nbs).as_posix() for e in ('*.ipynb', '*.qmd') for p in nbs.rglob(e))
    names = [n for n in names if not any(d.startswith(('_', '.')) for d in n.split('/')) and n != API]
    return names + [API]


def aliases(root):
    "{page: addresses that it had before}, from the root of the site"
    res = {}
    for old, new in order(root).get('was', {}).items():
        new = f'{new}.qmd' if new.startswith('play/') else f'{new}.ipynb'
        res.setdefault(new, []).append(f'/{old}.html')
    return res


def shelves(root, pages):
    "{shelf: modules in order}, from the bottom"
    module = {p.name: p.module for p in pages if p.module}
    library = {
        k: [module[n] for n in (f'library/{o}.ipynb' for o in ns) if n in module]
        for k, ns in order(root).get('library', {}).items()
    }
    taught = [module[n] for n in lessons(root) if n in module]
    return {'base': library.get('base', []), 'lessons': taught, 'tools': library.get('tools', [])}


def sidebar(root, pages):
    "nbs/sidebar.yml: each page once, by part, with the number of a lesson"
    title = lambda n: (title_of(root, n, pages)[0] or n).replace('"', "'")
    lines = [
        f'# {MADE}',
        'website:',
        '  sidebar:',
        '    style: floating',
        '    collapse-level: 1',
        '    contents:',
        f'      - href: {HOME}',
        '        text: Overview',
    ]
    for part, names in parts(root).items():
        lines += [f'      - section: {part}', '        contents:']
        for n in names:
            text = f'{number_of(n)} {title(n)}'.strip()
            if n == API:
                text = 'API'  # made at the same time
            elif part in ('Exercises', 'Play'):
                text = re.sub(f'^{part}: (.)', lambda m: m[1].upper(), text)
            lines += [f'          - href: {n}', f'            text: "{text}"']
    return '\n'.join(lines) + '\n'


def footer(cfg):
    "The foot of each page, in nbs/sidebar.yml: version, licence, how to cite"
    cite = f'{cfg["git_url"]}/blob/{cfg["branch"]}/CITATION.cff'
    left = f'{cfg["lib_name"]} {cfg["version"]}, {LICENCES[cfg["license"]]}'
    return f'  page-footer:\n    left: "{left}"\n    right: "[How to cite]({cite})"\n'


def title_of(root, name, pages):
    "(title, claim) of a page, None for what it lacks"
    page = next((p for p in pages if p.name == name), None)
    if not page and not (Path(root) / 'nbs' / name).exists():
        return [None, None]
    text = page.md if page else (Path(root) / 'nbs' / name).read_text(encoding='utf-8')
    pats = (r'^# +(.+)$', r'^> +(.+)$') if page else (r'^title: +"?(.+?)"?$', r'^description: +"?(.+?)"?$')
    return [m and m[1] for m in (re.search(p, text, re.M) for p in pats)]


def public(root, module):
    "(name, first line of its docstring) of the public functions and classes of a module of the course"
    path = Path(root) / 'course_lib' / (module.replace('.', '/') + '.py')
    if not path.exists():
        path = path.with_suffix('') / '__init__.py'
    if not path.exists():
        return
    tree = ast.parse(path.read_text(encoding='utf-8'))
    names = next(
        (ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == '__all__'), []
    )
    for n in tree.body:
        if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name in names:
            yield n.name, (ast.get_docstring(n) or '').split('\n')[0]


def api_groups(root):
    "tools/api.yml: what one wants to do -> names; empty where there is no such file"
    path = Path(root) / 'tools/api.yml'
    return _parsed(path.read_text(encoding='utf-8')) if path.exists() else {}


def public_names(root, pages):
    "Name -> (module, first line of its docstring) of every public function and class of the course"
    modules = [m for ms in shelves(root, pages).values() for m in ms]
    return {n: (m, d) for m in modules for n, d in public(root, m)}


def api(root, pages):
    "nbs/api.qmd: what one wants to do, the names for it with their first line, linked to their tables of parameters"
    home = {p.module: p.name for p in pages if p.module}
    known = public_names(root, pages)
    lines = [
        '---',
        'title: API',
        'description: "What one may want to do with `course_lib`, and the names for it."',
        '---',
        '',
        f'<!-- {MADE} -->',
        '',
        'Each name leads to its parameters, on the page that derives and tests it. A line such as '
        '`from course_lib.norms import BatchNorm` takes it from its module.',
    ]
    for group, names in api_groups(root).items():
        lines += ['', f'## {group}', '', '::: {.names}', '', '| name | module | what it is |', '|---|--|------|']
        for n in names:
            if n not in known:
                continue  # the lint says so
            module, what = known[n]
            text = what.replace('|', r'\|')
            lines.append(f'| [{n}]({home[module]}#{n.lower()}) | `{module}` | {text} |')
        lines += ['', ':::']
    return '\n'.join(lines) + '\n'


def llms(root, pages, cfg):
    "nbs/llms.txt: the course for language models, as llmstxt.org wants it"
    lines = [
        f'# {cfg["title"]}',
        '',
        f'> {cfg["description"]}.',
        '',
        f'The notebooks are the source of the library `{cfg["lib_name"]}`, of its tests and of the site '
        f'({cfg["git_url"]}).',
    ]
    for k, ps in parts(root).items():
        lines += ['', f'## {k}', '']
        for n in ps:
            title, claim = title_of(root, n, pages)
            if title:
                lines.append(f'- [{title}]({cfg["git_url"]}/blob/{cfg["branch"]}/nbs/{n}): {claim}')
    return '\n'.join(lines) + '\n'


def citation(root, pages, cfg):
    "CITATION.cff from settings.ini"
    licence = LICENCES[cfg['license']]
    return (
        '\n'.join(
            [
                f'# {MADE}',
                'cff-version: 1.2.0',
                'message: If the course helps your work, please cite it.',
                'type: software',
                f'title: "{cfg["title"]}"',
                f'abstract: "{cfg["description"]}."',
                'authors:',
                f'  - name: {cfg["author"]}',
                f'version: {cfg["version"]}',
                f'license: {licence}',
                f'repository-code: {cfg["git_url"]}',
                f'url: {cfg["doc_host"]}{cfg["doc_baseurl"]}',
                'keywords:',
                *(f'  - {k}' for k in cfg['keywords'].split()),
            ]
        )
        + '\n'
    )


# The figures that the course is introduced with: (page, label). Pictures and captions are those saved on the pages.
HIGHLIGHTS = [
    ('01_start.ipynb', 'fig-start-signal'),
    ('06_layernorm.ipynb', 'fig-fog'),
    ('09_runningbatchnorm.ipynb', 'fig-pairs'),
]


def highlights(pages):
    "(page, label, caption, alt text, PNG) of the figures that the course is introduced with, as far as they are saved"
    by = {p.name: p for p in pages}
    for name, label in HIGHLIGHTS:
        for c in by[name].code if name in by else ():
            if not re.search(rf'^#\| *label: *{label}$', c['source'], re.M):
                continue
            cap, alt = (
                re.search(rf'^#\| *{k}: *"(.*)"$', c['source'], re.M)[1].replace('\\"', '"')
                for k in ('fig-cap', 'fig-alt')
            )
            for o in c.get('outputs', []):
                if png := o.get('data', {}).get('image/png'):
                    yield name, label, cap, alt, base64.b64decode(''.join(png))


def highlight_cell(root, pages):
    "Markdown of those three figures, one below the other so that their print can be read, each with its page"
    figs = [
        f'[![{cap}](images/{label}.png){{fig-alt="{alt}"}}]({name})' for name, label, cap, alt, _ in highlights(pages)
    ]
    return '\n\n'.join(['<!-- highlights -->', '::: {layout-ncol="1"}', *figs, ':::'])


def mix(a, b, t):
    "The colour `a` with a share `t` of `b`"
    return '#' + ''.join(f'{round((1 - t) * int(a[i : i + 2], 16) + t * int(b[i : i + 2], 16)):02x}' for i in (1, 3, 5))


def theme(root, dark):
    "The site's colours: those of the figures"
    src = (Path(root) / 'course_lib/plot.py').read_text(encoding='utf-8')
    paper, ink, _ = re.search(r"^PAPER,INK,WARN = '(.*?)','(.*?)','(.*?)'", src, re.M).groups()
    blue, light, dim = (re.search(rf"\b{k}='(#\w+)'", src)[1] for k in ('batch', 'batch_detached', 'frozen'))
    ground, text = (mix(dim, '#000000', 0.3), paper) if dark else (paper, ink)
    muted = mix(ground, text, 0.8)
    link, code = (mix(light, '#ffffff', t) if dark else mix(blue, ink, u) for t, u in ((0.3, 0), (0.6, 0.5)))
    return f"""/*-- scss:defaults --*/
// {MADE}
$primary: {blue};
$body-bg: {ground};
$body-color: {text};
$link-color: {link};
$code-color: {code};
$code-bg: {mix(ground, text, 0.07)};
$navbar-padding-y: .5rem;
/*-- scss:rules --*/
html {{ scroll-padding-top: 5rem; }}
// figures keep their own paper, so their colours mean the same in both themes, and never leave the column
.cell-output-display img, .quarto-figure img {{ background: {paper}; border-radius: .4rem; }}
main img {{ max-width: 100%; height: auto; }}
{".cell-output-display img, .quarto-figure img { filter: brightness(.9); }" if dark else ""}
// tables and equations scroll by themselves; printed lines that are too long go on below
table {{ display: block; max-width: 100%; overflow-x: auto; }}
div.cell-output pre:not(.sourceCode), div.cell-output pre:not(.sourceCode) code {{
  white-space: pre-wrap; overflow-wrap: anywhere; }}
.math.display, mjx-container[display="true"] {{ max-width: 100%; overflow-x: auto; overflow-y: hidden; }}
pre, pre code {{ font-size: .72rem; }}
div.sourceCode {{ clear: right; }}
main :not(pre) > code {{ white-space: pre-wrap; overflow-wrap: anywhere; }}
td code, h1, h2, h3, h4, h5 {{ overflow-wrap: anywhere; }}
.names td:first-child code, .names td:first-child, .parameters td:first-child code {{
  white-space: nowrap; overflow-wrap: normal; }}
.names td:nth-child(2) code {{ white-space: nowrap; }}
.parameters td code {{ overflow-wrap: normal; }}
// what is small is still to be read
nav.quarto-page-breadcrumbs, nav.quarto-page-breadcrumbs a, .quarto-secondary-nav .breadcrumb-item a,
.breadcrumb-item::before, details > summary, .nav-page a, .nav-page-text, .nav-page i,
figcaption, .figure-caption, .caption,
.nav-footer, .nav-footer a {{ color: {muted} !important; opacity: 1; }}
.breadcrumb {{ background: none; padding-left: 0; padding-right: 0; }}
.quarto-secondary-nav .breadcrumb {{ display: block; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }}
.quarto-secondary-nav .quarto-page-breadcrumbs, .quarto-secondary-nav .breadcrumb {{ min-width: 0; }}
.quarto-secondary-nav .breadcrumb-item {{ display: inline; }}
.quarto-secondary-nav .breadcrumb-item::before {{ float: none !important; }}
strong a {{ font-weight: inherit; }}
.nav-page-previous, .nav-page-next {{ opacity: 1; }}
// the landing page
.hero p {{ font-size: 1.15rem; }}
.hero .btn {{ margin: 0 .6rem .6rem 0; }}
.hero .btn-outline-primary {{ color: {link}; border-color: {link}; }}
.contents-here {{ display: none; margin: .6rem 0 1rem; }}
@media (max-width: 767.98px) {{ .contents-here {{ display: block; }} }}
@media (max-width: 575.98px) {{
  main p {{ overflow-x: auto; overflow-y: hidden; overflow-wrap: break-word; }}
  main li, .csl-entry {{ overflow-wrap: anywhere; }}
  pre, pre code {{ font-size: .66rem; }}
  // what stands in columns scrolls by itself, and a shadow says where it goes on
  div.cell-output pre.columns, div.cell-output pre.columns code {{ white-space: pre; overflow-wrap: normal; }}
  div.cell-output pre.columns {{ overflow-x: auto; }}
  table, div.cell-output pre.columns {{ background:
    linear-gradient(to left, {ground} 40%, transparent) 100% 0 / 2.5rem 100% no-repeat local,
    linear-gradient(to left, {mix(ground, text, 0.4)}, transparent) 100% 0 / .8rem 100% no-repeat scroll; }}
  .names thead {{ display: none; }}
  .names td {{ display: block; }}
  .names td:not(:last-child) {{ padding-bottom: 0; border: 0; }}
  .parameters thead {{ display: none; }}
  .parameters tbody {{ display: block; }}
  .parameters tr {{ display: flex; flex-wrap: wrap; gap: 0 .8rem; padding: .4rem 0;
    border-bottom: 1px solid {mix(ground, text, 0.2)}; }}
  .parameters td {{ padding: 0; border: 0; }}
  .parameters td:last-child {{ flex-basis: 100%; }}
  main li pre, main li div.sourceCode {{ max-width: calc(100vw - 5rem); overflow-x: auto; }}
}}
"""


def minutes(page):
    "Minutes that a page takes to read: 200 words of prose, 20 lines of code or two figures a minute; in fives"
    lines = sum(len(c['source'].splitlines()) for c in page.code)
    figures = sum('fig-cap:' in c['source'] for c in page.code)
    return minutes_of(page.md, lines / 20 + figures / 2)


def minutes_of(text, more=0):
    "Minutes that a text in Markdown takes, and `more`; in fives"
    text = re.sub(r'```\{=html\}.*?```', '', text, flags=re.S)
    words = len(re.sub(r'\$\$.*?\$\$|\$[^$\n]+\$|\S{60,}', ' x ', text, flags=re.S).split())
    return max(5, 5 * round((words / 200 + more) / 5))


def lesson_tables(root, pages, folder=''):
    "The lessons by part (claim, minutes to read), then the library"
    here, taught, out = {p.name: p for p in pages}, set(lessons(root)), ['<!-- lessons -->']
    short = {f'{n}.ipynb' for n in order(root).get('short', ())}
    for part, names in parts(root).items():
        rows = []
        for n in names:
            title, claim = title_of(root, n, pages) if n in here else (None, None)
            if not title or not claim:
                continue
            if n in taught:
                link = f'**[{title}]({folder}{n})**' if n in short else f'[{title}]({folder}{n})'
                rows.append(f'| {number_of(n)} | {link}<br>{claim} | {minutes(here[n])} |')
            elif part == LIBRARY:
                rows.append(f'| `{here[n].module}` | [{title}]({folder}{n})<br>{claim} |')
        if rows and part == LIBRARY:
            out += [
                '',
                '### The library',
                '',
                'How the course is built, to be looked up.',
                '',
                '<details>',
                '<summary>All modules</summary>',
                '',
                '::: {.names}',
                '',
                '| module | page |',
                '|---|---------|',
                *rows,
                '',
                ':::',
                '',
                '</details>',
            ]
        elif rows:
            out += ['', f'### {part}', '', '| | lesson | min |', '|--|--------------------------|--|', *rows]
    return '\n'.join(out).replace('-->\n\n', '-->\n', 1)


def short_path(root, pages):
    "The few lessons that tell the story, with the minutes that the table gives them"
    here = {p.name: p for p in pages}
    named = [f'{n}.ipynb' for n in order(root).get('short', ()) if f'{n}.ipynb' in here]
    links = [f'[{title_of(root, n, pages)[0]}]({n})' for n in named]
    if not links:
        return '<!-- short -->'
    total = sum(minutes(here[n]) for n in named)
    return (
        f'<!-- short -->\n\n**Short of time?** These lessons tell the story: {", ".join(links[:-1])} and {links[-1]}. '
        f'Reading them takes about {total} minutes. In the table they are bold.'
    )


def module_imports(root):
    "{module: modules of the course that it imports}, without those inside functions"
    lib = Path(root) / 'course_lib'
    names = {p: '.'.join(p.relative_to(lib).with_suffix('').parts).removesuffix('.__init__') for p in lib.rglob('*.py')}
    known, res = set(names.values()), {}
    for path, name in names.items():
        package = path.relative_to(lib).parent.parts
        found = set()
        for n in ast.parse(path.read_text(encoding='utf-8')).body:
            if not isinstance(n, ast.ImportFrom) or not n.level:
                continue
            base = [*package[: len(package) - n.level + 1], *(n.module or '').split('.')]
            base = '.'.join(o for o in base if o)
            found |= {base} if base in known and base else {f'{base}.{a.name}'.strip('.') for a in n.names}
        res[name] = found & known - {name}
    return res


def import_drawing(root, pages):
    "Shelves and imports as text, for CONTRIBUTING.md: tools at the top, each module with what it imports"
    direct, shelf = module_imports(root), shelves(root, pages)
    every = [m for ms in shelf.values() for m in ms]
    wide = max(map(len, every), default=0)
    lines = []
    for k in reversed(list(shelf)):
        lines += [f'{k}:'] + [
            f'  {m:{wide}} <- {" ".join(o for o in every if o in direct.get(m, ())) or "-"}' for m in reversed(shelf[k])
        ]
    return '\n'.join(lines)


def contract(root, pages):
    "The configuration of import-linter: base < lessons < tools, and every module on a shelf"
    shelf = {k: list(dict.fromkeys(m.split('.')[0] for m in ms)) for k, ms in shelves(root, pages).items()}
    lines = [
        f'# {MADE}',
        '[importlinter]',
        'root_package = course_lib',
        '',
        '[importlinter:contract:shelves]',
        'name = base < lessons < tools',
        'type = layers',
        'containers = course_lib',
        'exhaustive = true',
        'exhaustive_ignores =',
        '    _modidx',
        'layers =',
    ]
    return '\n'.join(lines + [f'    {" : ".join(shelf[k])}' for k in reversed(list(shelf)) if shelf[k]]) + '\n'


# file: how it is made from (root, pages, settings)
DERIVED = {
    'nbs/sidebar.yml': lambda r, ps, cfg: sidebar(r, ps) + footer(cfg),
    'nbs/api.qmd': lambda r, ps, cfg: api(r, ps),
    'nbs/light.scss': lambda r, ps, cfg: theme(r, False),
    'nbs/dark.scss': lambda r, ps, cfg: theme(r, True),
    'nbs/llms.txt': llms,
    'CITATION.cff': citation,
    '.importlinter': lambda r, ps, cfg: contract(r, ps),
}


def derived(root, pages, cfg):
    "(file, bytes) of everything that is derived"
    root = Path(root)
    for f, make in DERIVED.items():
        if 'scss' in f and not (root / 'course_lib/plot.py').exists():
            continue
        yield f, make(root, pages, cfg).encode()
    for _, label, _, _, png in highlights(pages):
        yield f'nbs/images/{label}.png', png


# what the landing page says that the pages know: first line of the cell -> its text
CELLS = {'<!-- lessons -->': lesson_tables, '<!-- highlights -->': highlight_cell, '<!-- short -->': short_path}
