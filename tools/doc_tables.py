"What `show_doc` of nbdev prints, as a reader of the site wants it: a signature and a table of parameters."

import ast
import re
import textwrap
from functools import lru_cache
from pathlib import Path

SIGNATURE = re.compile(r'```python\n(def .*?)\n```', re.S)
HEADING = re.compile(r'^#+ (\S+)$', re.M)
ANCHOR = re.compile(r'\[\]\{#([\w.]+)\}')  # what `anchor` writes
SOURCE = re.compile(r'^\[source\].*$', re.M)
CALL = re.compile(r'\n\*Call self as a function\.\*')
UNSAID = 'NoneType', 'builtin_function_or_method', 'function'  # what nbdev takes from a default
BASES = dict(_BatchNorm='BatchNorm2d', _InstanceNorm='InstanceNorm2d')  # whose documentation says what theirs lacks
TITLES, WIDTHS = ('', 'type', 'default', 'what it is'), (4, 4, 3, 10)


def comments_in(lines):
    "The comments behind parameters or fields; one may be of several parameters"
    found = {}
    for names, comment in re.findall(r'^ *([^#\n]*)# (.*)$', lines, re.M):
        found |= dict.fromkeys(re.findall(r'(?:^|, )(\*{0,2}\w+)', names), comment)
    return found


def comment_behind(lines):
    "The comment on what is returned"
    last = re.search(r'\)(?:->.*?)?: *# (.*)$', lines)
    return last[1] if last else ''


@lru_cache
def said(path):
    "What a module says of the parameters of each definition, where show_doc does not: {name: (comments, returned)}"
    text = Path(path).read_text(encoding='utf-8')
    lines, found = text.splitlines(), {}

    def head(f):
        return '\n'.join(lines[f.lineno - 1 : f.body[0].lineno - 1])

    def see(body, before=''):
        for n in body:
            if isinstance(n, ast.FunctionDef):
                found[before + n.name] = comments_in(head(n)), comment_behind(head(n))
            elif isinstance(n, ast.ClassDef):
                fields = [lines[o.lineno - 1] for o in n.body if isinstance(o, ast.AnnAssign)]
                see(n.body, f'{before}{n.name}.')
                found[before + n.name] = found.get(f'{before}{n.name}.__init__', (comments_in('\n'.join(fields)), ''))

    see(ast.parse(text).body)
    return found


@lru_cache
def pytorch_base(path, name):
    "The class of PyTorch whose constructor a class takes over, as its documentation names it; '' for others"
    for n in ast.parse(Path(path).read_text(encoding='utf-8')).body:
        if isinstance(n, ast.ClassDef) and n.name == name and n.bases:
            base, own = ast.unparse(n.bases[0]), any(getattr(o, 'name', '') == '__init__' for o in n.body)
            named = BASES.get(base) or base.removeprefix('nn.') * base.startswith('nn.')
            return '' if own or base == 'nn.Module' else named
    return ''


def parsed(code, path=None):
    """Name, parameters as (name, type, default, comment), returned as (type, comment); None if it is not Python. `path`
    is the module's, which may say more than `code`."""
    name, rest = re.match(r'def ([\w.]+)(.*)', code, re.S).groups()
    try:
        node = ast.parse(f'def f{rest}\n    pass').body[0]
    except SyntaxError:
        return None
    more, returns = said(path).get(name, ({}, '')) if path else ({}, '')
    comments = comments_in(rest)
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + arguments.defaults
    pairs = [(a.arg, a, d) for a, d in zip(positional, defaults)]
    if arguments.vararg:
        pairs.append((f'*{arguments.vararg.arg}', arguments.vararg, None))
    pairs += [(a.arg, a, d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults)]
    if arguments.kwarg:
        pairs.append((f'**{arguments.kwarg.arg}', arguments.kwarg, None))
    params = []
    for shown, argument, default in pairs:
        kind = ast.unparse(argument.annotation) if argument.annotation else ''
        value = ast.unparse(default) if default else ''
        comment = comments.get(shown) or more.get(shown, '')
        params.append((shown, '' if kind in UNSAID else kind, value, comment))
    returned = ast.unparse(node.returns) if node.returns else ''
    return name, params, (returned, comment_behind(rest) or returns)


def cell(text, code=True):
    "The text of a cell of a table"
    if code:  # to pandoc a bar in code is no border
        return f'`{text}`' if text else ''
    text = text.replace('|', r'\|')
    text = ''.join(o if i % 2 else re.sub(r'<|--', r'\\\g<0>', o) for i, o in enumerate(re.split('(`[^`]*`)', text)))
    return re.sub(r'(?<=[(, ])\*(?=[),])', r'\\*', text)  # the star of a shape (N, C, *) is no emphasis


def short(value):
    return value if len(value) <= 40 else '…'


def table(code, path=None):
    "Signature and table for the code that show_doc prints; the code itself where it cannot be read"
    found = parsed(code, path)
    if not found:
        return f'```python\n{code}\n```'
    name, params, (returned, what) = found
    if [p[0] for p in params] == ['*args', '**kwargs'] and not any(p[3] for p in params):
        return ''  # a constructor that is inherited
    call = f'{name}({", ".join(f"{n}={short(d)}" if d else n for n, _, d, _ in params)})'
    call = '\n'.join(textwrap.wrap(call, 88, subsequent_indent='    ', break_on_hyphens=False))
    if base := pytorch_base(path, name) if path else '':
        address = f'https://docs.pytorch.org/docs/stable/generated/torch.nn.{base}.html'
        return f'```python\n{call}\n```\n\nIts arguments are those of [`torch.nn.{base}`]({address}).'
    rows = [(cell(n), cell(kind), cell(short(default)), cell(comment, False)) for n, kind, default, comment in params]
    if what or returned not in ('', 'None'):
        rows.append(('**returns**', cell(returned), '', cell(what, False)))
    shown = f'```python\n{call}\n```'
    return f'{shown}\n\n::: {{.parameters}}\n\n{as_table(rows)}\n\n:::' if rows else shown


def as_table(rows):
    "Rows of name, type, default and comment in Markdown, without a column that is empty"
    kept = [i for i in range(4) if i == 0 or any(row[i] for row in rows)]
    lines = [[TITLES[i] for i in kept], ['-' * WIDTHS[i] for i in kept], *([row[i] for i in kept] for row in rows)]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def rewritten(md, path=None):
    "The output of show_doc with a table of parameters; `path` is that of the module"
    return CALL.sub('', SIGNATURE.sub(lambda m: table(m[1], path), md, count=1))


def anchor(md):
    "For a lesson, which shows the source: the address of the name, and the link to the repository"
    name = HEADING.search(md)
    source = SOURCE.search(md)
    link = source[0].replace('float:right', 'float:right; margin-left:1rem') if source else ''  # a cell may define two
    return f'[]{{#{name[1].lower()}}}{link}' if name else md


def uncommented(md):
    "Parameters in the table of a rewritten output that lack their comment"
    commented = f'| {TITLES[-1]} |' in md
    return re.findall(r'^\| `(\w+)` \|' + (r'.*\|  \|$' if commented else ''), md, re.M)
