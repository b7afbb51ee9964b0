"""The default training path waits for the device once a pass, not once a batch, whatever watches it; and the command's
table judges rightly."""
import copy
import itertools
import json
from types import SimpleNamespace

import pytest
import torch
import budgets
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from course_lib.activations import ActivationStats
from course_lib import bench, workloads
from course_lib.bench import _bench_table, course_bench
from course_lib.core import can_compile
from course_lib.datasets import DataLoaders
from course_lib.learner import DeviceCB, MetricsCB, MomentumLearner, ProgressCB
from course_lib.timing import NORM_PASSES, fused_passes, norm_pair


class Reads(TorchDispatchMode):
    "Counts what would make Python wait for a GPU: a value that is read, or a tensor whose size depends on values."
    n = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


def reads(n, *cbs):
    "Values read in one epoch of `n` batches of training and as many of validation."
    data = [(torch.randn(4, 1, 4, 4), torch.arange(4)) for _ in range(n)]
    model = nn.Sequential(nn.Conv2d(1, 4, 4), nn.Flatten())
    learn = MomentumLearner(model, DataLoaders(data, data), lr=.01, cbs=[DeviceCB('cpu'), *cbs])
    with Reads() as r:
        learn.fit(1)
    return r.n


@pytest.mark.parametrize('make', [
    lambda: [], lambda: [MetricsCB(verbose=False, accuracy='MulticlassAccuracy')], lambda: [ProgressCB()],
    lambda: [ActivationStats(nn.Conv2d)]], ids=['bare', 'metrics', 'progress', 'activations'])
def test_no_read_per_batch(make):
    assert reads(12, *make()) == reads(3, *make())


def test_the_fake_counts():
    with Reads() as r:
        torch.ones(1).item()
        torch.ones(2).nonzero()
    assert r.n == 2


@pytest.mark.skipif(not can_compile(), reason='there is no C++ compiler')
@pytest.mark.parametrize('name, most', [('group', 10.1), ('instance', 10.1), ('batch', 9.1), ('layer', 7.2),
                                        ('rms', 7.2), ('running', 8.1)])
def test_walks_of_the_compiled_step(name, most):
    "The kernels that the plain formulas compile to read and write no more often than this."
    ours, _, x, g = norm_pair(name, (64, 16, 14, 14))
    assert NORM_PASSES < fused_passes(ours, x, g) < most


def met(ratio, **more):
    row = dict(norm='batch', mode='compiled', format='contiguous', shape=[2, 3, 4, 4], lo=1., hi=3., ours_limit=.1)
    return _bench_table(dict(rows=[row | dict(ratio=ratio) | more]))[0]['met']


def test_table():
    assert met(1.4) is True and met(1.41) is False
    assert met(9., mode='eager') is None     # eager layers are measured, not limited
    stack = dict(models=16, batch_size=2, norm='batch', flops=1, theirs_ms=1.)
    for ratio in (4.9, 5.):
        assert _bench_table(dict(rows=[], stack=[stack | dict(ratio=ratio)]))[0]['met'] == (ratio>=5)


SMALL = dict(norms='rms', shapes='2x4x4x4', modes='eager', formats='contiguous', threads=1,
             parts='ceiling,norms,epochs')


def test_saved_part_by_part(tmp_path, monkeypatch):
    def stop(**kwargs):
        raise KeyboardInterrupt
    monkeypatch.setattr(bench, 'bench_epochs', stop)
    with pytest.raises(KeyboardInterrupt):
        course_bench(**SMALL, rounds=6, out=str(tmp_path/'b.json'))
    saved = json.loads((tmp_path/'b.json').read_text())
    assert len(saved['rows']) == len(saved['table']) == 1 and saved['ceiling']['gbs'] > 0 and 'epochs' not in saved
    assert saved['rows'][0]['ours_limit'] > 0


def test_parts_are_added(tmp_path, monkeypatch):
    found = dict(ratio=6., lo=5., hi=7., norm='batch', models=16, batch_size=2, flops=1, theirs_ms=1.)
    monkeypatch.setattr(bench, 'bench_stack', lambda **how: [found])
    out = str(tmp_path/'b.json')
    course_bench(**SMALL | dict(parts='ceiling,norms'), rounds=6, out=out)
    before = json.loads((tmp_path/'b.json').read_text())
    course_bench(**SMALL | dict(parts='stack'), rounds=6, out=out)
    saved = json.loads((tmp_path/'b.json').read_text())
    assert saved['ceiling'] == before['ceiling'] and saved['rows'] == before['rows']   # what was not asked for stays
    assert len(saved['rows']) == 1 and len(saved['table']) == 2 and {'norms', 'stack'} <= {*saved['seconds']}


def test_budgets():
    "What an import of the course costs beside torch"
    seconds, own = budgets.import_times('import torch, course_lib.layernorm')
    assert seconds > 0 and own['course_lib.layernorm'] > 0


@pytest.mark.parametrize('source, fails', [('x = 1', False), ('1/0', True)])
def test_minutes_of_a_notebook(tmp_path, source, fails):
    page = tmp_path/'a.ipynb'
    cell = dict(cell_type='code', id='a', execution_count=None, metadata={}, outputs=[], source=[source])
    page.write_text(json.dumps(dict(cells=[cell], metadata={}, nbformat=4, nbformat_minor=5)))
    if fails:
        with pytest.raises(RuntimeError, match='ZeroDivisionError'):
            budgets.bench_pages(page, 0)
    else:
        assert budgets.bench_pages(page, 0) > 0


def test_without_a_compiler(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, 'can_compile', lambda: False)
    with pytest.raises(SystemExit, match='take --modes eager'):
        course_bench(**SMALL | dict(modes='compiled'), out=str(tmp_path/'b.json'))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('bad, says', [(dict(rounds=5), '6 or more'), (dict(norms='best'), 'known: batch'),
                                       (dict(parts='all'), 'known: control')])
def test_refusals(tmp_path, bad, says):
    with pytest.raises(SystemExit, match=says):
        course_bench(**SMALL | bad, out=str(tmp_path/'b.json'))
    assert not list(tmp_path.iterdir())


def test_plain_epoch_is_the_learners():
    "The rival of the Learner takes its steps: the same weights in the end"
    torch.manual_seed(0)
    data = [(torch.randn(8, 1, 4, 4), torch.randint(0, 4, (8,))) for _ in range(5)]
    ours = nn.Sequential(nn.Conv2d(1, 4, 4), nn.Flatten())
    theirs = copy.deepcopy(ours)
    workloads._plain_epoch(DataLoaders(data, data), ours)
    MomentumLearner(theirs, DataLoaders(data, data), lr=.2, cbs=[DeviceCB('cpu')]).fit(1)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_control_reads_one_clock():
    "With a clock that goes one further at each look all ratios are 1"
    ticks = itertools.count()
    control = workloads.bench_control((4, 2, 5, 5), pairs=6, clock=lambda: next(ticks))
    assert control['cold'] == 1 and {*control['single'], *control['blocks']} == {1}


def test_imports_are_compared_with_torchs(monkeypatch):
    "What `-X importtime` says of torch, in all, and of our modules, alone: the ratio is one plus our share"
    lines = '100 | 2000000 | torch', '60000 | 900000 | course_lib.core', '40000 | 950000 |   course_lib.plot'
    told = SimpleNamespace(stderr='\n'.join(f'import time: {line}' for line in lines))
    monkeypatch.setattr(budgets.subprocess, 'run', lambda *args, **kwargs: told)
    imports = budgets.bench_imports()
    assert imports['ratio'] == imports['lo'] == imports['hi'] == 1.05 and imports['torch_s'] == 2
    assert imports['own_ms'] == {'course_lib.core': 60, 'course_lib.plot': 40}
