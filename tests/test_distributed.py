"Several processes: what does not belong on the page of lesson 19. The processes import these functions from this file."
import os, signal, time
from multiprocessing import active_children
import pytest, torch, torch.distributed as dist
from torch import nn
from torch.testing import assert_close

from course_lib.datasets import DataLoaders, EpochSampler, MemoryLoader
from course_lib.distributed import (DistributedCB, ShardSampler, SyncBatchNorm, combine_stats, convert_sync, layer_steps, run_processes,
                                    shard_stats)
from course_lib.learner import MomentumLearner
from course_lib.norms import BatchNorm

pytestmark = pytest.mark.timeout(900)


def several(): return dist.get_rank(), dist.get_world_size()

def fails_in_1():
    if dist.get_rank() == 1: raise KeyError('planted')
    dist.barrier()

def killed_in_1():
    if dist.get_rank() == 1: os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()

def sleeps(): time.sleep(1000)

def draw(*shape, seed=0): return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

def one_value_each(): # two values a channel in all: each process sees -1 or 1
    y = SyncBatchNorm(2).double()(torch.full((1, 2), float(dist.get_rank()), dtype=torch.float64))
    try: SyncBatchNorm(2)(torch.ones(1 - dist.get_rank(), 2)); error = ''
    except ValueError as e: error = str(e)
    m = SyncBatchNorm(2, momentum=None, affine=False)
    for i in range(3): m(torch.full((3, 2, 4), float(10*i + dist.get_rank())))
    half = SyncBatchNorm(2)(torch.randn(3, 2).half()).dtype
    return y.detach(), error, m.running_mean, m.eval()(torch.ones(1, 2)).detach(), half


def test_results_in_order():
    assert run_processes(several, 2) == [(0, 2), (1, 2)]
    assert not active_children()

@pytest.mark.parametrize('f,error', [(fails_in_1, 'process 1 of 2 failed first.*planted'), (killed_in_1, 'process 1 of 2 failed first: it died without a word')])
def test_the_first_error_comes_back(f, error):
    with pytest.raises(RuntimeError, match=f'(?s){error}'): run_processes(f, 2)
    assert not active_children()

def test_time_limit():
    with pytest.raises(TimeoutError, match='no result from process 0, 1 of 2 within 5 s'): run_processes(sleeps, 2, timeout=5)
    assert not active_children()

def test_corners():
    for rank, (y, error, mean, alone, half) in enumerate(run_processes(one_value_each, 2)):
        assert_close(y, torch.full((1, 2), (2*rank - 1)*(.25/(.25 + 1e-5))**.5, dtype=torch.float64))
        assert 'got 1 in all processes together' in error
        assert_close(mean, torch.full((2,), 10.5))   # momentum None: the mean of .5, 10.5 and 20.5
        assert alone.shape == (1, 2) and half == torch.float16

@pytest.mark.parametrize('shape', [(7, 3), (7, 3, 4), (7, 3, 4, 5)])
def test_two_are_one(shape):
    "2-D to 4-D input, without an affine and without statistics, shards of 5 and 2"
    layers = {str(kw): (BatchNorm(3, **kw).double(), SyncBatchNorm(3, **kw).double()) for kw in (dict(), dict(affine=False), dict(bias=False))}
    x, g = draw(*shape), draw(*shape, seed=1)
    two = run_processes(layer_steps, 2, {k: v[1] for k, v in layers.items()}, [[(x[:5], g[:5]), (x[5:], g[5:])]])
    one = layer_steps({k: v[0] for k, v in layers.items()}, [[(x, g)]])
    for k in layers:
        for what in ('y', 'dx'): assert_close(torch.cat([o[k][what][0] for o in two]), one[k][what][0], rtol=1e-10, atol=1e-10)
        for o in two: assert_close(o[k]['buffers'], one[k]['buffers'], rtol=1e-10, atol=1e-10)


def test_combine_far_from_zero():
    x = draw(6, 3, 50) + 1e6
    n, mean, var = combine_stats(torch.stack([shard_stats(o) for o in (x[:1], x[1:1], x[1:])]))
    assert n == 300
    assert_close(mean, x.mean((0, 2)))
    assert_close(var, x.var((0, 2), correction=0), rtol=1e-8, atol=0)

def test_alone_is_batchnorm():
    "Without a group: outputs, errors and state of BatchNorm"
    x = draw(4, 3, 5)
    assert_close(SyncBatchNorm(3).double()(x), BatchNorm(3).double()(x), rtol=0, atol=0)
    with pytest.raises(ValueError, match='more than 1 value'): SyncBatchNorm(3)(torch.ones(1, 3))
    SyncBatchNorm(3).load_state_dict(nn.SyncBatchNorm(3).state_dict())

def test_convert_keeps_what_was_learned():
    old = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, eps=.1, momentum=.3)).double()
    nn.init.normal_(old[1].weight)
    new = convert_sync(old)
    assert type(new[1]) is SyncBatchNorm and (new[1].eps, new[1].momentum) == (.1, .3) and type(old[1]) is nn.BatchNorm2d
    x = draw(2, 1, 6, 6)
    assert_close(new(x), old(x))

def test_shards_resume():
    "A sampler that was saved in the middle of an epoch goes on there"
    whole = EpochSampler(21, 8, seed=3)
    shard = ShardSampler(whole, 1, 2)
    rest = shard.order()[4:]
    shard.load_state_dict(dict(seed=3, epoch=0, batch=1))
    assert_close(shard.order(), rest)
    assert sorted(sum((ShardSampler(whole, r, 2).order().tolist() for r in range(2)), [])) == list(range(21))

def test_callback_needs_a_group():
    loader = MemoryLoader(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4, dtype=torch.long), EpochSampler(4, 2))
    learn = MomentumLearner(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), DataLoaders(loader, loader), cbs=[DistributedCB()])
    with pytest.raises(RuntimeError, match='no process group'): learn.fit(1)
