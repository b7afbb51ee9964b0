"Formulas in the index of the site's search, as a reader would type or say them."

import html
import json
import re
import shutil
import subprocess
import unicodedata
import xml.etree.ElementTree as ET

FORMULA = re.compile(r'\\\((.*?)\\\)|\\\[(.*?)\\\]', re.S)
MATH = re.compile(r'<math.*?</math>', re.S)
UNSEEN = dict.fromkeys(map(ord, '\u2061\u2062\u2063\u200b'))  # function application and its like


def said(node):
    "The text of a node of MathML, on one line: √(a+b), (a)/(b), x_i, x^2"
    kind = node.tag.rpartition('}')[2]
    if kind == 'annotation':
        return ''
    parts = [said(child) for child in node]
    if kind == 'mfrac':
        return '/'.join(f'({p})' if re.search(r'[+−\-\s/]', p) else p for p in parts)
    if kind == 'msqrt':
        return f'√({"".join(parts)})'
    if kind in ('msub', 'munder', 'msup', 'mover', 'msubsup', 'munderover'):
        marks = {'msub': '_', 'munder': '_', 'msup': '^'}.get(kind, '_^')
        if kind == 'mover':
            return parts[0]  # a hat or a bar
        return parts[0].strip() + ''.join(m + p for m, p in zip(marks, parts[1:]))
    text = node.text or ''
    if kind == 'mtr':
        return ''.join(parts) + '; '
    if kind == 'mo' and (text in set('=<>≈≤≥→∈') or text.isalpha()):  # ln, max
        text = f' {text} '
    return text + ''.join(parts)


def formulas(texs):
    "{TeX: readable text} of some formulas, with one call of pandoc"
    texs = list(dict.fromkeys(texs))
    command = ['pandoc'] if shutil.which('pandoc') else ['quarto', 'pandoc']
    source = '\n\n'.join(f'${" ".join(t.split())}$' for t in texs)
    command += ['--from=markdown', '--to=html', '--mathml', '--wrap=none']
    shown = subprocess.run(command, input=source, capture_output=True, encoding='utf-8', check=True).stdout
    found = re.findall(r'<p>(.*?)</p>', shown, re.S)
    assert len(found) == len(texs), 'a formula is no paragraph'
    res = {}
    for tex, text in zip(texs, found):
        math = MATH.search(text)
        if math:
            plain = unicodedata.normalize('NFKC', said(ET.fromstring(math[0]))).translate(UNSEEN)
        res[tex] = ' '.join(plain.split()).rstrip(';') if math else tex
    return res


def finish(path, order=()):
    "The search index at `path`, its formulas readable, its pages in `order`, which decides between equal matches"
    entries = json.loads(path.read_text(encoding='utf-8'))
    place = {html: i for i, html in enumerate(order)}
    entries.sort(key=lambda e: place.get(e['href'].partition('#')[0], len(place)))
    fields = [(e, k) for e in entries for k in ('title', 'section', 'text') if e.get(k)]
    tex = [html.unescape(a or b) for e, k in fields for a, b in FORMULA.findall(e[k])]
    known = formulas(tex)
    for e, k in fields:
        e[k] = FORMULA.sub(lambda m: html.escape(known[html.unescape(m[1] or m[2])], quote=False), e[k])
    path.write_text(json.dumps(entries, ensure_ascii=False, indent=1), encoding='utf-8')
