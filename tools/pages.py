"""The site: built and checked. `python tools/pages.py [--out DIR] [--site DIR]`

The pages are processed by nbdev (`nbdev.serve.proc_nbs`) in a folder of their own and checked there: links, anchors,
images, citations, figures, the sidebar and the tables of parameters. Each page is then put together as Quarto does it
and read by pandoc, line by line against its notebook. That needs no Quarto. Where `quarto` is on the PATH, the same
command renders the site and checks its HTML too; `--site` says where the rendered site goes.
"""

import argparse, ast, base64, json, re, shutil, subprocess, sys, tempfile
from collections import Counter
from html.parser import HTMLParser
from itertools import takewhile, zip_longest
from os.path import commonprefix
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mistune, yaml
import doc_tables as T
import lint as L
import readable
from derived import APART, LIBRARY, aliases, minutes, minutes_of, number_of, part_of, parts, site_pages

BUILD = (
    'from nbdev.quarto import refresh_quarto_yml\nfrom nbdev.serve import proc_nbs\n'
    'if __name__=="__main__": refresh_quarto_yml(); print(proc_nbs(n_workers=2, force=True))'
)
MACHINE = re.compile(
    r'(?:/usr|/opt|/var|/private|/Users|/content)/[\w./-]*|[A-Z]:\\\\\w+|\S*site-packages\S*|ipykernel_\d+'
)
OBJECT = re.compile(
    r"<module '([\w.]+)' from '[^']*'>|<(?:function|class|built-in function) '?([\w.]+)'?(?: at 0x\w+)?>"
)
READ_ONLY = '\n\nOn this site an exercise can be read, not solved: the button opens the page where its cells run.'
NBDEV_FOLD = '#| code-fold: show\n#| code-summary: "Exported source"\n'
LIBRARY_FOLD = '#| code-fold: true\n#| code-summary: "Source"\n'
FORM = re.compile(r'^# @title (.*)\n', re.M)  # the title of a folded cell in Colab
NOISE = re.compile(r'Traceback \(most recent call last\)|^.*\b\w*Warning: .*$|\x1b\[| at 0x[0-9a-f]{6,}', re.M)


# ---- build
def build(out, root=L.ROOT):
    "Process the pages of `root` in the folder `out`; returns the folder that Quarto would render"
    out = Path(out)
    for f in ('settings.ini', '_quarto.yml', 'nbs', 'course_lib'):
        src = Path(root) / f
        if src.is_dir():
            shutil.copytree(
                src, out / f, symlinks=True, ignore=shutil.ignore_patterns('.*', '__pycache__', 'nbdev.yml')
            )
        else:
            shutil.copy(src, out / f)
    for f in sorted((out / 'nbs/library').glob('*.ipynb')):
        nb = json.loads(f.read_text(encoding='utf-8'))
        nb['cells'] = [new for c in nb['cells'] for new in with_source(c)]
        f.write_text(json.dumps(nb, indent=1, ensure_ascii=False), encoding='utf-8')
    res = subprocess.run([sys.executable, '-W', 'ignore', '-c', BUILD], cwd=out, capture_output=True, text=True)
    if res.returncode:
        raise RuntimeError(f'nbdev could not process the pages:\n{res.stderr[-3000:]}')
    finish(out / '_proc', root)
    return out / '_proc'


EXPORTED = re.compile(r'((?:^#\|.*\n)*?)^#\| *(export|exports|exporti) *\n((?:^#\|.*\n)*)', re.M)


def pieces(code):
    "The text of a cell cut behind each definition, and what each piece defines"
    lines, begin = code.splitlines(keepends=True), 0
    body = ast.parse(code).body
    for n, later in zip_longest(body, body[1:]):
        if later is None or isinstance(n, (ast.FunctionDef, ast.ClassDef)):
            end = n.end_lineno if later else len(lines)
            yield ''.join(lines[begin:end]).strip('\n'), getattr(n, 'name', '')
            begin = end


def summary_of(piece):
    "What stands on the fold of a piece that has no entry: the names that it gives, three at most"
    names = []
    for n in ast.parse(piece).body:
        if isinstance(n, (ast.FunctionDef, ast.ClassDef)):
            names.append(n.name)
        elif isinstance(n, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            stored = [o for t in getattr(n, 'targets', None) or [n.target] for o in ast.walk(t)]
            names += [o.id for o in stored if isinstance(o, ast.Name)]
    shown = ', '.join(dict.fromkeys(names[:3]))
    return f'Source of {shown}{" …" * (len(names) > 3)}' if shown else 'Source'


def with_source(cell):
    """A cell of a library page as cells of the site: each definition by itself, below its entry if it is public, its
    source folded. nbdev would hide the source of what is exported, and list several definitions last to first."""
    source = ''.join(cell['source'])
    head = EXPORTED.match(source) if cell['cell_type'] == 'code' else None
    code = source[head.end() :] if head else ''
    if not head:
        return [cell]
    imports = ast.Import, ast.ImportFrom
    if all(isinstance(n, imports) or ast.unparse(n).startswith('_all_ =') for n in ast.parse(code).body):
        return [cell]
    made = []
    for i, (piece, name) in enumerate(pieces(code)):
        own = dict(cell, id=f'{cell["id"][:56]}-{i}', outputs=[])
        if head[2] == 'exporti' or not name or name.startswith('_'):  # no entry: run for what comes behind, and shown
            made.append(dict(own, source=as_lines(f'#| exporti\n{piece}')))
            shown = f'#| code-fold: true\n#| code-summary: "{summary_of(piece)}"\n#| eval: false\n{piece}'
            made.append(dict(own, id=own['id'] + '-s', source=as_lines(shown)))
        else:
            made.append(dict(own, source=as_lines(f'{head[1]}#| exports\n{head[3]}{piece}')))
    made[-1]['outputs'] = cell['outputs']
    return made


def as_lines(source):
    "The source of a cell as it has to be written: from one string Quarto loses the line breaks"
    return source.splitlines(keepends=True)


def unformed(source):
    "A cell without its title for Colab, which on the site names the fold"
    title = FORM.search(source)
    if title and '#| code-summary:' not in source:
        source = source.replace(
            '#| code-fold: true\n', f'#| code-fold: true\n#| code-summary: {json.dumps(title[1])}\n', 1
        )
    return FORM.sub('', source)


def unnumbered(cell):
    "A cell that draws once something is predicted, without the caption of a figure that is not there"
    drawn = any(k.startswith('image/') for o in cell.get('outputs', []) for k in o.get('data', {}))
    return (
        cell['source']
        if drawn
        else re.sub(r'^#\| *(?:label: *fig-|fig-cap:|fig-alt:).*\n', '', cell['source'], flags=re.M)
    )


def module_file(module, cfg, root):
    "The file of a module, which may be a package's"
    path = Path(root) / cfg['lib_path'] / (module.replace('.', '/') + '.py')
    return path if path.exists() else path.with_suffix('') / '__init__.py'


def source_link(name, module, cfg, root):
    "The link to a definition that `show_doc` leaves out: in a package's own file, or made by a decorator"
    path = module_file(module, cfg, root)
    line = next(
        (n.lineno for n in ast.parse(path.read_text(encoding='utf-8')).body if getattr(n, 'name', '') == name), None
    )
    address = f'{cfg["git_url"]}/blob/{cfg["branch"]}/{path.relative_to(root).as_posix()}#L{line}'
    return f'[source]({address}){{target="_blank" style="float:right; font-size:smaller"}}\n\n' if line else ''


def gather_links(cells):
    "The links of all definitions of a cell above it, each with its name: nbdev puts all but the first below"
    shown = lambda c: ''.join(c['outputs'][0]['data']['text/markdown']) if c.get('has_sd') and c.get('outputs') else ''
    for c in [c for c in cells if c['cell_type'] == 'code' and NBDEV_FOLD in c['source']]:
        body = ast.parse(c['source']).body
        names = {n.name.lower(): n.name for n in body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
        links = {m[1]: d for d in cells if (m := T.ANCHOR.match(shown(d))) and m[1] in names}
        for key, d in links.items():
            cells.remove(d)
            if len(links) > 1:
                data = d['outputs'][0]['data']
                data['text/markdown'] = shown(d).replace('[source](', f'[{names[key]}](', 1)
        at = cells.index(c)
        cells[at:at] = [links[key] for key in reversed(names) if key in links]  # they float: the first stands rightmost


def about(page):
    "What stands behind the badge: the minutes of a lesson or exercise, the module of a page of the library"
    if page.is_lesson or page.is_exercise:
        return f' About {minutes(page)} minutes to read.'
    return f' Module `course_lib.{page.module}`.' if page.module else ' No module of its own.'


def finish(proc, root=L.ROOT):
    "What nbdev leaves open: badge and minutes under the title, links without an entry, modules as defaults, stars"
    cfg, pages = L.settings(root), {p.name: p for p in L.pages_of(root)}
    built, old = read_pages(proc), aliases(root)
    ids = {p.html: p.ids for p in built}
    base = re.escape(cfg['doc_host'] + cfg['doc_baseurl'])

    def link(m):
        name, html, anchor = m.groups()
        known = ids.get(html, ())
        if anchor in known:
            return m[0]
        whole = anchor.split('.')[0]
        return m[0].replace('#' + anchor, '#' + whole) if whole in known else name

    for p in built:
        if not p.nb:  # a page without code: its minutes, too, where a page of a part has them
            if part_of(root, p.name) not in (None, LIBRARY):
                front, text = re.match(r'(---\n.*?\n)---\n(.*)', p.path.read_text(encoding='utf-8'), re.S).groups()
                front += f'aliases: [{", ".join(old.get(p.name, ()))}]\n' * (p.name in old) + '---\n'
                p.path.write_text(f'{front}\nAbout {minutes_of(text)} minutes to read.\n{text}', encoding='utf-8')
            continue
        for c in p.nb['cells']:
            for o in c.get('outputs', []) if c.get('has_sd') else ():
                for k, v in o.get('data', {}).items():
                    o['data'][k] = OBJECT.sub(lambda m: m[1] or m[2], ''.join(v))
                if md := o.get('data', {}).get(
                    'text/markdown'
                ):  # the star of a shape (N, C, *) in a docstring is no emphasis
                    code, fence, doc = md.rpartition('```')
                    md = code + fence + re.sub(r'(?<=[(, ])\*(?=[),])', r'\\*', doc)
                    name = T.HEADING.search(md)
                    if name and not T.SOURCE.search(md):
                        md = md.replace(
                            '---\n\n',
                            '---\n\n' + source_link(name[1].replace('\\', ''), pages[p.name].module, cfg, root),
                            1,
                        )
                    lesson = part_of(root, p.name) not in (None, LIBRARY)
                    path = module_file(pages[p.name].module, cfg, root) if pages[p.name].module else None
                    o['data']['text/markdown'] = T.anchor(md) if lesson else T.rewritten(md, path)
            if c['cell_type'] == 'markdown':  # a name that the author linked himself keeps his link
                c['source'] = re.sub(rf'\[\[(`[^`]+`)\]\({base}[^)]*\)\]', r'[\1]', c['source'])
                c['source'] = re.sub(rf'\[(`[^`]+`)\]\({base}([\w./-]+)#([\w.]+)\)', link, c['source'])
        if pages[p.name].is_lesson:
            gather_links(p.nb['cells'])
        if part_of(root, p.name) is not None:
            badge, _ = L.colab_parts(p.name, cfg)
            if pages[p.name].is_exercise:
                for c in p.nb['cells']:
                    c['source'] = unnumbered(c) if c['cell_type'] == 'code' else c['source']
            unread = READ_ONLY * pages[p.name].is_exercise
            source = badge + about(pages[p.name]) + unread
            p.nb['cells'].insert(1, dict(cell_type='markdown', id='head', metadata={}, source=source))
        if n := number_of(p.name):  # a lesson has its number in title and search
            front = p.nb['cells'][0]
            front['source'] = re.sub(
                r'^title: *[\'"]?(.*?)[\'"]?$', lambda m: f'title: "{n} {m[1]}"', front['source'], count=1, flags=re.M
            )
        if p.name in old:  # addresses that the page had before lead to it
            front = p.nb['cells'][0]
            front['source'] = re.sub(r'\n---\s*$', f'\naliases: [{", ".join(old[p.name])}]\n---\n', front['source'])
        for c in p.nb['cells']:
            if p.name.startswith('library/') and c['cell_type'] == 'code':
                c['source'] = c['source'].replace(NBDEV_FOLD, LIBRARY_FOLD)
            c['source'] = as_lines(unformed(c['source']) if c['cell_type'] == 'code' else c['source'])
        p.path.write_text(json.dumps(p.nb, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')


# ---- what stands on a processed page
_md = mistune.create_markdown(renderer='ast', plugins=['table', 'math', 'footnotes', 'strikethrough'])


def tokens(ts):
    for t in ts or []:
        yield t
        yield from tokens(t.get('children'))


def plain(t):
    "The text of a token without its marks"
    return t.get('raw', '') if 'children' not in t else ''.join(plain(c) for c in t['children'])


def auto_id(text):
    "The anchor that pandoc gives a heading"
    s = re.sub(r'\s+', '-', re.sub(r'[^\w\s.-]', '', text).strip().lower())
    return re.sub(r'^[\W\d_]+', '', s) or 'section'


class Built:
    "A processed page: its ids, links, images, citations and cells"

    def __init__(self, path, proc):
        self.path, self.name = Path(path), Path(path).relative_to(proc).as_posix()
        text = self.path.read_text(encoding='utf-8')
        self.nb = json.loads(text) if self.path.suffix == '.ipynb' else None
        if self.nb:
            for c in self.nb['cells']:
                c['source'] = ''.join(c['source'])
            self.cells = self.nb['cells']
        else:
            self.cells = [dict(cell_type='markdown', source=text, id='text')]
        front = self.cells[0]['source'] if self.cells else ''
        m = re.match(r'---\n(.*?)\n---', front, re.S)
        self.front = (yaml.safe_load(m[1]) or {}) if m else {}
        here = Path(self.name)
        self.html = (here.parent / self.front.get('output-file', here.with_suffix('.html').name)).as_posix()
        self.ids, self.links, self.images, self.keys, self.raw = set(), [], [], [], []
        seen = Counter()
        for c in self.cells:
            if c['cell_type'] == 'code':
                for d, v in re.findall(r'^#\| *(label): *(\S+)', c['source'], re.M):
                    self.ids.add(v)
                texts = [''.join(o.get('data', {}).get('text/markdown', '')) for o in c.get('outputs', [])]
            else:
                texts = [re.sub(r'\A---\n.*?\n---', '', c['source'], flags=re.S)]
            for t in texts:
                self.scan(t, seen)

    def scan(self, text, seen):
        self.ids |= set(re.findall(r'\{[^}\n]*#([\w:.-]+)[^}\n]*\}', text))
        raw = re.findall(r'```\{=html\}\n(.*?)\n```', text, re.S)
        text = re.sub(r'```\{=html\}\n.*?\n```', '', text, flags=re.S)
        for t in tokens(_md(re.sub(r'\$\$.*?\$\$', ' ', text, flags=re.S))):
            k = t['type']
            if k == 'heading':
                own = re.search(r'\{[^}]*#([\w:.-]+)[^}]*\}\s*$', plain(t))
                i = own[1] if own else auto_id(plain(t))
                self.ids.add(f'{i}-{seen[i]}' if seen[i] and not own else i)
                seen[i] += 1
            elif k == 'link':
                self.links.append(t['attrs']['url'])
            elif k == 'image':
                self.images.append((t['attrs']['url'], plain(t)))
            elif k in ('block_html', 'inline_html'):
                raw.append(t['raw'])
            elif k == 'text':
                self.keys += re.findall(r'(?<![\w@.])-?@([A-Za-z][\w:-]*\w)', t['raw'])
        for r in raw:
            h = Html(r)
            self.ids |= h.ids
            self.links += h.links
            self.images += h.images


class Html(HTMLParser):
    "Ids, links and images of a piece of HTML"

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.ids, self.links, self.images = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if a.get('id'):
            self.ids.add(a['id'])
        if tag == 'a' and a.get('name'):
            self.ids.add(a['name'])
        if tag in ('a', 'link') and a.get('href') is not None:
            self.links.append(a['href'])
        if tag == 'img':
            self.images.append((a.get('src') or '', a.get('alt') or ''))
        if tag in ('script', 'iframe') and a.get('src'):
            self.links.append(a['src'])


def read_pages(proc):
    ps = sorted(p for e in ('*.ipynb', '*.qmd') for p in Path(proc).rglob(e))
    return [Built(p, proc) for p in ps if not any(d.startswith(('_', '.')) for d in p.relative_to(proc).parts)]


# ---- rules: each yields messages
def check_links(pages, proc, root=L.ROOT):
    "Every link of the site leads somewhere: page, anchor, file, source line, citation"
    cfg = L.settings(root)
    site, blob = cfg['doc_host'] + cfg['doc_baseurl'], f'{cfg["git_url"]}/blob/{cfg["branch"]}/'
    by = {p.name: p for p in pages} | {p.html: p for p in pages}
    cited = (
        set(re.findall(r'^@\w+\{([^,\s]+),', bib.read_text(encoding='utf-8'), re.M))
        if (bib := Path(proc) / 'references.bib').exists()
        else set()
    )
    for p in pages:
        for url in [*p.links, *(u for u, _ in p.images)]:
            for where in (blob, blob.replace('github.com', 'colab.research.google.com/github')):
                if url.startswith(where):
                    f, _, line = url.removeprefix(where).partition('#L')
                    if not (Path(root) / f).exists():
                        yield f'{p.name}: link to a file that is not there: {url}'
                    elif line and int(line.split('-')[0]) > len(
                        (Path(root) / f).read_text(encoding='utf-8').splitlines()
                    ):
                        yield f'{p.name}: no such line: {url}'
            if url.startswith(site):
                url = '/' + url.removeprefix(site)
            parts_ = urlsplit(url)
            if parts_.scheme or parts_.netloc:
                continue
            target, anchor = unquote(parts_.path), unquote(parts_.fragment)
            folder = Path('') if target.startswith('/') else Path(p.name).parent
            target = target.lstrip('/')
            if not target:
                q = p if not url.startswith('/') else by.get('index.html')
            else:
                name = Path(*[d for d in (folder / target).parts if d != '.']).as_posix()
                while '/../' in '/' + name:
                    name = re.sub(r'(?:^|/)[^/]+/\.\.(?=/|$)', '', name, count=1).lstrip('/')
                q = by.get(name)
                if q is None:
                    if not (Path(proc) / name).is_file():
                        yield f'{p.name}: broken link {url}'
                    continue
            if anchor and anchor not in q.ids:
                yield f'{p.name}: no anchor #{anchor} on {q.name}'
        for k in p.keys:
            if re.match(r'(fig|eq|tbl|sec|lst|thm)-', k):
                if k not in p.ids:
                    yield f'{p.name}: @{k} refers to nothing'
            elif k not in cited:
                yield f'{p.name}: @{k} is not in references.bib'


WIDEST = 640  # px: in a wider figure, text of ten points has fewer than seven pixels and a half on a phone


def width_of(image):
    "The width of a figure on the page, in px: half of its PNG's"
    return int.from_bytes(base64.b64decode(''.join(image))[16:20], 'big') // 2


def check_pages(pages):
    "Title and claim; figures with caption and alt text; outputs without noise or machine paths"
    for p in pages:
        for k in ('title', 'description'):
            if not p.front.get(k) and p.name not in APART:
                yield f'{p.name}: no {k}'
        for u, alt in p.images:
            if not alt.strip():
                yield f'{p.name}: image {u} without alt text'
        for c in p.cells:
            if c['cell_type'] == 'markdown' and (m := re.search(r'(?<!!)\[\[[^]]+\]\([^)]*\)[^]]*\]\(', c['source'])):
                yield f'{p.name}: a link in a link: {m[0][:60]}'
        for c in p.cells:
            drawn = any(k.startswith('image/') for o in c.get('outputs', []) for k in o.get('data', {}))
            captioned = re.search(r'^#\| *fig-cap:', c['source'], re.M)
            if captioned and not drawn and not p.name.startswith('exercises/'):  # they draw what is predicted
                yield f'{p.name}: cell {c["id"]}: a caption without its figure'
            if drawn:
                for d in ('fig-cap', 'fig-alt'):
                    if not re.search(rf'^#\| *{d}: *\S', c['source'], re.M):
                        yield f'{p.name}: cell {c["id"]}: figure without {d}'
            for o in c.get('outputs', []):
                if (image := o.get('data', {}).get('image/png')) and (w := width_of(image)) > WIDEST:
                    yield f'{p.name}: cell {c["id"]}: a figure of {w} px is too wide to be read on a phone'
                if o['output_type'] == 'error' or o.get('name') == 'stderr':
                    yield f'{p.name}: cell {c["id"]}: a saved error or warning'
                text = ''.join(o.get('text', '')) + '\n'.join(
                    ''.join(v) for k, v in o.get('data', {}).items() if k.startswith('text/')
                )
                for rule, what in (
                    (NOISE, 'an error or warning'),
                    (MACHINE, 'a machine path'),
                    (L.FORBIDDEN, 'a machine path'),
                ):
                    if m := rule.search(text):
                        yield f'{p.name}: cell {c["id"]}: {what} in an output: {m[0][:80]}'


def check_sidebar(pages, proc, root=L.ROOT):
    "Each page once, in its part, in the order of tools/order.yml"
    bar = yaml.safe_load((Path(proc) / 'sidebar.yml').read_text(encoding='utf-8'))['website']['sidebar']['contents']
    found = {
        e['section']: [c if isinstance(c, str) else c['href'] for c in e['contents']] for e in bar if 'section' in e
    }
    names = [n for ns in found.values() for n in ns]
    here = {p.name for p in pages} - set(APART)
    for n, k in Counter(names).items():
        if k > 1:
            yield f'sidebar: {n} stands there {k} times'
        if n not in here:
            yield f'sidebar: {n} is no page'
    for n in sorted(here - set(names)):
        yield f'sidebar: {n} is missing'
    for part, ns in found.items():
        for n in ns:
            if part_of(root, n) != part:
                yield f'sidebar: {n} stands in {part}, not in {part_of(root, n)}'
        if ns != [n for n in parts(root).get(part, ()) if n in ns]:
            yield f'sidebar: {part} is not in the order'


COMMENTS_MISSING = set()


def check_api(pages, root=L.ROOT):
    "Every public name has its table (the API page links there), and every public parameter its comment"
    bare_ok = set(inherited(root))
    for p in pages:
        for c in p.cells:
            if not c.get('has_sd'):
                continue
            md = ''.join(''.join(o.get('data', {}).get('text/markdown', '')) for o in c.get('outputs', []))
            name = (re.search(r'^#+ (.+)$', md, re.M) or [0, '?'])[1].replace('\\', '')
            if re.search(r'^raise|Error', md) and name == '?':
                yield f'{p.name}: show_doc of {name} failed'
            bare = [
                a for a in T.uncommented(md) if a != 'learn'
            ]  # a callback's hooks get the learner, as `Callback` says
            if public_name(name) and name != '?' and '[source](' not in md:
                yield f'{p.name}: {name}: no link to its source'
            if bare and public_name(name) and name not in bare_ok and p.name not in COMMENTS_MISSING:
                yield f'{p.name}: {name}: no comment for {", ".join(bare)}'


def inherited(root):
    "Classes whose parameters have no line of their own: inherited, or fields of a dataclass that are commented"
    for f in (Path(root) / 'course_lib').rglob('*.py'):
        lines = (text := f.read_text(encoding='utf-8')).splitlines()
        for n in ast.parse(text).body:
            if isinstance(n, ast.ClassDef) and not any(getattr(o, 'name', '') == '__init__' for o in n.body):
                fields = [o for o in n.body if isinstance(o, ast.AnnAssign)]
                if all(' # ' in lines[o.lineno - 1] for o in fields):
                    yield n.name


def public_name(n):
    return not any(o.startswith('_') for o in n.split('.'))


# ---- lines: what a reader sees of a page, found out without Quarto
# Quarto's reading of a notebook is that of src/core/jupyter/jupyter.ts in its repository, the same in 1.5 to 1.9.
OPTION = re.compile(r'#\s*\| ?')
HIDDEN = re.compile(r'^#\| *(?:hide|export|exporti|default_exp)(?![\w:])', re.M)  # cells that nbdev takes off the page


def quarto_lines(source):
    "The lines of a cell as Quarto takes them: a list as it is, a string cut up without its line breaks"
    return re.split(r'\r?\n', source) if isinstance(source, str) else source


def fenced(text, attributes=''):
    "A block of code in a fence that is longer than any in the text"
    ticks = '`' * max([3, *(len(t) + 1 for t in re.findall('^`{3,}', text, re.M))])
    return f'{ticks}{attributes}\n{text.rstrip()}\n{ticks}\n'


def output_markdown(output):
    "What Quarto writes for an output"
    data = output.get('data', {})
    if 'text/markdown' in data:
        return ''.join(data['text/markdown']) + '\n'
    if any(k.startswith('image/') for k in data):
        return '![](figure.png)\n'
    return fenced(''.join(output.get('text') or data.get('text/plain', '')))


def as_quarto_joins(nb):
    "The Markdown that Quarto makes of a notebook and hands to pandoc, without labels, captions and pictures"
    parts = []
    for c in nb['cells']:
        lines = quarto_lines(c['source'])
        if c['cell_type'] != 'code':
            parts.append(''.join(lines).removesuffix('\n') + '\n')
            continue
        options = list(takewhile(OPTION.match, lines))
        code = ''.join(lines[len(options) :]).lstrip('\n')
        md = '' if any('echo: false' in o for o in options) else fenced(code, ' {.python .cell-code}')
        asis = any('output: asis' in o for o in options)  # a table of parameters: in Quarto without a div around it
        kind = 'cell-output-asis' if asis else 'cell-output'
        for o in c.get('outputs', []):
            md += f'\n::: {{.{kind}}}\n{output_markdown(o)}:::\n'
        parts.append(f'::: {{.cell}}\n{md}:::\n')
    return '\n'.join(parts)


def words(text):
    return ' '.join(re.findall(r'[^\W_]+', text))


def code_lines(code):
    return [f'    {line}' for line in code.rstrip().split('\n')]


def pandoc_text(node):
    "The text of inline elements of pandoc's tree"
    if isinstance(node, list):
        return ''.join(map(pandoc_text, node))
    if not isinstance(node, dict):
        return ''
    kind, content = node.get('t'), node.get('c')
    if kind in ('Space', 'SoftBreak', 'LineBreak'):
        return ' '
    if kind == 'Str':
        return content
    if kind in ('Code', 'Math'):
        return content[1]
    return '' if kind == 'RawInline' else pandoc_text(content)


def pandoc_lines(node):
    "Headings, paragraphs (words only) and lines of code of pandoc's tree, in order, without tables of parameters"
    for n in node if isinstance(node, list) else [node]:
        if isinstance(n, list):
            yield from pandoc_lines(n)
        if not isinstance(n, dict):
            continue
        kind, content = n.get('t'), n.get('c')
        if kind == 'Header':
            yield '#' * content[0] + ' ' + words(pandoc_text(content[2]))
        elif kind == 'CodeBlock':
            yield from code_lines(content[1])
        elif kind in ('Para', 'Plain'):
            yield words(pandoc_text(content))
        elif kind != 'Div' or 'cell-output-asis' not in content[0][1]:
            yield from pandoc_lines(content)


def shown_lines(page):
    "The lines of a processed page as pandoc reads them"
    text = page.path.read_text(encoding='utf-8')
    md = as_quarto_joins(json.loads(text)) if page.nb else text
    command = ['pandoc'] if shutil.which('pandoc') else ['quarto', 'pandoc']
    command += ['--from=markdown-citations-implicit_figures', '--to=json']
    tree = json.loads(subprocess.run(command, input=md, capture_output=True, encoding='utf-8', check=True).stdout)
    title, claim = (pandoc_text(tree['meta'].get(k)) for k in ('title', 'description'))
    return [f'# {words(title)}' if title else '', words(claim), *pandoc_lines(tree['blocks'])]


def inline_text(t):
    "The text of a token of mistune, without HTML"
    if t['type'] in ('softbreak', 'linebreak'):
        return ' '
    if t['type'] == 'inline_html':
        return ''
    return t['raw'] if 'raw' in t else ''.join(map(inline_text, t.get('children', [])))


def mistune_lines(ts):
    "Headings, paragraphs (words only) and lines of code of mistune's tokens, in order"
    for t in ts:
        if t['type'] == 'heading':
            yield '#' * t['attrs']['level'] + ' ' + words(re.sub(r'\{[^}]*\}$', '', inline_text(t)))
        elif t['type'] == 'block_code':
            if t.get('attrs', {}).get('info') != '{=html}':
                yield from code_lines(t['raw'])
        elif t['type'] == 'block_html':
            yield words(re.sub(r'<!--.*?-->|<[^>]*>', '', t['raw'], flags=re.S))
        elif t['type'] in ('paragraph', 'block_text', 'table_cell'):
            yield words(inline_text(t))
        else:
            yield from mistune_lines(t.get('children', []))


def written_lines(text):
    "The lines of Markdown as its author sees them in Jupyter"
    text = re.sub(r'^:::.*$', '', text, flags=re.M)  # he does not see Quarto's divs
    text = re.sub(r'(?<=\))\{(?:\.|[\w-]+=")[^}\n]*\}', '', text)  # and the attributes of its figures and buttons
    text = re.sub(r'\$\$(.*?)\$\$', lambda m: words(m[1]), text, flags=re.S)  # to mistune a formula ends the paragraph
    return mistune_lines(_md(text))


def source_lines(name, root=L.ROOT):
    "The lines that the source of a page has to show, outputs too: all that it does not hide"
    path = Path(root) / 'nbs' / name
    if path.suffix == '.qmd':
        front, text = re.match(r'---\n(.*?)\n---\n(.*)', path.read_text(encoding='utf-8'), re.S).groups()
        front = yaml.safe_load(front)
        time = f'About {minutes_of(text)} minutes to read.' if part_of(root, name) not in (None, LIBRARY) else ''
        return [*written_lines(f'# {front["title"]}\n\n{front.get("description", "")}\n\n{time}\n\n{text}')]
    page = L.Page(path, root)
    behind = about(page) * (part_of(root, name) is not None)
    first = page.cells[0]['source'] + behind + READ_ONLY * page.is_exercise
    lines = [*written_lines(re.sub('^# ', f'# {number_of(name)} ', first) if number_of(name) else first)]
    cells = page.cells[1:]
    if page.is_library:
        cells = [dict(made, source=''.join(made['source'])) for c in cells for made in with_source(c)]
    for c in cells:
        if c['cell_type'] == 'markdown':
            lines += written_lines(c['source'])
        elif not HIDDEN.search(c['source']):
            code = re.sub(
                r'^%%.*\n', '', FORM.sub('', re.sub(r'\A(?:#\|.*\n?)*', '', c['source']))
            )  # nbdev leaves magics out
            lines += code_lines(code.strip())
            for o in c['outputs']:
                lines += written_lines(output_markdown(o))
    return lines


def check_sources(pages):
    "Every cell's source is a list of lines"
    for p in pages:
        cells = json.loads(p.path.read_text(encoding='utf-8'))['cells'] if p.nb else []
        if bad := [c for c in cells if L.not_lines(c['source'])]:
            yield f'{p.name}: {len(bad)} of {len(cells)} cells have no list of lines as source: line breaks are lost'


def check_lines(pages, root=L.ROOT):
    "A reader of the site sees the headings, paragraphs and lines of code that were written, one by one"
    for p in pages:
        written, shown = filter(None, source_lines(p.name, root)), filter(None, shown_lines(p))
        for want, got in zip_longest(written, shown, fillvalue='(nothing)'):
            if want != got:
                at = max(0, len(commonprefix([want, got])) - 30)
                written, seen = (t[at : at + 80].strip() for t in (want, got))
                yield f'{p.name}: {written!r} was written, but a reader sees {seen!r}'
                break


def has_pandoc():
    return bool(shutil.which('pandoc') or shutil.which('quarto'))


def check_proc(proc, root=L.ROOT):
    "All messages about the processed pages in the folder `proc`"
    pages = read_pages(proc)
    missing = set(site_pages(root)) - {p.name for p in pages}
    yield from (f'{n}: not built' for n in sorted(missing))
    yield from check_links(pages, proc, root)
    yield from check_pages(pages)
    yield from check_sidebar(pages, proc, root)
    yield from check_api(pages, root)
    yield from check_sources(pages)
    if has_pandoc():
        yield from check_lines(pages, root)


# ---- the rendered site
EXPECTED = (  # warnings of Quarto that say nothing about a page, each with its reason
    'Unable to parse table from raw html',  # the figures to play with make their tables in the browser
)


def render(proc, root=L.ROOT):
    "Render with Quarto, printing its warnings; returns the folder of the site and the warnings that are not expected"
    res = subprocess.run(['quarto', 'render', '--no-cache', '--no-execute'], cwd=proc, capture_output=True, text=True)
    if res.returncode:
        raise RuntimeError(f'quarto render failed:\n{res.stdout[-2000:]}{res.stderr[-3000:]}')
    said = re.sub(r'\x1b\[[0-9;]*m', '', res.stdout + res.stderr)
    warnings = [line.strip() for line in said.splitlines() if re.search(r'\bWARN', line)]
    for w in warnings:
        print(f'quarto: {w}')
    html = {p.name: p.html for p in read_pages(proc)}
    readable.finish(Path(proc) / '_docs/search.json', [html[n] for ns in parts(root).values() for n in ns if n in html])
    return Path(proc) / '_docs', [w for w in warnings if not any(e in w for e in EXPECTED)]


def check_html(site, root=L.ROOT):
    "Links, anchors and images of the rendered pages; what Quarto could not resolve"
    site, cfg = Path(site), L.settings(root)
    texts = {
        f.relative_to(site).as_posix(): f.read_text(encoding='utf-8')
        for f in site.rglob('*.html')
        if 'site_libs' not in f.parts
    }
    pages = {n: Html(t) for n, t in texts.items()}
    if not pages:
        yield 'the site has no page'
    for n, h in pages.items():
        if m := re.search(r'class="quarto-unresolved-ref|data-cites="[^>]*>[^<]*<strong>[\w:-]+\?</strong>', texts[n]):
            yield f'{n}: not resolved: {m[0]}'
        for url, alt in h.images:
            if not alt.strip():
                yield f'{n}: image {url[:80]} without alt text'
        for url in [*h.links, *(u for u, _ in h.images)]:
            url = url.replace(cfg['doc_host'] + cfg['doc_baseurl'], '/')
            if url.startswith(cfg['doc_baseurl']):
                url = '/' + url.removeprefix(cfg['doc_baseurl'])  # so Quarto writes the links of the 404 page
            u = urlsplit(url)
            if u.scheme or u.netloc or not (u.path or u.fragment):
                continue
            q = (
                (site if u.path.startswith('/') else (site / n).parent) / unquote(u.path).lstrip('/')
                if u.path
                else site / n
            )
            if q.is_dir():
                q = q / 'index.html'
            if not q.is_file():
                yield f'{n}: broken link {url}'
                continue
            key = q.resolve().relative_to(site.resolve()).as_posix()
            if u.fragment and key in pages and unquote(u.fragment) not in pages[key].ids | {'top'}:
                yield f'{n}: no anchor {url}'


def check_redirects(site, proc, root=L.ROOT):
    "Every address that a page had before leads to that page"
    html = {p.name: p.html for p in read_pages(proc)}
    for name, addresses in aliases(root).items():
        for old in addresses:
            page = Path(site) / old.lstrip('/')
            leads = re.search(r'redirects = ({.*?});', page.read_text(encoding='utf-8')) if page.is_file() else None
            to = (page.parent / json.loads(leads[1])['']).resolve() if leads else None
            if to != (Path(site) / html[name]).resolve() or not to.is_file():
                yield f'{old} does not redirect to {html[name]}'


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument(
        '--out', type=Path, help='a new folder for the processed pages; without it, one that is thrown away'
    )
    ap.add_argument('--site', type=Path, help='where the rendered site goes (needs quarto)')
    a = ap.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        if a.out:
            a.out.mkdir(parents=True)
        proc = build(a.out or tmp)
        msgs = list(check_proc(proc))
        if not has_pandoc():
            print('pages: no pandoc on the PATH, so lines are not compared with the notebooks')
        if shutil.which('quarto'):
            site, warned = render(proc)
            msgs += [*warned, *check_html(site), *check_redirects(site, proc)]
            moved = sum(map(len, aliases(L.ROOT).values()))
            print(f'pages: {len(read_pages(proc))} pages rendered by Quarto, {moved} old addresses looked up')
            if a.site:
                shutil.copytree(site, a.site, dirs_exist_ok=True)
        elif a.site:
            sys.exit('pages: --site needs quarto on the PATH')
        else:
            print('pages: no quarto on the PATH, so the HTML is not rendered')
    print('\n'.join(msgs) or 'pages: nothing found')
    sys.exit(bool(msgs))


if __name__ == '__main__':
    main()
