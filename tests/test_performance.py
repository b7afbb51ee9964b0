"The default training path waits for the device once a pass, not once a batch, whatever watches it; and the command's table judges rightly."
import pytest, torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from course_lib.activations import ActivationStats
from course_lib.bench import bench_table
from course_lib.datasets import DataLoaders
from course_lib.learner import DeviceCB, MetricsCB, MomentumLearner, ProgressCB


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
    with Reads() as r: learn.fit(1)
    return r.n


@pytest.mark.parametrize('make', [lambda: [], lambda: [MetricsCB(verbose=False, accuracy='MulticlassAccuracy')], lambda: [ProgressCB()],
                                  lambda: [ActivationStats(nn.Conv2d)]], ids=['bare', 'metrics', 'progress', 'activations'])
def test_no_read_per_batch(make):
    assert reads(12, *make()) == reads(3, *make())


def test_the_fake_counts():
    with Reads() as r: torch.ones(1).item(), torch.ones(2).nonzero()
    assert r.n == 2


def test_table():
    row = dict(norm='batch', mode='eager', format='contiguous', shape=[2, 3, 4, 4], lo=1., hi=3.)
    met = lambda r: bench_table(dict(rows=[row | dict(ratio=r)]))[0]['met']
    assert met(2.5) and not met(2.51)
    stack = lambda r: bench_table(dict(rows=[], stack=[dict(models=16, batch_size=2, norm='batch', ratio=r)]))[0]['met']
    assert stack(5.) and not stack(4.9)
