"Every decimal in the prose of the lessons on experiments stands in an output of its page, or in a short list."

import re
from pathlib import Path

import nbformat, pytest

NBS = Path(__file__).parents[1] / 'nbs'
NUMBER = re.compile(r'(?<![\w.,])[-−+]?\d*\.\d+(?![\d.]*\w)')
LEFT_OUT = re.compile(r'```.*?```|`[^`]*`|\$\$.*?\$\$|\$.*?\$|\]\([^)]*\)|<[^>]*>', re.S)
# What no cell prints: published numbers, sections of papers, and rows that tests/test_experiments.py compares.
ELSEWHERE = {
    '10_seeds': '4.3 2.8',  # Student's t for three and five seeds
    '11_small_batch': '.031 10.6 .975 .9841 .9837 .9825',  # one_pixel.jsonl; Wu and He; one_epoch.jsonl
    '12_famous_results': '0.9707 0.9813 0.966 0.14 0.93 0.12 0.029 2.8',  # published; detached and batch_size.jsonl
    '13_why_batchnorm': '0.16 0.33 3.3 2.1',  # why_batchnorm.jsonl; sections
    '14_depth': '',
    '15_residual': '5.1',  # a section
    '16_transformers': '8.45 5.3',  # published; a section
    '17_without_layernorm': '0.25 82.5 82.3',  # what counts as failed; published
    '18_width': '0.0003',  # the smallest rate of the residual nets' grid
    '19_scale_invariance': '0.0005 .59 .009 .029 5.1 3.1',  # a usual decay; scale_parts and norm_decay.jsonl; sections
    '23_fine_tuning': '4.2',  # a section
    '26_towards_90': '.05 .919 2.8',  # a rate; towards90.jsonl; 84,186 over 30,274 parameters
}


def decimals(text):
    "The numbers with a decimal point, without their signs, as they stand there."
    return [found.lstrip('-−+') for found in NUMBER.findall(text)]


def outputs(nb):
    "All numbers that the page's saved outputs and its code show."
    texts = []
    for cell in nb.cells:
        if cell.cell_type == 'code':
            texts.append(cell.source)
            for o in cell.outputs:
                data = o.get('data', {})
                texts += [o.get('text', ''), data.get('text/plain', ''), data.get('text/markdown', '')]
    return [float(n) for text in texts for n in re.findall(r'\d*\.?\d+(?:e-?\d+)?', text)]


def missing(page):
    nb = nbformat.read(NBS / f'{page}.ipynb', 4)
    prose = '\n'.join(LEFT_OUT.sub(' ', cell.source) for cell in nb.cells if cell.cell_type == 'markdown')
    shown = outputs(nb)
    return [
        n
        for n in dict.fromkeys(decimals(prose))
        if not any(abs(value - float(n)) <= 0.501 * 10.0 ** -len(n.split('.')[1]) for value in shown)
    ]


@pytest.mark.parametrize('page', ELSEWHERE)
def test_decimals(page):
    assert missing(page) == ELSEWHERE[page].split()


def test_a_wrong_number_is_found(monkeypatch, tmp_path):
    "A digit changed in the prose of a page is missed in its outputs"
    nb = nbformat.read(NBS / '23_fine_tuning.ipynb', 4)
    (cell,) = [c for c in nb.cells if '(-0.002, from -0.011 to +0.006: open)' in c.source]
    cell.source = cell.source.replace('-0.011 to', '-0.019 to')
    nbformat.write(nb, tmp_path / '23_fine_tuning.ipynb')
    monkeypatch.setattr('test_prose_numbers.NBS', tmp_path)
    assert missing('23_fine_tuning') == ['0.019', '4.2']
