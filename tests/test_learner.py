"What does not belong on the page on the training loop: terminals, pipes and notebooks, and every way out of a fit."

import copy, io, itertools, os, sys
from functools import partial
from types import SimpleNamespace

os.environ.setdefault('IN_TEST', '1')
import pytest, torch
from torch import nn
from torch.optim import lr_scheduler
from torch.testing import assert_close

import course_lib.learner as L
from course_lib.learner import (
    BatchTransformCB,
    Callback,
    CancelBatchException,
    CancelEpochException,
    CancelFitException,
    DeviceCB,
    Learner,
    MetricsCB,
    MomentumLearner,
    NaNGuardCB,
    ProgressCB,
    SingleBatchCB,
    TrainCB,
)
from course_lib.training import BatchSchedCB, EpochSchedCB, ParamScheduler, RecorderCB, lr_find, sched_cos

EVENTS = [
    'before_fit',
    'before_epoch',
    'before_batch',
    'after_predict',
    'after_loss',
    'after_backward',
    'after_step',
    'after_batch',
    'after_epoch',
    'after_fit',
]


def batches(*sizes, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, 6, generator=g), torch.randint(3, (n,), generator=g)) for n in sizes]


def data(train=(4, 4, 3), valid=(5, 2)):
    return SimpleNamespace(train=batches(*train), valid=batches(*valid, seed=1))


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


# ---- every way out
class Hooked(Callback):
    def before_fit(self, learn):
        self.hook = learn.model.register_forward_hook(lambda *_: None)

    def after_fit(self, learn):
        self.hook.remove()


class Raise(Callback):
    def __init__(self, event, exc, order):
        self.order = order
        setattr(self, event, self.go)
        self.exc = exc

    def go(self, learn):
        raise self.exc


@pytest.mark.parametrize('exc', [CancelFitException, ZeroDivisionError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize('event', EVENTS)
@pytest.mark.parametrize('order', [-100, 100])
def test_clean_however_it_ends(exc, event, order):
    learn = Learner(net(), data(), cbs=[Hooked(), MetricsCB(verbose=False), ProgressCB()])
    cbs = list(learn.cbs)
    try:
        learn.fit(2, cbs=[Raise(event, exc, order), Hooked()])
    except exc:
        assert exc is not CancelFitException or event == 'after_fit'
    else:
        assert exc is CancelFitException
    assert learn.cbs == cbs and not learn.model._forward_hooks and not learn.model.training and torch.is_grad_enabled()
    learn.fit(1)  # and it can be used again
    assert len(learn.metrics.history) == 2


def test_the_first_error_is_the_one_that_is_seen():
    "A callback that never joined is not asked to leave, so it cannot hide the error"

    class Late(Callback):
        order = 200

        def before_fit(self, learn):
            self.thing = 1

        def after_fit(self, learn):
            self.thing + 1

    with pytest.raises(ZeroDivisionError):
        Learner(net(), data(), cbs=[Late(), Raise('before_fit', ZeroDivisionError, 0)]).fit(1)


def test_every_after_fit_runs():
    left = []

    class Leave(Callback):
        def __init__(self, name):
            self.name = name

        def after_fit(self, learn):
            left.append(self.name)
            raise ValueError(self.name)

    with pytest.raises(ValueError):
        Learner(net(), data(), cbs=[Leave('a'), Leave('b'), Leave('c')]).fit(1)
    assert left == ['a', 'b', 'c']


@pytest.mark.parametrize(
    'exc,event', list(itertools.product([CancelBatchException, CancelEpochException], EVENTS[2:8]))
)
def test_cancelled_every_time(exc, event):
    "However often a batch or a pass is cancelled, the fit goes on to its end"
    seen = []

    class See(Callback):
        def before_epoch(self, learn):
            seen.append((learn.epoch, learn.training))

    Learner(net(), data(), cbs=[See(), Raise(event, exc, 0)]).fit(2)
    assert seen == [(0, True), (0, False), (1, True), (1, False)]


def test_order_and_ties():
    told = []

    class Tell(Callback):
        def __init__(self, name, order):
            self.name, self.order = name, order

        def before_batch(self, learn):
            told.append(self.name)

    Learner(net(), data((4,), ()), cbs=[Tell('d', 1), Tell('b', 0), Tell('a', -1), Tell('c', 0)]).fit(1)
    assert ''.join(told) == 'abcd'


def test_modes_and_gradients():
    seen = []

    class See(Callback):
        def after_predict(self, learn):
            seen.append((learn.training, learn.model.training, learn.preds.requires_grad))

    learn = Learner(net(), data((4, 4), (4,)), cbs=See())
    learn.fit(1)
    assert seen == [(True,) * 3] * 2 + [(False,) * 3]
    with torch.no_grad():
        learn.fit(1)  # a caller's no_grad does not reach into a training pass
    assert seen[3:] == seen[:3]


def test_validation_changes_nothing():
    learn = Learner(net(), data())
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    learn.fit(2, train=False)
    assert_close(learn.model.state_dict(), before, rtol=0, atol=0)


def test_a_changed_verb():
    class Twice(TrainCB):
        def predict(self, learn):
            learn.preds = 2 * learn.model(learn.batch[0])

    learn = Learner(net(), data(), cbs=[Twice(), SingleBatchCB()])
    learn.fit(1)
    torch.manual_seed(0)
    assert_close(learn.preds, 2 * net()(learn.batch[0]))


def test_momentum():
    a = MomentumLearner(net(), data(), momentum=0.7)
    a.fit(1)
    g = a.opt.param_groups[0]
    assert (g['momentum'], g['weight_decay'], g['dampening'], g['nesterov']) == (0.7, 0, 0, False)


def test_lr_find_leaves_model_and_optimizer_as_they_were():
    learn = MomentumLearner(net(), data((4,) * 12), lr=0.1)
    learn.fit(2)
    opt, state = learn.opt, lambda: copy.deepcopy((learn.model.state_dict(), learn.opt.state_dict()['state']))
    before, groups = state(), copy.deepcopy(opt.state_dict()['param_groups'])
    assert all('momentum_buffer' in o for o in before[1].values())
    lr_find(learn, plot=False)
    assert learn.opt is opt and opt.state_dict()['param_groups'] == groups
    assert_close(state(), before, rtol=0, atol=0)


# ---- metrics
def test_weighted_by_items():
    learn = Learner(net(), data(), cbs=MetricsCB(verbose=False, accuracy='MulticlassAccuracy'))
    learn.fit(1, train=False)
    x, y = (torch.cat(o) for o in zip(*learn.dls.valid))
    with torch.no_grad():
        preds = learn.model(x)
    (row,) = learn.metrics.history
    assert row['train'] == 'eval' and list(row) == ['epoch', 'train', 'loss', 'accuracy']
    assert row['loss'] == pytest.approx(nn.functional.cross_entropy(preds, y).item(), abs=1e-6)
    assert row['accuracy'] == pytest.approx((preds.argmax(1) == y).float().mean().item())


def test_fits_do_not_mix():
    learn = Learner(nn.Linear(6, 3), data(), lr=0.0, cbs=MetricsCB(verbose=False))
    learn.fit(1, train=False)
    first = learn.metrics.history
    learn.fit(1, cbs=SingleBatchCB())  # leaves sums behind
    learn.fit(1, train=False)
    assert learn.metrics.history == first


def test_no_batches_no_row(capsys):
    learn = Learner(net(), data(valid=()), cbs=MetricsCB())
    learn.fit(1)
    assert len(learn.metrics.history) == 1 and len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize('every', [1, 2, 100, None])
@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_guard(every, bad):
    dls = data()
    dls.train[1] = (torch.full((4, 6), bad), dls.train[1][1])
    learn = Learner(net(), dls, lr=0.25, cbs=NaNGuardCB(every))
    with pytest.raises(FloatingPointError, match=r'training step 1 \(epoch 0, batch 1 of 3, 4 items\), lr 0.25'):
        learn.fit(3)


@pytest.mark.parametrize('every', [1, 50])
def test_nothing_hides_the_guard(every):
    "No length, a batch that is a dictionary, no rate in the optimizer, a cancelled pass, an error in the next batch"

    class Dict(TrainCB):
        def predict(self, learn):
            learn.preds = learn.model(learn.batch['x'])

        def get_loss(self, learn):
            learn.loss = learn.loss_func(learn.preds, learn.batch['y'])

    x, y = torch.full((4, 6), torch.nan), torch.zeros(4).long()
    bad = dict(x=x, y=y)

    def fit(train, *cbs, n=1):
        Learner(net(), SimpleNamespace(train=train, valid=[]), cbs=[Dict(), NaNGuardCB(every), *cbs]).fit(n)

    with pytest.raises(FloatingPointError, match=r'training step 0 \(epoch 0, batch 0, 4 items\), lr 0.1'):
        fit(iter([bad]))
    with pytest.raises(FloatingPointError, match='batch 0 of 1'):
        fit([bad], Raise('after_loss', CancelEpochException, 0))
    with pytest.raises(FloatingPointError, match='batch 0 of 2'):
        fit([bad, dict(x=x[:, :2], y=y)])
    with pytest.raises(FloatingPointError, match='batch 0 of 1'):
        fit([bad], Raise('after_batch', ZeroDivisionError, 0))
    good = data().train[0]
    learn = Learner(net(), SimpleNamespace(train=[good, (x, y)], valid=[]), cbs=NaNGuardCB(every))
    learn.opt_func = lambda params, lr: Without(params)
    with pytest.raises(FloatingPointError, match=r'4 items\)$'):
        learn.fit(1)


class Without(torch.optim.Optimizer):
    "Has no learning rate"

    def __init__(self, params):
        super().__init__(params, {})

    def step(self):
        pass


# ---- any iterable
class Stream:
    "Batches in a row, and no length"

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


class Rows(torch.utils.data.IterableDataset):
    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return ((x, y) for xs, ys in self.batches for x, y in zip(xs, ys))


LOADERS = dict(
    list=lambda b: b, tuple=tuple, stream=Stream, rows=lambda b: torch.utils.data.DataLoader(Rows(b), batch_size=4)
)


@pytest.mark.parametrize('kind', LOADERS)
def test_any_loader(kind, capsys):
    "The bits of a list of batches, with every callback that counts them"
    states = []
    for make in (LOADERS['list'], LOADERS[kind]):
        dls = SimpleNamespace(train=make(batches(4, 4, 3)), valid=make(batches(4, 2, seed=1)))
        cbs = [MetricsCB(), NaNGuardCB(2), ProgressCB(plot=True), BatchTransformCB(lambda b: b)]
        learn = MomentumLearner(net(), dls, cbs=cbs)
        learn.fit(3)
        states.append((learn.model.state_dict(), learn.metrics.history))
    assert_close(states[0][0], states[1][0], rtol=0, atol=0)
    assert states[0][1] == states[1][1] and len(states[0][1]) == 6


def test_without_a_length_on_a_terminal(monkeypatch):
    monkeypatch.delenv('IN_TEST', raising=False)
    monkeypatch.setattr(sys, 'stderr', err := TTY())
    Learner(net(), SimpleNamespace(train=Stream(batches(4, 4)), valid=Stream([])), cbs=ProgressCB()).fit(2)
    assert '\r0batch [' in err.getvalue()  # no share of a whole


def test_iterators_serve_one_epoch():
    for name in ('train', 'valid'):
        dls = data()
        setattr(dls, name, iter(getattr(dls, name)))
        learn = Learner(net(), dls)
        before = copy.deepcopy(learn.model.state_dict())
        with pytest.raises(TypeError, match=f'dls.{name} is an iterator'):
            learn.fit(2)
        assert_close(learn.model.state_dict(), before, rtol=0, atol=0)
        learn.fit(1)


def test_a_schedule_by_position_wants_a_length():
    learn = Learner(net(), SimpleNamespace(train=Stream(batches(4)), valid=[]))
    with pytest.raises(ValueError, match='training loader with a length'):
        learn.fit(1, cbs=ParamScheduler('lr', sched_cos(0.1, 0.0)))
    learn.fit(2, cbs=BatchSchedCB(partial(lr_scheduler.StepLR, step_size=1)))
    assert learn.opt.param_groups[0]['lr'] == pytest.approx(0.001)


# ---- schedulers that want a metric
class Told(lr_scheduler.ReduceLROnPlateau):
    "Writes down what it is told"

    def step(self, metrics, *args):
        vars(self).setdefault('told', []).append(float(metrics))
        super().step(metrics, *args)


@pytest.mark.parametrize('valid', [True, False])
def test_plateau(valid):
    "It is told the mean over items, of the validation pass where there is one"
    sched, metrics = EpochSchedCB(partial(Told, patience=0, factor=0.5, threshold=0.9)), MetricsCB(verbose=False)
    learn = Learner(net(), data(), cbs=[sched, metrics])
    learn.fit(3, valid=valid)
    want = [o['loss'] for o in metrics.history if o['train'] == ('eval' if valid else 'train')]
    assert sched.sched.told == pytest.approx(want, rel=1e-5) and len(want) == 3
    assert learn.opt.param_groups[0]['lr'] == pytest.approx(0.025)


def test_plateau_of_batches():
    sched = BatchSchedCB(partial(Told, patience=100))
    recorder = RecorderCB()
    Learner(net(), data(), cbs=[sched, recorder]).fit(2)
    assert sched.sched.told == recorder.values['loss'] and len(sched.sched.told) == 6


# ---- where a fit is shown
class TTY(io.StringIO):
    def isatty(self):
        return True


def fit_with_progress(plot=False):
    learn = Learner(net(), data(), cbs=[MetricsCB(), ProgressCB(plot=plot)])
    learn.fit(2)
    return learn


def test_piped(monkeypatch, capsys):
    monkeypatch.delenv('IN_TEST', raising=False)
    fit_with_progress()
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == '' and lines[0].split() == ['epoch', 'train', 'loss'] and '\r' not in out
    assert [o.split()[:2] for o in lines[1:]] == [['0', 'train'], ['0', 'eval'], ['1', 'train'], ['1', 'eval']]


def test_terminal(monkeypatch, capsys):
    monkeypatch.delenv('IN_TEST', raising=False)
    monkeypatch.setattr(sys, 'stderr', err := TTY())
    fit_with_progress()
    bar = err.getvalue()
    assert '/10' in bar and '%' in bar and '<' in bar and 'batch' in bar  # 2 * (3 + 2) batches, time left, speed
    assert bar.endswith('\r') and not bar.rstrip('\r').split('\r')[-1].strip()  # wiped at the end
    assert [o.split()[0] for o in capsys.readouterr().out.split('\n') if o.strip('\r ')] == [
        'epoch',
        '0',
        '0',
        '1',
        '1',
    ]


def test_notebook(monkeypatch, capsys):
    import matplotlib.pyplot as plt

    plt.close('all')  # other tests draw too
    monkeypatch.delenv('IN_TEST', raising=False)
    monkeypatch.setattr(L, 'in_notebook', lambda: True)
    shown = []

    class Handle:
        def __init__(self, x):
            shown.append([x])

        def update(self, x, raw=False):
            shown[self.i].append(x)

    def display(x, display_id, raw=False):
        h = Handle(x)
        h.i = len(shown) - 1
        return h

    monkeypatch.setattr('IPython.display.display', display)
    fit_with_progress(plot=True)
    text, figures = shown
    assert len(figures) == 2  # once an epoch
    assert any('batch/s' in o['text/plain'] or 's/batch' in o['text/plain'] for o in text)
    assert text[-1]['text/plain'] == ''  # what stays is the table
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 5 and err == ''
    assert not plt.get_fignums()


def test_interrupted_bar_is_closed(monkeypatch):
    monkeypatch.delenv('IN_TEST', raising=False)
    monkeypatch.setattr(sys, 'stderr', err := TTY())
    learn = Learner(net(), data(), cbs=[MetricsCB(verbose=False), ProgressCB()])
    with pytest.raises(KeyboardInterrupt):
        learn.fit(2, cbs=Raise('after_epoch', KeyboardInterrupt, 0))
    assert err.getvalue().endswith('\r')


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_cuda():
    learn = MomentumLearner(
        net(),
        data(),
        cbs=[
            DeviceCB('cuda'),
            MetricsCB(verbose=False, accuracy='MulticlassAccuracy'),
            NaNGuardCB(),
            BatchTransformCB(lambda b: b),
            ProgressCB(plot=True),
        ],
    )
    learn.fit(2)
    assert learn.metrics.metrics['loss'].device.type == 'cuda' and len(learn.metrics.history) == 4


def test_no_bar_under_test(monkeypatch):
    monkeypatch.setenv('IN_TEST', '1')
    assert L._new_bar(total=3).disable
