"The command for GPUs runs on the CPU, small; a wrong layer, a red lesson and a section that never ends are seen."
import json
import time
import zipfile

import pytest
from torch import nn

import budgets
import gpu
from course_lib import bench


@pytest.fixture
def check(tmp_path, monkeypatch):
    "Run sections on the CPU; returns exit status and what was saved"
    for k in ('COURSE_DATA', 'COURSE_SAMPLE', 'HF_HUB_OFFLINE', 'PYTHONPATH', 'TRITON_INTERPRET'):
        monkeypatch.setenv(k, '')  # so that what the command sets goes away with the test
    monkeypatch.syspath_prepend(tmp_path)

    def run(sections, *args):
        out = tmp_path/'gpu.json'
        status = gpu.main(['--device', 'cpu', '--sections', sections, '--out', str(out), *args])
        return status, json.loads(out.read_text())['sections']
    return run


def test_every_section_runs(check, monkeypatch, capsys):
    monkeypatch.setattr(budgets, 'bench_pages', lambda path, workers: .5)
    monkeypatch.setattr(gpu.shutil, 'which', lambda name: name)
    status, found = check(','.join(gpu.SECTIONS))
    said = capsys.readouterr().out
    assert status==0 and set(found)==set(gpu.SECTIONS)
    assert {k for k,o in found.items() if o['state']=='skipped'}-{'fused'}=={'waits', 'memory'}   # only a GPU has them
    for name, section in found.items():
        assert f"{name}: {section['state']}" in said
        assert section['why'] if section['state']=='skipped' else section['rows']
    modes = {row['what'].split(', ')[-1] for row in found['layers']['rows']}
    assert modes==set(gpu.MODES)
    assert found['lessons']['rows']==[dict(what='01_start', value=30., unit='s', ok=True)]


class Biased(nn.LayerNorm):
    "Bessel's correction where there is none"
    def forward(self, x):
        mean, std = x.mean((1,2,3), keepdim=True), x.std((1,2,3), keepdim=True)
        return (x-mean)/std*self.weight + self.bias


def test_a_wrong_layer_is_seen(check, monkeypatch, capsys):
    monkeypatch.setitem(bench.NORM_PAIRS, 'layer', (lambda s: Biased(s[1:]), bench.NORM_PAIRS['layer'][1]))
    monkeypatch.setattr(gpu, 'MODES', dict(float32=gpu.MODES['float32']))
    status, found = check('layers,stack')
    assert status==1 and found['layers']['state']=='failed' and found['layers']['why']=='layer, float32'
    assert [row['ok'] for row in found['layers']['rows']]==[name!='layer' for name in bench.NORM_PAIRS]
    assert found['stack']['state']=='ok'           # the others go on
    assert 'WRONG' in capsys.readouterr().out


def test_a_lesson_that_fails(check, monkeypatch):
    def red(path, workers):
        raise RuntimeError(f'nbdev_test failed: {path.name}')
    monkeypatch.setattr(budgets, 'bench_pages', red)
    monkeypatch.setattr(gpu.shutil, 'which', lambda name: name)
    status, found = check('lessons')
    assert status==1 and '01_start.ipynb' in found['lessons']['rows'][0]['error']


def test_reasons():
    def endless(device):
        yield dict(what='first', value=1, unit='')
        time.sleep(600)

    def missing(device):
        yield dict(what='first', value=1, unit='')
        import there_is_no_such_package  # noqa: F401

    late, absent = (gpu.run_section(f, 1, 'cpu') for f in (endless, missing))
    assert late['state']=='failed' and 'not done after 1 s' in late['why'] and len(late['rows'])==1
    assert absent['state']=='skipped' and absent['why']=='there_is_no_such_package is not installed'


def test_wheels(check, tmp_path):
    "A missing package comes from the folder; an installed one stays"
    for name in ('only_in_a_wheel', 'torcheval'):
        with zipfile.ZipFile(tmp_path/f'{name}-9.9-py3-none-any.whl', 'w') as wheel:
            wheel.writestr(f'{name}/planted.py', 'found = 1\n')
            wheel.writestr(f'{name}/__init__.py', '')
    check('memory', '--wheels', str(tmp_path))
    from only_in_a_wheel.planted import found
    assert found==1
    with pytest.raises(ModuleNotFoundError):
        import torcheval.planted  # noqa: F401


def test_limits():
    assert sum(limit for _, limit in gpu.SECTIONS.values())<480
