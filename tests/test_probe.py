"""What reports, hooks and batches accept: inputs by name, lists, dictionaries, packed sequences, nothing; and where
they run: devices without float64, consoles without a dash, folders with any name."""
import io
import json
import sys
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from course_lib.activations import ActivationStats
from course_lib.core import as_double, batch_size, say, tensors_in, to_cpu, to_device
from course_lib.diagnose import signal_report
from course_lib.lsuv import lsuv_init
from course_lib.norms.gap import accuracy_by_mode
from course_lib.norms.recalibrate import recalibrate
from course_lib.probe import Hooks, probe_copy
from course_lib.report import course_report
from course_lib.rows import result_row
from course_lib.small_batch import RunConfig

torch.set_num_threads(1)
Pair = namedtuple('Pair', 'a b')

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)

def packed(): return pack_sequence([torch.randn(n, 4) for n in (3, 5, 2)], enforce_sorted=False)


# ---- containers
@dataclass
class Output:
    logits: torch.Tensor
    hidden: tuple = ()

def test_tensors_in():
    t = [torch.ones(i) for i in range(4)]
    nested = [t[0], Pair(dict(a=t[1], b=3), Output(t[2], (t[3], torch.ones(5).long())))]
    assert [len(o) for o in tensors_in(nested)] == [0, 1, 2, 3]
    assert tensors_in(packed())[0].shape == (10, 4)
    assert tensors_in([None, 'a', 2., {1: set()}]) == []

@pytest.mark.parametrize('wrap', [lambda o: o, lambda o: [o, 1], lambda o: dict(x=Pair(o, None))])
def test_packed_sequences_move(wrap):
    moved = to_device(wrap(packed()), 'meta')
    sequence = next(o for o in (moved, *(moved if isinstance(moved, list) else ()),
                                getattr(moved.get('x'), 'a', None) if isinstance(moved, dict) else None)
                    if isinstance(o, nn.utils.rnn.PackedSequence))
    assert sequence.data.device.type == 'meta' and sequence.batch_sizes.device.type == 'cpu'

def test_packed_sequences_are_looked_at():
    half = packed().to(torch.bfloat16)
    assert to_cpu([half])[0].data.dtype == torch.float32
    assert torch.equal(to_cpu(half).sorted_indices, half.sorted_indices)
    assert batch_size((half, torch.ones(3))) == 3

def test_whatever_moves_itself():
    class Graph:
        device = 'cpu'
        def to(self, device):
            self.device = device
            return self
    assert to_device(dict(graph=Graph(), n=1), 'meta')['graph'].device == 'meta'


# ---- models with every kind of input and output
class ByName(nn.Module):
    "Everything by name; a dictionary comes back"
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.act, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Linear(8, 4)
    def forward(self, image, scale=1.):
        x = self.act(input=self.norm(input=self.conv(input=image*scale)))
        return dict(logits=self.head(input=x.mean((2, 3))), features=[x])

class Lists(nn.Module):
    "Its parts take and give lists and tuples, or no tensor at all"
    class Pyramid(nn.Module):
        def forward(self, maps, names): return [*maps, maps[-1][..., ::2]], [*names, 'pool']
    class Clock(nn.Module):
        def forward(self): return 1.
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv1d(3, 8, 3), nn.Conv1d(8, 8, 3)
        self.pyramid, self.clock = self.Pyramid(), self.Clock()
    def forward(self, x):
        first = self.one(x)
        maps, names = self.pyramid([first, self.two(first.relu())], ['a', 'b'])
        return tuple(m*self.clock() for m in maps)

class Recurrent(nn.Module):
    "A packed sequence through a recurrent layer, whose weights no hook can see"
    def __init__(self):
        super().__init__()
        self.up, self.rnn, self.head = nn.Linear(4, 6), nn.GRU(6, 5, dropout=.3, num_layers=2), nn.Linear(5, 4)
    def forward(self, seq):
        seq = seq._replace(data=self.up(seq.data))
        out, lengths = pad_packed_sequence(self.rnn(seq)[0])
        return self.head(out[0])

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 8), nn.Linear(3, 8), nn.Linear(8, 2)
    def forward(self, x, y): return self.head(torch.relu(self.a(x)+self.b(y)))

def images(n=16): return torch.randn(n, 3, 8, 8)

# model, inputs, its loss
REAL = dict(
    by_name=(ByName, lambda: dict(image=images(), scale=2.), lambda out, y: out['logits'].square().mean()),
    lists=(Lists, lambda: torch.randn(16, 3, 20), lambda out, y: sum(o.square().mean() for o in out)),
    recurrent=(Recurrent, lambda: pack_sequence([torch.randn(n, 4) for n in (6, 5, 3, 3)]), None),
    two=(Two, lambda: (torch.randn(16, 4), torch.randn(16, 3)), None))
LAYERS = dict(by_name=['conv', 'head'], lists=['one', 'two'], recurrent=['up', 'head'], two=['a', 'b', 'head'])

@pytest.mark.parametrize('name', REAL)
def test_reports_and_lsuv(name):
    make, inputs, loss = REAL[name]
    model, x = make(), inputs()
    pair = x if isinstance(x, (dict, torch.Tensor)) else (x,)
    report = signal_report(model, pair, loss)
    assert [r['layer'] for r in report] == LAYERS[name]
    assert all(r['std']>0 and r['grad_std']>0 and r['update']>0 for r in report)
    assert report.unseen == ('1 GRU (rnn)' if name=='recurrent' else '')
    rows = lsuv_init(model, x)
    assert all(abs(r['std']-1)<.02 for r in rows[:len(LAYERS[name])])
    assert [r['layer'] for r in rows[len(LAYERS[name]):]] == (['rnn'] if name=='recurrent' else [])

@pytest.mark.parametrize('name', REAL)
def test_activation_stats(name):
    make, inputs, loss = REAL[name]
    model, x = make(), inputs()
    with ActivationStats().watch(model) as stats:
        out = model(**x) if isinstance(x, dict) else model(*x) if type(x) is tuple else model(x)
        sum(t.square().mean() for t in tensors_in(out)).backward()
    names = [o.name for o in stats.recorded()]
    assert set(LAYERS[name]) <= set(names)
    assert all(torch.isfinite(o.values('grad_std')).all() for o in stats.recorded() if o.name in LAYERS[name])

def test_hooks_hand_on_inputs_by_name():
    model, seen = ByName(), []
    def look(hook, m, inputs, *out): seen.append((type(m).__name__, len(inputs), len(out)))
    with Hooks([model.conv, model.act], look, pre=True), Hooks([model.conv], look):
        model(image=images())
    assert seen == [('Conv2d', 1, 0), ('Conv2d', 1, 1), ('ReLU', 1, 0)]

@pytest.mark.parametrize('out,words', [(dict(a=1), 'dict with a'), ((torch.ones(2),), 'tuple'), ([], 'list'),
                                       (None, 'NoneType'), (torch.ones(2).long(), 'Tensor')])
def test_outputs_that_ask_for_a_loss(out, words):
    class Odd(nn.Linear):
        def forward(self, x):
            super().forward(x)
            return out
    model = nn.Sequential(Odd(4, 4))
    with pytest.raises(ValueError, match=f'returns a {words}.*loss_func'):
        signal_report(model, torch.randn(9, 4))
    with pytest.raises(ValueError, match='one number|no gradient'):
        signal_report(model, torch.randn(9, 4), lambda o, y: o)

def test_a_number_is_its_own_loss():
    class Loss(nn.Linear):
        def forward(self, x): return super().forward(x).square().mean()
    model, x = nn.Sequential(nn.Linear(4, 4), Loss(4, 4)), torch.randn(16, 4)
    first = signal_report(model, x)[0]
    model(x).backward()
    assert_close(first['update'], (.01*model[0].weight.grad.norm()/model[0].weight.norm()).item(), rtol=1e-4, atol=0)

def test_more_than_a_pair():
    with pytest.raises(ValueError, match='not 3 things'):
        signal_report(nn.Linear(4, 4), [torch.randn(9, 4)]*3)


# ---- parametrized, checkpointed, compiled, frozen, under inference mode
def norms_of_weights():
    return dict(weight=parametrizations.weight_norm, spectral=parametrizations.spectral_norm,
                old_weight=nn.utils.weight_norm, old_spectral=nn.utils.spectral_norm)

@pytest.mark.filterwarnings('ignore::FutureWarning')
@pytest.mark.parametrize('norm', norms_of_weights())
@pytest.mark.parametrize('make', [lambda: nn.Linear(6, 6), lambda: nn.Conv1d(6, 6, 3, padding=1)])
def test_update_of_the_weight_that_is_used(norm, make):
    "As a step of SGD moves it, measured on the model itself"
    model = nn.Sequential(norms_of_weights()[norm](make()), nn.Tanh()).double()
    x = torch.randn(40, 6, 6).double()
    def loss_of(out, y): return out.square().mean()
    with torch.no_grad():
        for _ in range(30):
            model(x)                                 # spectral norm's vectors settle
    report = signal_report(model, x, loss_of, lr=.1)
    loss_of(model(x), None).backward()
    model.eval()
    model(x)
    old = model[0].weight.detach().clone()
    torch.optim.SGD(model.parameters(), .1).step()
    model(x)
    want = ((model[0].weight-old).norm()/old.norm()).item()
    assert want>0
    assert_close(report[0]['update'], want, rtol=.02, atol=0)

@pytest.mark.filterwarnings('ignore::FutureWarning')
@pytest.mark.parametrize('norm', ['old_weight', 'old_spectral'])
def test_lsuv_leaves_what_it_cannot_set(norm):
    model = nn.Sequential(norms_of_weights()[norm](nn.Linear(6, 6)), nn.ReLU(), nn.Linear(6, 6))
    model(torch.randn(9, 6))
    notes = [r['note'] for r in lsuv_init(model, torch.randn(64, 6))]
    assert 'computes it anew' in notes[0] and notes[1] == ''

@pytest.mark.parametrize('reentrant', [True, False])
def test_checkpointing_blocks_nothing(reentrant):
    class Saving(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU())
            self.stem, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
            self.saving = True
        def forward(self, x):
            x = self.stem(x)
            return self.head(checkpoint(self.body, x, use_reentrant=reentrant) if self.saving else self.body(x))
    model, batch = Saving(), (torch.randn(64, 6), torch.arange(64)%3)
    saving = signal_report(model, batch)
    model.saving = False
    assert saving == signal_report(model, batch) and len(saving)==4

def test_compiled_models():
    inner = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
    x = torch.randn(64, 6)
    want = signal_report(nn.Sequential(inner, nn.Linear(6, 3)), (x, torch.arange(64)%3))
    for model in (torch.compile(nn.Sequential(inner, nn.Linear(6, 3)), backend='eager'),
                  nn.Sequential(torch.compile(inner, backend='eager'), nn.Linear(6, 3))):
        report = signal_report(model, (x, torch.arange(64)%3))
        assert [r['layer'] for r in report] == ['0.0', '1'] and report[0]['std'] == want[0]['std']
    assert all(r['note']=='' for r in lsuv_init(model, x))
    scripted = torch.jit.trace(inner, x)
    for tool in (signal_report, lsuv_init):
        with pytest.raises(ValueError, match='torch.jit'):
            tool(scripted, x)

def test_inference_mode_and_no_grad():
    model, x = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(64, 6)
    batch = x, torch.arange(64)%3
    want = signal_report(model, batch)
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            assert signal_report(model, batch) == want
        model(x).sum().backward()                    # still trainable
    with torch.inference_mode():
        lsuv_init(model, x)
    model(x).sum().backward()

def test_frozen_layers_are_not_blocked():
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    model[0].requires_grad_(False)
    report = signal_report(model, (torch.randn(64, 6), torch.arange(64)%3))
    assert report.flags == {} and report[0]['update'] == 0
    with pytest.raises(ValueError, match='frozen'):
        signal_report(model.requires_grad_(False), torch.randn(64, 6))


# ---- what lies about a healthy model
def convolutions():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 30), nn.ReLU(), nn.Linear(30, 5))

def perceptron(): return nn.Sequential(nn.Flatten(), nn.Linear(192, 40), nn.ReLU(), nn.Linear(40, 5))

@pytest.mark.parametrize('make', [convolutions, perceptron])
def test_one_image_is_no_alarm(make):
    flags = signal_report(make(), (images(1), torch.tensor([1]))).flags.values()
    assert not {'alike', 'dead', 'blocked'} & {f for o in flags for f in o}

def test_a_norm_behind_an_activation_needs_the_bias():
    x = images()
    behind = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 4))
    at_once = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
    assert 'idle_bias' not in str(signal_report(behind, x)) and 'idle_bias' in str(signal_report(at_once, x))

class Residual(nn.Module):
    def __init__(self, drop):
        super().__init__()
        self.conv, self.drop = nn.Conv2d(8, 8, 3, padding=1), drop
    def forward(self, x): return x+self.drop(self.conv(x.relu()))

class DropPath(nn.Module):
    "As timm's and transformers': no class of torch's, and its rate is its own"
    drop_prob = .5
    def forward(self, x): return x*x.new_empty(len(x), 1, 1, 1).bernoulli_(.5) if self.training else x

class OwnDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention_dropout = .5
    def forward(self, x): return nn.functional.dropout(x, self.attention_dropout, self.training)

@pytest.mark.parametrize('drop', [lambda: StochasticDepth(.5, 'row'), DropPath, OwnDropout, lambda: nn.Dropout2d(.5)])
def test_nothing_is_left_to_chance(drop):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), *[Residual(drop()) for _ in range(4)])
    probe = probe_copy(model)
    x = images(4)
    assert torch.equal(probe(x), probe(x)) and not torch.equal(model(x), model(x))
    assert all(r['note']=='' for r in lsuv_init(model, images()))

class Tied(nn.Module):
    "A decoder that is its encoder's weight, in two ways"
    def __init__(self):
        super().__init__()
        self.encode, self.middle, self.decode = nn.Linear(6, 6, bias=False), nn.Linear(6, 6), nn.Linear(6, 6)
        self.decode.weight = self.encode.weight
        self.shared = nn.ParameterList([self.middle.bias])
    def forward(self, x): return self.decode(self.middle(self.encode(x)).tanh()) + self.shared[0]

def test_tied_weights_stay():
    model = Tied()
    before = {k: v.clone() for k,v in model.state_dict().items()}
    notes = {r['layer']: r['note'] for r in lsuv_init(model, torch.randn(64, 6))}
    assert notes == {name: f'left alone: tied to {other}' for name, other in
                     dict(encode='decode', middle='shared', decode='encode').items()}
    assert all(torch.equal(v, before[k]) for k,v in model.state_dict().items())

class Sideways(nn.Module):
    "GPT-2's Conv1D under another name"
    def __init__(self, n_in, n_out):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_in, n_out)/n_in**.5)
    def forward(self, x): return x@self.weight

class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.scale = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.ones(6))
    def forward(self, x): return nn.functional.linear(x, self.w)*self.scale

def test_layers_that_look_like_none():
    model = nn.Sequential(Sideways(6, 6), Functional(), nn.Bilinear(6, 6, 6), nn.Linear(6, 3))
    model[2].forward = lambda x: nn.functional.bilinear(x, x, model[2].weight)
    x = torch.randn(64, 6)
    report = signal_report(model, (x, torch.arange(64)%3))
    assert [r['layer'] for r in report] == ['0', '3'] and report.unseen == '1 Functional (1), 1 Bilinear (2)'
    notes = {r['layer']: r['note'] for r in lsuv_init(model, x)}
    assert notes['3'] == '' and all('left alone' in notes[k] and kind in notes[k]
                                    for k,kind in {'0':'Sideways', '1':'Functional', '2':'Bilinear'}.items())
    for tool, what in ((lsuv_init, '1 Sideways, .*1 Functional'), (signal_report, '1 Functional')):
        with pytest.raises(ValueError, match='it has .*Functional'):
            tool(nn.Sequential(*([Sideways(6, 6)] if tool is lsuv_init else []), Functional()), x)


# ---- tools for norms
def test_recalibrate_and_gap_with_names_and_streams():
    class Stream:
        "No length"
        def __iter__(self):
            g = torch.Generator().manual_seed(1)
            return ((torch.randn(8, 3, 8, 8, generator=g)+1, torch.zeros(8).long()) for _ in range(3))
    model = ByName()
    recalibrate(model, Stream(), get_input=lambda b: dict(image=b[0]), progress=False)
    x = torch.cat([b[0] for b in Stream()])
    assert_close(model.norm.running_mean, model.conv(x).mean((0, 2, 3)).detach(), rtol=1e-4, atol=1e-5)
    plain = nn.Sequential(model.conv, model.norm, nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.head)
    assert set(accuracy_by_mode(plain, Stream())) == {'running', 'batch'}


# ---- places
def test_a_device_without_float64(monkeypatch):
    def refuse(self): raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
    monkeypatch.setattr(torch.Tensor, 'double', refuse)
    assert as_double(torch.arange(3)).dtype == torch.float32

@pytest.mark.parametrize('encoding', ['ascii', 'cp1252', 'cp437', 'cp932', 'utf-8'])
def test_say_never_fails(encoding, monkeypatch):
    text = '0.5 ±\u00a00.1 – Größe 日本 ✓ 😀'
    monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(io.BytesIO(), encoding))
    say(text)
    said = sys.stdout.buffer.getvalue().decode(encoding).strip()
    assert said.startswith('0.5 ') and len(said)>=20 and (said == text) == (encoding=='utf-8')

@pytest.mark.parametrize('encoding', ['ascii', 'cp932', 'cp437'])
def test_report_from_any_folder(encoding, tmp_path, monkeypatch):
    "The command's output goes to a file in an old code page, its figures into a folder whose name that page lacks"
    evals = [dict(samples=n, train_loss=1., valid_accuracy=.5, valid_loss=1.) for n in (3000, 6000)]
    result = dict(accuracy=.5, recalibrated=.6, cpu_seconds=6., evals=evals, failure=None)
    configs = [RunConfig(norm=norm, batch_size=2, lr=.1, seed=seed) for norm in ('batch', 'group') for seed in (0, 1)]
    folder = tmp_path/'größe – 日本'
    folder.mkdir()
    lines = [json.dumps(result_row(config, result)) for config in configs]
    (folder/'rows.jsonl').write_text('\n'.join(lines)+'\n', encoding='utf-8')
    monkeypatch.setattr(sys, 'stdout', page := io.TextIOWrapper(io.BytesIO(), encoding))
    course_report(str(folder/'rows.jsonl'))
    course_report(str(folder/'rows.jsonl'), str(folder/'out'))
    said = page.buffer.getvalue().decode(encoding)
    assert '0.500 +- 0.000' in said or '0.500 ±' in said
    assert '4 rows; report.md and figures in' in said
    assert '±' in (folder/'out'/'report.md').read_text(encoding='utf-8')
