"""Project lint: what nbdev does not check. `python tools/lint.py [--fix] [notebooks]`

Every rule is a function that takes a `Page` (or all pages) and yields messages. `--fix` writes what is
derived: the Colab badge and install cell (from settings.ini), the table of lessons, README.md (from nbs/index.ipynb)
and the files of tools/derived.py.
"""

import argparse, ast, json, re, subprocess, sys, uuid
from collections import defaultdict
from configparser import ConfigParser
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from derived import (
    CELLS,
    HIGHLIGHTS,
    ORDER,
    api_groups,
    derived,
    highlights,
    import_drawing,
    lesson_tables,
    lessons,
    number_of,
    parts,
    part_of,
    public_names,
)

ROOT = Path(__file__).resolve().parents[1]
MAX_KB, MAX_LINES, MAX_DEFINED = 500, 30, 15
FOLDED = dict(cellView='form')  # metadata of a cell that Colab shows by its title
# Machine paths, registry hosts: nothing that is committed names them.
FORBIDDEN = re.compile(
    '|'.join(
        [
            r'/wor' r'k/',
            r'/roo' r't/',
            r'/ho' r'me/\w+/',
            r'/tm' r'p/[\w.-]+',
            r'py' r'pi\.org',
            r'python' r'hosted',
            r'registry\.np' r'mjs',
        ]
    )
)


def settings(root=ROOT):
    ini = ConfigParser(delimiters=['='])
    ini.read(Path(root) / 'settings.ini', encoding='utf-8')
    return ini['DEFAULT']


def not_lines(source):
    "Whether the source of a cell is anything but a list of lines"
    if isinstance(source, str):
        return True
    return not all(line.endswith('\n') for line in source[:-1]) or any('\n' in line[:-1] for line in source)


class Page:
    "A notebook with what the rules ask of it."

    def __init__(self, path, root=ROOT):
        self.path, self.root = Path(path), Path(root)
        self.name = self.path.relative_to(self.root / 'nbs').as_posix()
        self.nb = json.loads(self.path.read_text(encoding='utf-8'))
        self.cells = self.nb['cells']
        self.not_lines = [c['id'] for c in self.cells if not_lines(c['source'])]
        for c in self.cells:
            c['source'] = ''.join(c['source'])
        self.code = [c for c in self.cells if c['cell_type'] == 'code']
        self.md = '\n'.join(c['source'] for c in self.cells if c['cell_type'] == 'markdown')

    @property
    def is_lesson(self):
        return bool(number_of(self.name))

    @property
    def is_exercise(self):
        return self.name.startswith('exercises/')

    @property
    def is_library(self):
        return self.name.startswith('library/')

    @property
    def module(self):
        "The module this page exports to, or None"
        m = re.search(r'^#\| *default_exp +(\S+)', '\n'.join(c['source'] for c in self.code), re.M)
        return m and m[1].removesuffix('.__init__')

    def trees(self):
        "Each code cell with its syntax tree; magics are blanked, as they define nothing"
        for c in self.code:
            try:
                yield c, ast.parse(c['source'])
            except SyntaxError:
                try:
                    yield c, ast.parse(re.sub(r'^(\s*)[%!].*$', r'\1pass', c['source'], flags=re.M))
                except SyntaxError as e:
                    yield c, e

    def defined(self):
        "Names of functions and classes; a method that `@patch` adds to a class is none"
        for c, t in self.trees():
            if not isinstance(t, ast.AST):
                continue
            for n in t.body:
                if isinstance(n, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
                    if not any('patch' in ast.unparse(d) for d in n.decorator_list):
                        yield n.name

    def imports(self):
        "(module, is it a star import) for each import from the course"
        for c, t in self.trees():
            if not isinstance(t, ast.AST):
                continue
            for n in ast.walk(t):
                if isinstance(n, ast.ImportFrom) and (n.module or '').startswith('course_lib'):
                    mod = n.module.removeprefix('course_lib').lstrip('.')
                    yield from ((mod or a.name, a.name == '*') for a in n.names)
                if isinstance(n, ast.Import):
                    yield from (
                        (a.name.removeprefix('course_lib.'), False) for a in n.names if a.name.startswith('course_lib.')
                    )

    def imported(self):
        "(module, name) for each `from course_lib.module import name`"
        for c, t in self.trees():
            for n in ast.walk(t) if isinstance(t, ast.AST) else ():
                if isinstance(n, ast.ImportFrom) and (n.module or '').startswith('course_lib.'):
                    yield from ((n.module.removeprefix('course_lib.'), a.name) for a in n.names)


def ref_of(cfg):
    "What badge and install cell both point to: the tag of a release; the branch while a version is in development"
    return cfg['branch'] if 'dev' in cfg['version'] else 'v' + cfg['version']


def colab_parts(name, cfg):
    "Badge and install cell of the notebook `name`, derived from settings.ini: page and library are of one version"
    url = f'https://colab.research.google.com/github/{cfg["user"]}/{cfg["repo"]}/blob/{ref_of(cfg)}/nbs/{name}'
    badge = f'[![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)]({url})'
    cell = '\n'.join(
        [
            '#| hide',
            '# @title Set-up: on Colab, installs the course',
            'import sys',
            "if 'google.colab' in sys.modules:",
            f'    %pip install -q "{cfg["lib_name"]} @ git+{cfg["git_url"]}@{ref_of(cfg)}"',
            f'    from {cfg["lib_name"]}.core import setup_line',
            '    print(setup_line())',
        ]
    )
    return badge, cell


# ---- rules for one page
def rule_parts(p, cfg):
    "A lesson has title, claim, badge, Colab cell, Summary and References; other pages have the first four"
    if not (p.is_lesson or p.is_exercise or p.is_library):
        return
    first = p.cells[0]['source'] if p.cells else ''
    badge, cell = colab_parts(p.name, cfg)
    if not re.match(r'# \S', first):
        yield 'first cell has no "# Title"'
    if not re.search(r'^> \S', first, re.M):
        yield 'first cell has no "> claim"'
    if badge not in first:
        yield 'Colab badge is missing or not the one settings.ini gives (run `python tools/lint.py --fix`)'
    if not any(c['source'] == cell and c['metadata'] == FOLDED for c in p.code):
        yield 'Colab install cell is missing or stale (run `python tools/lint.py --fix`)'
    for h in ('Summary', 'References') if p.is_lesson else ():
        if not re.search(rf'^## {h}', p.md, re.M):
            yield f'no "## {h}" section'


def rule_outputs(p, cfg):
    "No saved error, warning, progress bar or live widget; figures carry a caption and alt text"
    for c in p.code:
        for o in c.get('outputs', []):
            data = o.get('data', {})
            if o.get('output_type') == 'error':
                yield f'cell {c["id"]}: a saved error output ({o.get("ename")})'
            if o.get('name') == 'stderr':
                yield f'cell {c["id"]}: saved stderr output (a warning or a progress bar)'
            if any('widget' in k for k in data):
                yield f'cell {c["id"]}: a saved live widget'
            if any(k.startswith('image/') for k in data):
                for d in ('fig-cap', 'fig-alt'):
                    if f'#| {d}:' not in c['source']:
                        yield f'cell {c["id"]}: figure without #| {d}:'
    if p.is_lesson and not any(c.get('outputs') for c in p.code):
        yield 'no saved outputs: a reader of the site sees nothing'


def rule_lines(p, cfg):
    "The source of a cell is a list of lines: Quarto loses the line breaks of a string"
    for i in p.not_lines:
        yield f'cell {i}: its source is no list of lines (run `python tools/lint.py --fix`)'


def rule_size(p, cfg):
    "A page stays under 500 KB, a cell under 31 lines; a class of the library may be longer"
    kb = p.path.stat().st_size / 1000
    if kb > MAX_KB:
        yield f'{kb:.0f} KB, more than {MAX_KB}'
    for c in p.code if not p.is_library else ():
        n = len(c['source'].splitlines())
        if n > MAX_LINES:
            yield f'cell {c["id"]}: {n} lines, more than {MAX_LINES}'


def rule_star(p, cfg):
    "No `import *` between our own modules"
    for mod, star in p.imports():
        if star:
            yield f'`from course_lib.{mod} import *`: name what you import'


def rule_experiment(p, cfg):
    "A page of experiments defines only what is its subject, in a few lines; the rest is the library's"
    if not p.is_lesson or p.module or part_of(p.root, p.name) != 'Experiments':
        return
    for c, t in p.trees():
        for n in getattr(t, 'body', ()):
            if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.end_lineno - n.lineno >= MAX_DEFINED:
                yield (
                    f'`{n.name}` has {n.end_lineno - n.lineno + 1} lines: an experiment page takes what is longer '
                    f'than {MAX_DEFINED} from the library'
                )


def rule_results(p, cfg):
    "Rows of experiments are read with `read_results`: then the page also runs alone, from the installed package"
    for c in p.code:
        if (
            re.search(r"""['"](nbs/)?results/|Path\(['"]results['"]\)""", c['source'])
            and 'def read_results' not in c['source']
        ):
            yield f'cell {c["id"]}: reads a path below results/: use `read_results` of course_lib.core'


def rule_citations(p, cfg):
    "A work of references.bib is cited by its key: then the site shows names, year and a link"
    bib = p.root / 'nbs/references.bib'
    titles = (
        re.findall(r'^@\w+\{(\S+),.*?\btitle=\{(.*?)\}', bib.read_text(encoding='utf-8'), re.M) if bib.exists() else []
    )
    for item in re.findall(r'^- .*', p.md.partition('## References')[2], re.M):
        for key, title in titles:
            t = title.split(':')[0].lower()
            if len(t) > 12 and t in item.lower() and '@' not in item:
                yield f'References: cite "{title.split(":")[0]}" as @{key}'


def addresses(root=ROOT):
    "{key: the address of a work of references.bib}, where it has one"
    bib = Path(root) / 'nbs/references.bib'
    res = {}
    for key, entry in re.findall(
        r'^@\w+\{([^,\s]+),(.*)$', bib.read_text(encoding='utf-8') if bib.exists() else '', re.M
    ):
        field = {k: m[1] for k in ('eprint', 'doi', 'url') if (m := re.search(rf'\b{k}=\{{(.*?)\}}', entry))}
        if 'eprint' in field:
            res[key] = f'https://arxiv.org/abs/{field["eprint"]}'
        elif 'doi' in field:
            res[key] = f'https://doi.org/{field["doi"]}'
        elif 'url' in field:
            res[key] = field['url']
    return res


def with_addresses(text, root=ROOT):
    "A cell of Markdown in whose References each title is a link to the work"
    head, mark, items = text.partition('## References')
    if not mark:
        return text
    known, bib = addresses(root), Path(root) / 'nbs/references.bib'
    titles = dict(
        re.findall(
            r'^@\w+\{([^,\s]+),.*?\btitle=\{(.*?)\}', bib.read_text(encoding='utf-8') if bib.exists() else '', re.M
        )
    )

    def linked(m):
        key, title = m[1], m[2] or titles.get(m[1], '').partition(':')[0]
        if key not in known:
            return m[0]
        return f'@{key}, [*{title}*]({known[key]})'

    items = re.sub(r'@([A-Za-z][\w:-]*\w)(?!, \[\*)(?:, \*([^*\n]+)\*)?', linked, items)
    return head + mark + re.sub(r',? *\barXiv:\d{4}\.\d{4,5}\b\.?', '', items)


def rule_references(p, cfg):
    "A title in the list of references is a link: the list is all that a reader of Colab has"
    for c in p.cells:
        if c['cell_type'] == 'markdown' and c['source'] != with_addresses(c['source'], p.root):
            yield 'References: a work without its link (run `python tools/lint.py --fix`)'


def rule_syntax(p, cfg):
    for c, t in p.trees():
        if isinstance(t, SyntaxError) and not c['source'].startswith('%%'):
            yield f'cell {c["id"]}: {t}'


# ---- rules for all pages together
def rule_labels(pages):
    "A figure's label belongs to one page"
    where = defaultdict(set)
    for p in pages:
        for c in p.code:
            for label in re.findall(r'^#\| *label: *(fig-\S+)', c['source'], re.M):
                where[label].add(p.name)
    for label, names in sorted(where.items()):
        if len(names) > 1:
            yield f'{label} labels a figure of {" and of ".join(sorted(names))}'


def rule_unique(pages):
    "A name is defined in one notebook only; what learners write is theirs"
    where = defaultdict(set)
    for p in pages:
        if p.is_exercise:
            continue
        for n in p.defined():
            if not n.startswith('__'):
                where[n].add(p.name)  # Python calls these
    for n, ps in sorted(where.items()):
        if len(ps) > 1:
            yield f'`{n}` is defined in {", ".join(sorted(ps))}'


def rule_order(root=ROOT):
    "Each notebook and play page has its place in the order, and each place its page"
    listed = [n for ns in parts(root).values() for n in ns if n != 'api.qmd']
    nbs = Path(root) / 'nbs'
    there = {q.relative_to(nbs).as_posix() for e in ('*.ipynb', '*.qmd') for q in nbs.rglob(e)}
    there = {
        n
        for n in there
        if not any(d.startswith(('.', '_')) for d in n.split('/')) and n not in ('index.ipynb', '404.qmd', 'api.qmd')
    }
    for n in sorted(there - set(listed)):
        yield f'{n} has no place in {ORDER}'
    for n in listed:
        if n not in there:
            yield f'{ORDER} names {n}, which does not exist'
    numbers = [number_of(n) for n in lessons(root)]
    if numbers != sorted(set(numbers)):
        yield f'{ORDER}: the numbers of the lessons do not rise'


MAX_NAMES = 200


def rule_api(pages, root=ROOT):
    "The API page has at most 200 names, each public and there once, and all that lessons and exercises import"
    listed = [n for names in api_groups(root).values() for n in names]
    known = public_names(root, pages)
    if len(listed) > MAX_NAMES:
        yield f'tools/api.yml: {len(listed)} names, more than {MAX_NAMES}'
    for n in sorted(set(listed)):
        if listed.count(n) > 1:
            yield f'tools/api.yml: {n} stands there {listed.count(n)} times'
        if n not in known:
            yield f'tools/api.yml: {n} is no public function or class of the course'
    for p in pages if listed else ():
        if not (p.is_lesson or p.is_exercise):
            continue
        for n in sorted({n for _, n in p.imported()} & known.keys() - set(listed)):
            yield f'{p.name}: imports {n}, which has no place in tools/api.yml'


MENTION = re.compile(
    r'(?<!fast\.ai 2019, )(?<!part2\), )(?<!part 2\*, )(?<!Part 2, )'
    r'\b([Ll]essons?|[Pp]ages?|[Nn]otebooks?) (\d\d?[a-d]?)\b(?! [a-z]*(images|cells|lines|bytes))'
)
NUMBERED = re.compile(r'\b(\d\d[a-d]?)_([a-z]\w*)\.(ipynb|html)\b')


def stale_numbers(text, root=ROOT):
    "(what stands there, what is right or None) for each number of a lesson that the order does not give"
    known = {n.removeprefix(number_of(n) + '_').removesuffix('.ipynb'): number_of(n) for n in lessons(root)}
    for m in NUMBERED.finditer(text):
        number, name, ending = m.groups()
        if name in known and known[name] != number:
            yield m[0], f'{known[name]}_{name}.{ending}'
    for m in MENTION.finditer(text):
        yield m[0], None


def texts(root=ROOT):
    "(file, its text) of all that may name a lesson: notebooks cell by cell, pages, guides, code"
    for p in pages_of(root):
        for c in p.cells:
            out = ''.join(''.join(o.get('text', '')) for o in c.get('outputs', []))
            yield f'{p.name}: cell {c["id"]}', c['source'] + '\n' + out
    found = [
        q
        for d, e in (('nbs', '*.qmd'), ('tests', '*.py'), ('tools', '*.py'), ('experiments', '*.py'), ('.', '*.md'))
        for q in sorted((Path(root) / d).glob(e))
    ]
    for q in found:
        yield q.relative_to(root).as_posix(), q.read_text(encoding='utf-8')


def rule_numbers(root=ROOT):
    "The number of a lesson stands in the order and in its file's name: nothing else repeats it"
    for where, text in texts(root):
        for found, right in stale_numbers(text, root):
            yield f'{where}: {found}: ' + (
                f'is {right} now (run `python tools/lint.py --fix`)' if right else 'call it by its name'
            )


def rule_drawing(root=ROOT):
    "The drawing of imports in CONTRIBUTING.md is that of the modules"
    q = Path(root) / 'CONTRIBUTING.md'
    if not q.exists():
        return
    text = q.read_text(encoding='utf-8')
    if text != with_drawing(text, root):
        yield 'CONTRIBUTING.md: the drawing of imports is stale (run `python tools/lint.py --fix`)'


def with_drawing(text, root=ROOT):
    "A guide with its drawing of imports made anew"
    drawn = f'<!-- imports -->\n```\n{import_drawing(root, pages_of(root))}\n```'
    return re.sub(r'<!-- imports -->\n```\n(?:(?!```).*\n)*```', lambda m: drawn, text)


def solution(p, name):
    "The code that solves the exercise `name` on its page, or None"
    m = re.search(rf'<details id="solution-{name}">[\s\S]*?```python\n([\s\S]*?)```[\s\S]*?</details>', p.md)
    return m and m[1]


def rule_exercises(p, cfg):
    "Each exercise has a starting cell, then its grader, a hint and a solution that unfold; the page shows the progress"
    if not p.is_exercise:
        return
    code = '\n'.join(c['source'] for c in p.code)
    names = re.findall(r'^#\| exercise: (\w+)$', code, re.M)
    if not names:
        yield 'no starting cell (`#| exercise: name`)'
    if 'course_progress(' not in code:
        yield 'no cell that calls course_progress'
    if any('solved on' in json.dumps(c.get('outputs', [])) for c in p.code):
        yield "an output shows somebody's progress: run the page with COURSE_PROGRESS set to an empty folder"
    for n in names:
        if not re.search(rf"#\| exercise: {n}\n[\s\S]*grade\('{n}'", code):
            yield f'{n}: no grade call after its starting cell'
        if f'<details id="hint-{n}">' not in p.md:
            yield f'{n}: no hint'
        if solution(p, n) is None:
            yield f'{n}: no solution'
        else:
            try:
                ast.parse(solution(p, n))
            except SyntaxError as e:
                yield f'{n}: its solution: {e}'


def rule_links(p, cfg):
    "On pages of exercises, links to other pages lead somewhere"
    if not p.is_exercise:
        return
    for link in re.findall(r'\]\((?!https?:|#)([^)#]+)', p.md):
        if not (p.path.parent / link).exists():
            yield f'link to {link}, which does not exist'


RULES = [
    rule_exercises,
    rule_links,
    rule_parts,
    rule_outputs,
    rule_lines,
    rule_size,
    rule_star,
    rule_experiment,
    rule_results,
    rule_citations,
    rule_references,
    rule_syntax,
]


MAX_MODULE = 300


def rule_modules(root=ROOT):
    "A module that one can read in one go has at most 300 lines"
    for f in sorted((Path(root) / settings(root)['lib_path']).rglob('*.py')):
        n = len(f.read_text(encoding='utf-8').splitlines())
        if n > MAX_MODULE and f.name != '_modidx.py':
            yield f'{f.relative_to(root)}: {n} lines, more than {MAX_MODULE}; give a part of it a page of its own'


def rule_paths(root=ROOT):
    "No tracked text file names a path of somebody's machine or a registry's host"
    files = subprocess.run(['git', 'ls-files'], cwd=root, capture_output=True, text=True).stdout.split('\n')
    for f in filter(None, files):
        q = Path(root) / f
        if q.is_symlink() or not q.is_file() or q.suffix in ('.png', '.parquet', '.gz'):
            continue
        m = FORBIDDEN.search(q.read_text(encoding='utf-8', errors='ignore'))
        if m:
            yield f'{f}: names {m[0]}'


def rule_readme(root=ROOT):
    "README.md is what nbs/index.ipynb yields"
    if (Path(root) / 'README.md').read_text(encoding='utf-8') != readme(root):
        yield 'README.md differs from nbs/index.ipynb (run `python tools/lint.py --fix`)'


def readme(root=ROOT):
    "README.md from nbs/index.ipynb: its Markdown, its visible code and printed outputs"
    parts = ['<!-- Made from nbs/index.ipynb by `python tools/lint.py --fix`: edit that. -->']
    for c in Page(Path(root) / 'nbs/index.ipynb', root).cells:
        lines = c['source'].splitlines()
        if c['cell_type'] == 'markdown':
            text = re.sub(
                r'^\[!\[(.*)\]\((.*)\)\{fig-alt="(.*)"\}\]\((.*)\)$',
                r'[![\3](\2)](\4)\n\n*\1*',
                c['source'],
                flags=re.M,
            )  # Quarto's figures as Markdown's
            text = re.sub(r'\{\.btn[^}]*\}', '', text)  # buttons are links
            parts.append(re.sub(r'\]\((?!https?:|#)', '](nbs/', re.sub(r'^:::.*\n*', '', text, flags=re.M)).rstrip())
        elif c['cell_type'] == 'code' and not re.search(r'^#\| *hide', c['source'], re.M):
            body = '\n'.join(l for l in lines if not l.startswith('#|')).strip()
            if body:
                parts.append(f'```python\n{body}\n```')
            for o in c.get('outputs', []):
                text = (
                    o.get('text') or o.get('data', {}).get('text/markdown') or o.get('data', {}).get('text/plain') or ''
                )
                if text:
                    parts.append(
                        '```\n' + ''.join(text).rstrip() + '\n```'
                        if 'text/markdown' not in o.get('data', {})
                        else ''.join(text)
                    )
    return '\n\n'.join(parts).rstrip() + '\n'


def lesson_table(root=ROOT, folder=''):
    "The lessons with their claims, by part, as the page that introduces the course shows them"
    return lesson_tables(root, pages_of(root), folder)


def rule_index(root=ROOT):
    "The landing page says what the pages say: lessons with their claims, figures with their captions"
    pages = pages_of(root)
    for c in Page(Path(root) / 'nbs/index.ipynb', root).cells:
        for head, make in CELLS.items():
            if c['source'].startswith(head) and c['source'] != make(root, pages):
                yield f'index.ipynb: the cell {head} is stale (run `python tools/lint.py --fix`)'
        for v in re.findall(r'Python (\d\.\d+) or newer', c['source']):
            if v != settings(root)['min_python']:
                yield f'index.ipynb: Python {v} or newer, but settings.ini says {settings(root)["min_python"]}'
    if (Path(root) / 'nbs' / HIGHLIGHTS[0][0]).exists():
        for _, label in HIGHLIGHTS:
            if label not in {h[1] for h in highlights(pages)}:
                yield f'tools/derived.py: no saved figure {label} to introduce the course with'


def rule_derived(root=ROOT):
    "Sidebar, API page, themes, llms.txt and citation file are what the pages, the library and settings.ini yield"
    made = dict(derived(root, pages_of(root), settings(root)))
    for f, text in made.items():
        q = Path(root) / f
        if not q.exists() or q.read_bytes() != text:
            yield f'{f} is stale (run `python tools/lint.py --fix`)'
    for q in (Path(root) / 'nbs/images').glob('fig-*.png'):
        if f'nbs/images/{q.name}' not in made:
            yield f'nbs/images/{q.name} introduces the course no more: remove it'


def pages_of(root=ROOT):
    return [
        Page(p, root)
        for p in sorted((Path(root) / 'nbs').rglob('*.ipynb'))
        if not any(d.startswith(('.', '_')) for d in p.relative_to(root).parts)
    ]


WHOLE = rule_order, rule_numbers, rule_modules, rule_paths, rule_index, rule_derived, rule_drawing, rule_readme


def lint(root=ROOT, only=None):
    "All messages, one a line"
    cfg, pages = settings(root), pages_of(root)
    for p in pages:
        if only and p.path.resolve() not in only:
            continue
        for rule in RULES:
            yield from (f'{p.name}: {m}' for m in rule(p, cfg))
    if only:
        return
    for rule in (rule_unique, rule_labels):
        yield from rule(pages)
    yield from rule_api(pages, root)
    for rule in WHOLE:
        yield from rule(root)


def write(p):
    "Save the page `p` as nbdev_clean would"
    for c in p.cells:
        c['source'] = c['source'].splitlines(keepends=True)
    p.path.write_text(json.dumps(p.nb, indent=1, ensure_ascii=False, sort_keys=True) + '\n', encoding='utf-8')


def fix_index(root=ROOT):
    "Write what the landing page derives, README.md from it, and the other derived files"
    pages, p = pages_of(root), Page(Path(root) / 'nbs/index.ipynb', root)
    for c in p.cells:
        for head, make in CELLS.items():
            if c['source'].startswith(head):
                c['source'] = make(root, pages)
    write(p)
    for f, made in derived(root, pages_of(root), settings(root)):
        (Path(root) / f).parent.mkdir(exist_ok=True)
        (Path(root) / f).write_bytes(made)
    (Path(root) / 'README.md').write_text(readme(root), encoding='utf-8')
    guide = Path(root) / 'CONTRIBUTING.md'
    if guide.exists():
        guide.write_text(with_drawing(guide.read_text(encoding='utf-8'), root), encoding='utf-8')


def fix_numbers(root=ROOT):
    "Give each link to a lesson the number that the order says"
    for p in pages_of(root):
        before = json.dumps(p.nb)
        for c in p.cells:
            for found, right in stale_numbers(c['source'], root):
                if right:
                    c['source'] = c['source'].replace(found, right)
        if json.dumps(p.nb) != before:
            write(p)
    for d, e in (('nbs', '*.qmd'), ('tests', '*.py'), ('tools', '*.py'), ('experiments', '*.py'), ('.', '*.md')):
        for q in (Path(root) / d).glob(e):
            text = new = q.read_text(encoding='utf-8')
            for found, right in stale_numbers(text, root):
                if right:
                    new = new.replace(found, right)
            if new != text:
                q.write_text(new, encoding='utf-8')


def fix(p, cfg):
    "Write badge, install cell and links of the references into the lesson, library page or page of exercises `p`"
    if not (p.is_lesson or p.is_exercise or p.is_library) or not p.cells:
        return
    before = json.dumps(p.nb)
    badge, cell = colab_parts(p.name, cfg)
    first = p.cells[0]
    kept = re.sub(r'\n*\[!\[Open In Colab\].*', '', first['source']).rstrip()
    head, rest = re.match(r'(# .*\n+(?:>.*\n?)+)?([\s\S]*)', kept + '\n').groups()
    first['source'] = '\n\n'.join(filter(None, [(head or '').strip(), badge, rest.strip()]))
    old = [c for c in p.code if "'google.colab' in sys.modules" in c['source']]
    if old:
        old[0].update(source=cell, metadata=dict(FOLDED))
    else:
        at = 1 + next((i for i, c in enumerate(p.cells) if 'default_exp' in c['source']), 0)
        new = dict(
            cell_type='code',
            execution_count=None,
            id=uuid.uuid4().hex[:8],
            metadata=dict(FOLDED),
            outputs=[],
            source=cell,
        )
        p.cells.insert(at, new)
    for c in p.cells:
        if c['cell_type'] == 'markdown':
            c['source'] = with_addresses(c['source'], p.root)
    if p.not_lines or json.dumps(p.nb) != before:
        write(p)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--fix', action='store_true', help='write what is derived from settings.ini, then check')
    ap.add_argument('notebooks', nargs='*', type=Path)
    a = ap.parse_args()
    only = {p.resolve() for p in a.notebooks}
    if a.fix:
        if not only:
            fix_numbers()
        for p in pages_of():
            if not only or p.path.resolve() in only:
                fix(p, settings())
        if not only:
            fix_index()
    msgs = list(lint(only=only))
    print('\n'.join(msgs) or 'lint: nothing found')
    sys.exit(bool(msgs))


if __name__ == '__main__':
    main()
