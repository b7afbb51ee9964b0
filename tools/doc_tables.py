"What `show_doc` of nbdev prints, as a reader of the site wants it: a signature and a table of parameters."

import ast
import re
import textwrap

SIGNATURE = re.compile(r'```python\n(def .*?)\n```', re.S)
HEADING = re.compile(r'^#+ (\S+)$', re.M)
SOURCE = re.compile(r'^\[source\].*$', re.M)
CALL = re.compile(r'\n\*Call self as a function\.\*')
UNSAID = 'NoneType', 'builtin_function_or_method', 'function'  # what nbdev takes from a default
TITLES, WIDTHS = ('', 'type', 'default', 'what it is'), (4, 4, 3, 10)


def parsed(code):
    "Name, parameters as (name, type, default, comment), returned as (type, comment); None if it is not Python"
    name, rest = re.match(r'def ([\w.]+)(.*)', code, re.S).groups()
    try:
        node = ast.parse(f'def f{rest}\n    pass').body[0]
    except SyntaxError:
        return None
    comments = {}
    for names, comment in re.findall(r'^ *([^#\n]*)# (.*)$', rest, re.M):  # one comment may be of several parameters
        comments |= dict.fromkeys(re.findall(r'(?:^|, )(\*{0,2}\w+)', names), comment)
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
        params.append((shown, '' if kind in UNSAID else kind, value, comments.get(shown, '')))
    last = re.search(r'\)(?:->.*?)?: *# (.*)$', rest)
    returned = ast.unparse(node.returns) if node.returns else ''
    return name, params, (returned, last[1] if last else '')


def cell(text, code=True):
    "The text of a cell of a table"
    if code:  # to pandoc a bar in code is no border
        return f'`{text}`' if text else ''
    text = text.replace('|', r'\|')
    return re.sub(r'(?<=[(, ])\*(?=[),])', r'\\*', text)  # the star of a shape (N, C, *) is no emphasis


def short(value):
    return value if len(value) <= 40 else '…'


def table(code):
    "Signature and table for the code that show_doc prints; the code itself where it cannot be read"
    found = parsed(code)
    if not found:
        return f'```python\n{code}\n```'
    name, params, (returned, what) = found
    if [p[0] for p in params] == ['*args', '**kwargs'] and not any(p[3] for p in params):
        return ''  # a constructor that is inherited
    call = f'{name}({", ".join(f"{n}={short(d)}" if d else n for n, _, d, _ in params)})'
    call = '\n'.join(textwrap.wrap(call, 88, subsequent_indent='    ', break_on_hyphens=False))
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


def rewritten(md):
    "The output of show_doc with a table of parameters"
    return CALL.sub('', SIGNATURE.sub(lambda m: table(m[1]), md, count=1))


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
