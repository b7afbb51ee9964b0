"""Plant small defects one at a time, in a copy of the tree, and see who notices: python tools/mutants.py

Each defect changes one expression or statement of an exported cell, in the notebook and in the module alike. First the
notebook runs, as `nbdev_test` runs it, then the test files that import its module. Sixty defects are drawn with a seed
over all modules; those of `tools/defects.yml` were found to pass unnoticed once. A line a defect goes to
`tools/mutants.jsonl`; what is there is not run again, as long as its cell is what it was. `--list` prints the defects
only.
"""

import argparse
import ast
import copy
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / 'tools/mutants.jsonl'
SWAPS = {
    ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.Mult: ast.Div, ast.Div: ast.Mult, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


LOOKS = set('figsize color lw ls ms alpha label fontsize ha va loc marker linestyle dpi'.split())  # of figures


def changed(node):
    "The ways in which a node is made wrong: new nodes of the same kind."
    new = copy.deepcopy(node)
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        new.ops[0] = SWAPS[type(node.ops[0])]()
        yield new
    elif isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in SWAPS:
        new.op = SWAPS[type(node.op)]()
        yield new
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield new.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        new.value = not node.value
        yield new
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        new.value = node.value + 1
        yield new
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield ast.Pass()
    elif isinstance(node, ast.Call):
        for i, keyword in enumerate(node.keywords):
            if keyword.arg in LOOKS:
                continue
            without = copy.deepcopy(node)
            del without.keywords[i]
            yield without


def replaced(source, node, new):
    "The source with one node's text replaced"
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line.encode()))
    first = starts[node.lineno - 1] + node.col_offset
    last = starts[node.end_lineno - 1] + node.end_col_offset
    text = ast.unparse(new)
    if not isinstance(new, ast.Pass):
        text = f'({text})'
    raw = source.encode()
    return (raw[:first] + text.encode() + raw[last:]).decode(), raw[first:last].decode(), text


def exported(path):
    "Index and source of the cells of a notebook that its module holds"
    for i, cell in enumerate(json.loads(path.read_text())['cells']):
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'code' and source.startswith(('#| export\n', '#| exports\n', '#| exporti\n')):
            yield i, source


def sites():
    "All defects that can be drawn: (notebook, cell, source after, what was, what is planted)"
    for path in sorted([*ROOT.glob('nbs/[0-9]*.ipynb'), *ROOT.glob('nbs/library/*.ipynb')]):
        for i, source in exported(path):
            tree = ast.parse(source)
            inside = {id(o) for f in ast.walk(tree) if isinstance(f, ast.JoinedStr) for o in ast.walk(f)}
            for node in ast.walk(tree):
                if not hasattr(node, 'lineno') or id(node) in inside:
                    continue
                for new in changed(node):
                    after, was, now = replaced(source, node, new)
                    try:
                        ast.parse(after)
                    except SyntaxError:
                        continue  # inside an f-string
                    yield path.relative_to(ROOT).as_posix(), i, after, was, now


def drawn(n, seed):
    "Some of them, as many from each module as it has statements, more or less"
    return random.Random(seed).sample(list(sites()), n)


def listed():
    "The defects that were found unnoticed once; each must still fit the code"
    for d in yaml.safe_load((ROOT / 'tools/defects.yml').read_text()):
        path = ROOT / d['notebook']
        hits = [(i, s) for i, s in exported(path) if d['was'] in s]
        if len(hits) != 1 or hits[0][1].count(d['was']) != 1:
            sys.exit(f'{d["name"]}: {d["notebook"]} has no cell, or more than one, with {d["was"]!r}')
        ((i, source),) = hits
        yield d['notebook'], i, source.replace(d['was'], d['planted']), d['was'], d['planted']


def importers(files, module):
    "Those of the files that import a module of course_lib"
    full, last = re.escape(module), re.escape(module.split('.')[-1])
    uses = re.compile(rf'(from|import) (course_lib(\.| import ){full}|\.+{last})\b')
    return [path for path in files if uses.search(path.read_text())]


def test_files(notebook):
    "The test files that import a notebook's module, have its name or find it; else those of what imports it"
    cells = json.loads((ROOT / notebook).read_text())['cells']
    source = '\n'.join(''.join(cell['source']) for cell in cells)
    module = source.split('default_exp ')[1].split()[0].removesuffix('.__init__')
    tests = sorted(ROOT.glob('tests/test_*.py'))
    own = ROOT / f'tests/test_{module.replace(".", "_")}.py'
    numbers = ROOT / 'tests/test_grading_numbers.py'  # finds the topics by itself
    of_topic = [numbers] if module.startswith('grading.') else []
    files = sorted({*importers(tests, module), *([own] if own in tests else []), *of_topic})
    if not files:
        above = importers(sorted(ROOT.glob('course_lib/**/*.py')), module)
        names = ['.'.join(path.relative_to(ROOT / 'course_lib').with_suffix('').parts) for path in above]
        files = sorted({test for name in names for test in importers(tests, name.removesuffix('.__init__'))})
    return [path.relative_to(ROOT).as_posix() for path in files]


def run(command, folder, limit):
    "Does a command end well, in time?"
    env = dict(os.environ, PYTHONPATH=str(folder), COURSE_SAMPLE='1', OMP_NUM_THREADS='1')
    try:
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def noticed(folder, notebook, cell, after, clean, limit=900):
    "Who notices a defect: the notebook, the tests, or nobody. Who is red without it as well does not count"
    path = folder / notebook
    export = 'from nbdev.export import nb_export; import sys; nb_export(sys.argv[1], lib_path="course_lib")'
    before = path.read_text()
    nb = json.loads(before)
    nb['cells'][cell]['source'] = after.splitlines(keepends=True)
    planted = json.dumps(nb)
    commands = {'notebook': ['nbdev_test', '--path', notebook, '--n_workers', '0']}
    commands |= {test: [sys.executable, '-m', 'pytest', '-q', '-x', test] for test in test_files(notebook)}

    def write(text):
        path.write_text(text)
        return run([sys.executable, '-c', export, notebook], folder, limit)

    try:
        if not write(planted):
            return 'export'
        for name, command in commands.items():
            if run(command, folder, limit):
                continue
            key = notebook if name == 'notebook' else name
            if key not in clean:
                write(before)
                clean[key] = run(command, folder, limit)
                write(planted)
            if clean[key]:
                return name
            print(f'{key}: red without a defect', flush=True)
        return None
    finally:
        write(before)


def main():
    "Run what has no line yet"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--n', type=int, default=60, help='how many defects are drawn')
    parser.add_argument('--seed', type=int, default=0, help='of the drawing')
    parser.add_argument('--list', action='store_true', help='print the defects only')
    args = parser.parse_args()
    rows = [json.loads(line) for line in OUT.read_text().splitlines()] if OUT.exists() else []
    done = {r['key'] for r in rows}
    todo = [('listed', o) for o in listed()] + [('drawn', o) for o in drawn(args.n, args.seed)]
    if args.list:
        for kind, (notebook, cell, _, was, now) in todo:
            print(f'{kind:7}{notebook} [{cell}]  {was}  ->  {now}')
        return
    clean = {}  # what is green in the copy without a defect
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp) / 'tree'
        shutil.copytree(ROOT, folder, symlinks=True, ignore=shutil.ignore_patterns('.git', '_proc', '_docs'))
        for kind, (notebook, cell, after, was, now) in todo:
            key = hashlib.sha256(f'{notebook}\n{after}'.encode()).hexdigest()[:12]
            if key in done:
                continue
            by = noticed(folder, notebook, cell, after, clean)
            row = dict(kind=kind, notebook=notebook, cell=cell, was=was, planted=now, noticed=by, key=key)
            with OUT.open('a') as f:
                f.write(json.dumps(row) + '\n')
            print(f'{by or "NOBODY":30} {notebook} [{cell}]  {was}  ->  {now}', flush=True)


if __name__ == '__main__':
    main()
