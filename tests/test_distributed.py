"Several processes: what does not belong on their pages. The processes import these functions from this file."

import os, signal, time
from functools import partial
from multiprocessing import active_children
from pathlib import Path
import pytest, torch, torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from course_lib.datasets import DataLoaders, EpochSampler, MemoryLoader
from course_lib.distributed import AccelerateCB, DistributedCB, ShardSampler, SyncBatchNorm, convert_sync, run_processes
from course_lib.learner import BatchTransformCB, MomentumLearner, TrainCB
from course_lib.norms import BatchNorm, GroupNorm
from course_lib.norms.convert import norm_report
from course_lib.training import BatchSchedCB, CheckpointCB, RecorderCB, read_checkpoint

pytestmark = pytest.mark.timeout(900)


def several():
    return dist.get_rank(), dist.get_world_size()


def fails_in_1():
    if dist.get_rank() == 1:
        raise KeyError('planted')
    dist.barrier()


def killed_in_1():
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def sleeps():
    time.sleep(1000)


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def one_value_each():  # two values a channel in all: each process sees -1 or 1
    y = SyncBatchNorm(2).double()(torch.full((1, 2), float(dist.get_rank()), dtype=torch.float64))
    try:
        SyncBatchNorm(2)(torch.ones(1 - dist.get_rank(), 2))
        error = ''
    except ValueError as e:
        error = str(e)
    m = SyncBatchNorm(2, momentum=None, affine=False)
    for i in range(3):
        m(torch.full((3, 2, 4), float(10 * i + dist.get_rank())))
    half = SyncBatchNorm(2)(torch.randn(3, 2).half()).dtype
    return y.detach(), error, m.running_mean, m.eval()(torch.ones(1, 2)).detach(), half


def test_results_in_order():
    assert run_processes(several, 2) == [(0, 2), (1, 2)]
    assert not active_children()


@pytest.mark.parametrize(
    'f,error',
    [
        (fails_in_1, 'process 1 of 2 failed first.*planted'),
        (killed_in_1, 'process 1 of 2 failed first: it died without a word'),
    ],
)
def test_the_first_error_comes_back(f, error):
    with pytest.raises(RuntimeError, match=f'(?s){error}'):
        run_processes(f, 2)
    assert not active_children()


def test_time_limit():
    with pytest.raises(TimeoutError, match='no result from process 0, 1 of 2 within 5 s'):
        run_processes(sleeps, 2, timeout=5)
    assert not active_children()


def test_corners():
    for rank, (y, error, mean, alone, half) in enumerate(run_processes(one_value_each, 2)):
        assert_close(y, torch.full((1, 2), (2 * rank - 1) * (0.25 / (0.25 + 1e-5)) ** 0.5, dtype=torch.float64))
        assert 'got 1 in all processes together' in error
        assert_close(mean, torch.full((2,), 10.5))  # momentum None: the mean of .5, 10.5 and 20.5
        assert alone.shape == (1, 2) and half == torch.float16


KINDS = dict(plain={}, affine=dict(affine=False), bias=dict(bias=False))


def steps_on_shards(shape, far):
    "Output, input gradient and buffers of layers whose parameters are drawn, over shards of 5 and 2 rows, then 7 and 0"
    rank, size = dist.get_rank(), dist.get_world_size()
    found = {}
    for name, options in KINDS.items():
        layer = SyncBatchNorm(3, **options).double()
        if name == 'plain':
            layer = DistributedDataParallel(layer)
        found[name] = []
        for step, cut in enumerate((5, 7)):
            x, g = draw(*shape, seed=step) + far, draw(*shape, seed=step + 10)
            part = (slice(cut), slice(cut, None))[rank] if size == 2 else slice(None)
            x = x[part].clone().requires_grad_()
            y = layer(x)
            y.backward(g[part])
            found[name].append((y.detach(), x.grad))
        found[name] += [dict(layer.named_buffers()), {k: p.grad for k, p in layer.named_parameters()}]
    return found


@pytest.mark.parametrize('shape, far', [((7, 3), 0), ((7, 3, 4), 0), ((7, 3, 4, 5), 1e4)])
def test_two_are_one(shape, far):
    "2-D to 4-D input, without an affine and without a bias; the wrapper averages the gradients of parameters"
    two, (one,) = run_processes(steps_on_shards, 2, shape, far), run_processes(steps_on_shards, 1, shape, far)
    for name in KINDS:
        for step in range(2):
            for what in range(2):
                assert_close(torch.cat([o[name][step][what] for o in two]), one[name][step][what], rtol=1e-7, atol=1e-8)
        for o in two:
            assert_close(o[name][2], one[name][2], rtol=1e-8, atol=1e-8)
    assert_close({k: 2 * g for k, g in two[0]['plain'][3].items()}, one['plain'][3], rtol=1e-7, atol=1e-8)
    for k, g in one['bias'][3].items():
        assert_close(sum(o['bias'][3][k] for o in two), g, rtol=1e-7, atol=1e-8)


def refused_by_torch():
    nn.SyncBatchNorm(3)(torch.zeros(2, 3))


def test_torch_refuses_a_cpu():
    with pytest.raises(
        RuntimeError, match='(?s)process 0 of 1 failed first.*SyncBatchNorm expected input tensor to be on GPU'
    ):
        run_processes(refused_by_torch, 1)


def test_alone_is_batchnorm():
    "Without a group: outputs, errors and state of BatchNorm"
    x = draw(4, 3, 5)
    assert_close(SyncBatchNorm(3).double()(x), BatchNorm(3).double()(x), rtol=0, atol=0)
    with pytest.raises(ValueError, match='more than 1 value'):
        SyncBatchNorm(3)(torch.ones(1, 3))
    SyncBatchNorm(3).load_state_dict(nn.SyncBatchNorm(3).state_dict())


def test_convert_keeps_what_was_learned():
    old = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, eps=0.1, momentum=0.3)).double()
    nn.init.normal_(old[1].weight)
    new = convert_sync(old)
    assert (
        type(new[1]) is SyncBatchNorm and (new[1].eps, new[1].momentum) == (0.1, 0.3) and type(old[1]) is nn.BatchNorm2d
    )
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
    loader = MemoryLoader(
        torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4, dtype=torch.long), EpochSampler(4, 2)
    )
    learn = MomentumLearner(
        nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), DataLoaders(loader, loader), cbs=[DistributedCB()]
    )
    with pytest.raises(RuntimeError, match='no process group'):
        learn.fit(1)


def report_in_0():
    "One process looks at its norms, while the other does not wait for a message"
    m = nn.Sequential(SyncBatchNorm(2)).double()
    rows = norm_report(m, draw(8, 2, 3) + dist.get_rank()) if dist.get_rank() == 0 else []
    dist.barrier()
    return [r['gap'] for r in rows]


def test_a_report_sends_no_message():
    gaps, none = run_processes(report_in_0, 2, timeout=60)
    assert len(gaps) == 1 and gaps[0] > 0 and not none


# accelerate
class Clipped(TrainCB):
    "The step of `AccelerateCB(max_norm=...)`, written by hand"

    def __init__(self, max_norm):
        super().__init__()
        self.max_norm = max_norm

    def step(self, learn):
        nn.utils.clip_grad_norm_(learn.model.parameters(), self.max_norm)
        super().step(learn)


def new_learner(cbs=(), batch_size=16, rows=72, norm=None):
    "A small learner in float64: every call gives the same one"
    g = torch.Generator().manual_seed(0)
    x, y = torch.randint(256, (rows, 1, 4, 4), dtype=torch.uint8, generator=g), torch.randint(3, (rows,), generator=g)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), norm(4) if norm else GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    ).double()
    dls = DataLoaders(*(MemoryLoader(x, y, EpochSampler(rows, batch_size, shuffle)) for shuffle in (True, False)))
    return MomentumLearner(model, dls, lr=0.1, cbs=[BatchTransformCB(lambda b: (b[0].double(), b[1])), *cbs])


def fitted(cbs=(), fits=(2,), **kwargs):
    "State and losses after the fits"
    learn, rec = new_learner([*cbs, RecorderCB(loss=lambda o: o.loss)], **kwargs), []
    sched = partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.8)
    for n in fits:
        learn.fit(n, cbs=[BatchSchedCB(sched)])
        rec += learn.cbs[-1].values['loss']
    return learn.model.state_dict(), torch.tensor(rec, dtype=torch.float64)


class NoAccelerator:
    "A fresh `accelerate` before and after: its state belongs to a process"

    def __enter__(self):
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    def __exit__(self, *args):
        self.__enter__()


@pytest.fixture
def fresh():
    with NoAccelerator() as f:
        yield f


close = partial(assert_close, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('norm', [None, BatchNorm])
def test_alone_accelerate_is_the_plain_learner(fresh, norm):
    "Two fits with a schedule, the second from where the data stand; a last batch of 8"
    close(fitted([AccelerateCB(cpu=True)], fits=(2, 1), norm=norm), fitted(fits=(2, 1), norm=norm))


def test_accumulation_and_clipping(fresh):
    "Two batches of 8 are one of 16, for a norm that does not mix images; `max_norm` clips their sum"
    two = AccelerateCB(cpu=True, gradient_accumulation_steps=2)
    learn = new_learner([two], batch_size=8, rows=64)
    learn.fit(2)
    want = new_learner(rows=64)
    want.fit(2)
    # both orders are cut from one permutation: rows 0-7 and 8-15 of the one are rows 0-15 of the other
    close(learn.model.state_dict(), want.model.state_dict())
    NoAccelerator().__enter__()
    small = fitted([AccelerateCB(max_norm=0.05, cpu=True)])
    close(small, fitted([Clipped(0.05)]))
    assert (small[0]['0.weight'] - fitted()[0]['0.weight']).abs().max() > 1e-3


def test_what_prepare_did_is_undone(fresh):
    "Under autocast, in two fits: the loss of autocast by hand; then forward, attributes and optimizer are the old ones"

    class ByHand(TrainCB):
        def predict(self, learn):
            with torch.autocast('cpu', torch.bfloat16):
                super().predict(learn)
            learn.preds = learn.preds.float()

    state, losses = [], []
    for cb in (AccelerateCB(cpu=True, mixed_precision='bf16'), ByHand()):
        learn = new_learner([cb, RecorderCB(loss=lambda o: o.loss)])
        learn.model.float()
        learn.cbs = [c for c in learn.cbs if not isinstance(c, BatchTransformCB)]
        before = {*vars(learn.model)}
        for _ in range(2):
            learn.fit(1)
            losses.append(torch.tensor(learn.cbs[-1].values['loss']))
        assert {*vars(learn.model)} == before and type(learn.opt) is torch.optim.SGD
        assert learn.model(torch.zeros(1, 1, 4, 4)).dtype == torch.float32
        state.append(learn.model.state_dict())
    assert_close(losses[:2], losses[2:])
    assert_close(*state)


def test_another_precision_is_refused_before_anything_changes(fresh):
    learn = new_learner([AccelerateCB(cpu=True)])
    learn.fit(1)
    learn.cbs[-1] = AccelerateCB(cpu=True, mixed_precision='bf16')
    dls, attrs = learn.dls, {*vars(learn.model)}
    with pytest.raises(ValueError, match='already been initialized'):
        learn.fit(1)
    assert learn.dls is dls and {*vars(learn.model)} == attrs


def accelerated(folder):
    "In each of two processes: fits as alone, also stopped and resumed; then accelerate without its environment"
    cb = partial(AccelerateCB, max_norm=0.5, cpu=True)
    whole = fitted([cb()], fits=(2, 1))[0]
    path = Path(folder) / f'{dist.get_rank()}.pt'
    new_learner([cb(), CheckpointCB(path)]).fit(2)
    names = list(read_checkpoint(path)['model'])
    learn = new_learner([cb(gradient_accumulation_steps=2)], batch_size=8, rows=64)
    learn.fit(2)
    NoAccelerator().__enter__()
    for k in ('LOCAL_RANK', 'RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE'):
        os.environ.pop(k)
    try:
        new_learner([cb()]).fit(1)
        error = ''
    except RuntimeError as e:
        error = str(e)
    return whole, names, learn.model.state_dict(), error


def test_two_accelerated_processes_are_one(fresh, tmp_path):
    one = fitted([Clipped(0.5)], fits=(2, 1))[0]
    small = new_learner([Clipped(0.5)], rows=64)
    small.fit(2)
    for whole, names, summed, error in run_processes(accelerated, 2, str(tmp_path)):
        close(whole, one)
        assert names == list(one)  # no `module.`
        close(summed, small.model.state_dict())
        assert 'accelerate knows of 1 of 2 processes' in error


def in_a_row(folder):
    "One fit of two epochs with a checkpoint, and two fits of one"
    path = Path(folder) / f'{dist.get_rank()}.pt'
    learn = new_learner([DistributedCB(), CheckpointCB(path)])
    learn.fit(2)
    names = list(read_checkpoint(path)['model'])
    again = new_learner([DistributedCB()])
    for _ in range(2):
        again.fit(1)  # two fits go through the data in two orders, as without the callback
    return names, learn.model.state_dict(), again.model.state_dict()


def test_checkpoints_and_fits_in_a_row(tmp_path):
    plain = new_learner()
    plain.fit(2)
    rows = new_learner()
    for _ in range(2):
        rows.fit(1)
    for names, state, again in run_processes(in_a_row, 2, str(tmp_path)):
        assert names == list(plain.model.state_dict())
        close(state, plain.model.state_dict())
        close(again, rows.model.state_dict())
    assert (rows.model[0].weight - plain.model[0].weight).abs().max() > 1e-6  # a new optimizer forgets its momentum


def threads_of_the_server():
    return len(os.listdir(f'/proc/{os.getppid()}/task')), os.environ.get('COURSE_TEST')


@pytest.mark.skipif(not os.path.isdir('/proc/self/task'), reason='Linux only')
def test_the_server_is_forked_before_it_has_threads(monkeypatch):
    "And its copies see the environment of the call, not that of the server's start"
    for value in ('one', 'two'):
        monkeypatch.setenv('COURSE_TEST', value)
        assert run_processes(threads_of_the_server, 2) == [(1, value)] * 2
