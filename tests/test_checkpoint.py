"""A training process is killed with SIGKILL at random moments and started again until it is done; then the bits of
its parameters, history and recorded values are those of a run that was never stopped."""

import os, random, signal, sys, time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault('IN_TEST', '1')
import pytest, torch
from torch import nn, optim
from torch.optim import lr_scheduler

from course_lib.core import set_seed
from course_lib.datasets import DataLoaders, EpochSampler, StreamLoader, from_sample
from course_lib.learner import (
    BatchTransformCB,
    Callback,
    CancelEpochException,
    CancelFitException,
    Learner,
    MetricsCB,
    MomentumLearner,
)
from course_lib.training import (
    BatchSchedCB,
    CheckpointCB,
    EpochSchedCB,
    ParamScheduler,
    RecorderCB,
    read_checkpoint,
    sched_cos,
)

EPOCHS, N, BS = 3, 400, 50
STEPS = EPOCHS * N // BS


@pytest.fixture(scope='module')
def dd():
    torch.set_num_threads(1)  # the kill test forks: no threads that a child would lack
    full = from_sample()
    return type(full)({k: v.select(range(n)) for (k, v), n in zip(full.items(), (N, 100))})


def net():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(4 * 196, 10)
    )


class SlowCB(Callback):
    "Stretches a fit, so that there is something to kill."

    def __init__(self, seconds):
        self.seconds = seconds

    def after_batch(self, learn):
        time.sleep(self.seconds)


class StopCB(Callback):
    "Ends the fit after so many training steps, also in a validation pass."

    order = 950

    def __init__(self, steps):
        self.left = steps

    def after_batch(self, learn):
        self.left -= 1
        if self.left == 0:
            raise CancelFitException


def jitter(b):
    return b[0] + 0.1 * torch.randn_like(b[0]), b[1]


def run(dd, *cbs, loader='in_memory', sched='cycle', seed=42, opt_func=None):
    "A new learner with everything that has a state"
    set_seed(seed)
    dls = DataLoaders.in_memory(dd, BS, device='cpu') if loader == 'in_memory' else DataLoaders.from_dd(dd, BS)
    scheds = dict(
        cycle=lambda: BatchSchedCB(partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=STEPS)),
        step=lambda: EpochSchedCB(partial(lr_scheduler.StepLR, step_size=1)),
        cos=lambda: ParamScheduler('lr', sched_cos(0.1, 0.0)),
    )
    cbs = [
        MetricsCB(verbose=False, accuracy='MulticlassAccuracy'),
        RecorderCB(),
        scheds[sched](),
        BatchTransformCB(jitter, on_valid=False),
        *cbs,
    ]
    if opt_func:
        return Learner(net(), dls, lr=0.01, cbs=cbs, opt_func=opt_func)
    return MomentumLearner(net(), dls, lr=0.1, cbs=cbs)


def result(learn):
    "Everything that must agree to the bit"
    return [p.clone() for p in learn.model.state_dict().values()], learn.cbs[0].history, learn.cbs[1].values


def assert_same(a, b):
    for x, y in zip(a[0], b[0], strict=True):
        assert torch.equal(x, y)
    assert a[1:] == b[1:]


def fit(learn, **kwargs):
    learn.fit(EPOCHS, **kwargs)
    return learn


# ---- killed
def train_in_child(dd, path, out, seconds):
    "The whole program of the process that is killed"
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        learn = fit(run(dd, SlowCB(seconds), CheckpointCB(path, every=1, resume=True)))
        torch.save(result(learn), out)
        code = 0
    finally:
        os._exit(code)


def stamp(path):
    return path.stat().st_mtime_ns if path.exists() else None


def killed(pid, path, saves, delay):
    "Kill a child that many saves and so many seconds from now, on any machine; False if it ended by itself"
    last, kill_at = stamp(path), None
    while (done := os.waitpid(pid, os.WNOHANG))[0] == 0:
        now = stamp(path)
        saves, last = saves - (now != last), now
        if saves <= 0 and kill_at is None:
            kill_at = time.time() + delay
        if kill_at is not None and time.time() >= kill_at:
            os.kill(pid, signal.SIGKILL)
            done = os.waitpid(pid, 0)
            break
        time.sleep(0.002)
    if os.WIFSIGNALED(done[1]):
        return True
    assert os.WEXITSTATUS(done[1]) == 0
    return False


@pytest.mark.skipif(sys.platform == 'win32', reason='needs fork and SIGKILL')
@pytest.mark.timeout(300)
@pytest.mark.parametrize('trial', range(int(os.environ.get('KILL_TRIALS', 2))))
def test_killed_at_random_moments(dd, tmp_path, trial):
    "`KILL_TRIALS=20 pytest -s -k killed tests/test_checkpoint.py` kills more often and says how often"
    want = result(fit(run(dd)))
    path, out, rng = tmp_path / 'run.pt', tmp_path / 'result.pt', random.Random(trial)
    kills, where = 0, set()
    while True:
        pid = os.fork()
        if pid == 0:
            train_in_child(dd, path, out, 0.005)
        if killed(pid, path, saves=rng.randrange(4), delay=rng.uniform(0, 0.05)):
            kills += 1
            if path.exists():
                where.add((s := read_checkpoint(path))['epoch'] * (N // BS) + s['batch'])  # always a whole file
        else:
            break
    assert kills >= 3 and len(where) >= 3, f'{kills} kills, checkpoints at steps {where}: nothing was tested'
    print(f'{kills} kills, checkpoints at {len(where)} different steps')
    assert_same(torch.load(out, weights_only=True), want)


# ---- stopped at each possible batch, in training and in validation
@pytest.mark.parametrize(
    'loader,sched', [('in_memory', 'cycle'), ('in_memory', 'step'), ('in_memory', 'cos'), ('from_dd', 'cycle')]
)
def test_stopped_anywhere(dd, tmp_path, loader, sched):
    want = result(fit(run(dd, loader=loader, sched=sched)))
    total = EPOCHS * (N // BS + 100 // BS)
    for stop in range(1, total, 3 if loader == 'in_memory' and sched == 'cycle' else 8):
        path = tmp_path / f'{stop}.pt'
        fit(run(dd, CheckpointCB(path, every=3), StopCB(stop), loader=loader, sched=sched))
        set_seed(7)  # whatever the new process has drawn before
        assert_same(result(fit(run(dd, CheckpointCB(path, every=3, resume=True), loader=loader, sched=sched))), want)


def test_adam(dd, tmp_path):
    want = result(fit(run(dd, opt_func=optim.AdamW, sched='step')))
    fit(run(dd, CheckpointCB(tmp_path / 'a.pt', every=1), StopCB(13), opt_func=optim.AdamW, sched='step'))
    assert_same(
        result(fit(run(dd, CheckpointCB(tmp_path / 'a.pt', resume=True), opt_func=optim.AdamW, sched='step'))), want
    )


def test_no_validation(dd, tmp_path):
    want = result(fit(run(dd), valid=False))
    fit(run(dd, CheckpointCB(tmp_path / 'a.pt', every=3), StopCB(11)), valid=False)
    assert_same(result(fit(run(dd, CheckpointCB(tmp_path / 'a.pt', resume=True)), valid=False)), want)


def test_passes_that_are_left_early(dd, tmp_path):
    "Each training pass is cancelled after three batches: the next epoch has its own order all the same"

    class Short(Callback):
        def before_batch(self, learn):
            if learn.training and learn.iter == 3:
                raise CancelEpochException

    want = result(fit(run(dd, Short())))
    fit(run(dd, Short(), CheckpointCB(tmp_path / 'a.pt'), StopCB(8)))
    assert_same(result(fit(run(dd, Short(), CheckpointCB(tmp_path / 'a.pt', resume=True)))), want)


def test_finished_run_is_loaded(dd, tmp_path):
    want = result(fit(run(dd, CheckpointCB(tmp_path / 'a.pt'))))
    assert_same(result(fit(run(dd, CheckpointCB(tmp_path / 'a.pt', resume=True)))), want)


def test_saving_changes_nothing(dd, tmp_path):
    assert_same(result(fit(run(dd, CheckpointCB(tmp_path / 'a.pt', every=1)))), result(fit(run(dd))))


# ---- what a module or a scheduler adds
class Counted(nn.Linear):
    "Keeps what is no tensor in its state: numbers, or a dictionary of lists and tensors"

    def __init__(self, *args):
        super().__init__(*args)
        self.seen = dict(n=0, sums=[], last=torch.zeros(2))

    def forward(self, x):
        if self.training:
            self.seen = dict(
                n=self.seen['n'] + 1, sums=[*self.seen['sums'], x.sum().item()][-3:], last=x[0, :2].detach().clone()
            )
        return super().forward(x)

    def get_extra_state(self):
        return self.seen

    def set_extra_state(self, state):
        self.seen = state


class Number(Counted):
    def get_extra_state(self):
        return self.seen['n']

    def set_extra_state(self, state):
        self.seen['n'] = state


@pytest.mark.parametrize('layer', [Counted, Number])
def test_extra_state(dd, tmp_path, layer):
    def make(*cbs):
        learn = run(dd, *cbs)
        learn.model[5] = layer(4 * 196, 10)
        return learn

    path = tmp_path / 'a.pt'
    want = fit(make())
    fit(make(CheckpointCB(path, every=1), StopCB(13)))
    got = fit(make(CheckpointCB(path, resume=True)))
    assert got.model[5].seen['n'] == STEPS == want.model[5].seen['n']
    if layer is Counted:
        torch.testing.assert_close(got.model[5].seen, want.model[5].seen, rtol=0, atol=0)
    states = [{k: v for k, v in o.model.state_dict().items() if isinstance(v, torch.Tensor)} for o in (got, want)]
    torch.testing.assert_close(*states, rtol=0, atol=0)


@pytest.mark.parametrize('state', [lambda: lambda: 0, lambda: dict(a=Path('x'))])
def test_extra_state_that_runs_code(dd, tmp_path, state):
    class Hiding(nn.Linear):
        def get_extra_state(self):
            return state()

    learn = run(dd, CheckpointCB(tmp_path / 'a.pt'), Untouched())
    learn.model[5] = Hiding(4 * 196, 10)
    with pytest.raises(ValueError, match='5._extra_state is a .* without running code'):
        fit(learn)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize('valid', [True, False])
def test_plateau(dd, tmp_path, valid):
    "In the middle of the pass whose mean loss it waits for"

    class Plateau(EpochSchedCB):
        def __init__(self):
            super().__init__(partial(lr_scheduler.ReduceLROnPlateau, factor=0.5, patience=0, threshold=0.5))

    def make(*cbs):
        set_seed(42)
        dls = DataLoaders.in_memory(dd, BS, device='cpu')
        return MomentumLearner(net(), dls, lr=0.1, cbs=[MetricsCB(verbose=False), RecorderCB(), Plateau(), *cbs])

    want = result(fit(make(), valid=valid))
    path = tmp_path / 'a.pt'
    fit(make(CheckpointCB(path, every=1), StopCB(13)), valid=valid)
    assert_same(result(fit(make(CheckpointCB(path, resume=True)), valid=valid)), want)
    assert want[2]['lr'][0] > want[2]['lr'][-1]


# ---- refused
class Untouched(Callback):
    "Refusals come before the first batch"

    def before_batch(self, learn):
        raise AssertionError('a batch was trained')


def test_missing_folder(dd, tmp_path):
    for path in (tmp_path / 'none' / 'a.pt', tmp_path / 'größe' / 'b' / 'a.pt'):
        with pytest.raises(FileNotFoundError, match='there is no folder'):
            fit(run(dd, CheckpointCB(path), Untouched()))
    folder = tmp_path / 'größe 日本'
    folder.mkdir()
    fit(run(dd, CheckpointCB(folder / 'a.pt')))
    assert read_checkpoint(folder / 'a.pt')['epoch'] == EPOCHS


def test_loaders_that_cannot_go_on(dd, tmp_path):
    x, y = torch.randn(64, 1, 28, 28), torch.arange(64) % 10
    rows = torch.utils.data.TensorDataset(x, y)
    for train in (torch.utils.data.DataLoader(rows, 16, shuffle=True), [(x, y)], iter([(x, y)])):
        learn = run(dd, CheckpointCB(tmp_path / 'a.pt'), Untouched(), sched='step')
        learn.dls = SimpleNamespace(train=train, valid=[(x, y)])
        with pytest.raises(ValueError, match=f'this {type(train).__name__} cannot save its position.*StreamLoader'):
            learn.fit(1)
    sampled = StreamLoader(rows, EpochSampler(64, 16))  # what the message asks for
    learn = run(dd, CheckpointCB(tmp_path / 'a.pt'), sched='step')
    learn.dls = SimpleNamespace(train=sampled, valid=[(x, y)])
    learn.fit(1)
    assert read_checkpoint(tmp_path / 'a.pt')['data']['epoch'] == 1


def test_refused(dd, tmp_path):
    path = tmp_path / 'a.pt'
    fit(run(dd, CheckpointCB(path)))
    before = path.read_bytes()
    again = CheckpointCB(path, resume=True)
    with pytest.raises(FileExistsError, match='exists'):
        fit(run(dd, CheckpointCB(path)))
    with pytest.raises(ValueError, match='epochs was 3, is 5'):
        run(dd, again).fit(5)
    with pytest.raises(ValueError, match='passes'):
        fit(run(dd, again), valid=False)
    with pytest.raises(ValueError, match='callbacks'):
        fit(run(dd, again, sched='step'))
    with pytest.raises(ValueError, match='optimizer was SGD, is Adam'):
        fit(run(dd, again, opt_func=optim.Adam))
    with pytest.raises(ValueError, match='lr was None, is 3'):
        fit(run(dd, CheckpointCB(path, resume=True, config=dict(lr=3))))
    learn = run(dd, again)
    learn.model[5] = nn.Linear(4 * 196, 11)
    with pytest.raises(ValueError, match='model.5.weight'):
        fit(learn)
    assert path.read_bytes() == before and not list(tmp_path.glob('*.tmp'))


@pytest.mark.parametrize('size', [0, 10, 1000])
def test_damaged(dd, tmp_path, size):
    path = tmp_path / 'a.pt'
    fit(run(dd, CheckpointCB(path)))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match='damaged or no checkpoint'):
        fit(run(dd, CheckpointCB(path, resume=True)))


def test_leftover_temporary_file(dd, tmp_path):
    (tmp_path / 'a.pt.tmp').write_bytes(b'half a checkpoint')
    fit(run(dd, CheckpointCB(tmp_path / 'a.pt', resume=True)))
    assert read_checkpoint(tmp_path / 'a.pt')['epoch'] == EPOCHS and not (tmp_path / 'a.pt.tmp').exists()
