"course_train as a user meets it: a fresh process, bad options, a folder that is taken, a run that is killed."

import csv, dataclasses, inspect, json, os, re, shutil, signal, struct, subprocess, sys, time
import pytest, torch
from torch import nn
import course_lib.sources as D
import course_lib.train as T
from course_lib.norms import BatchNorm
from course_lib.configuration import SCHEDS, TrainConfig
from course_lib.train import COLUMNS, course_train, train_run

ENV = os.environ | dict(COURSE_SAMPLE='1', OMP_NUM_THREADS='1')
SMALL = ['--bs', '250', '--epochs', '3', '--lr', '0.05', '--device', 'cpu']
SMALL_KW = dict(bs=250, epochs=3, lr=0.05, device='cpu')  # the same as arguments of the function


def command(*args):
    return [sys.executable, '-m', 'course_lib.train', *SMALL, *map(str, args)]


def run(*args):
    return subprocess.run(command(*args), capture_output=True, text=True, env=ENV, timeout=300)


@pytest.fixture(autouse=True)
def sample(monkeypatch):
    monkeypatch.setenv('COURSE_SAMPLE', '1')


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "A run that nobody stops"
    out = tmp_path_factory.mktemp('runs') / 'whole'
    return out, run('--out', out)


def test_run_leaves_its_files(whole):
    out, res = whole
    assert res.returncode == 0, res.stderr
    rows = list(csv.DictReader((out / 'history.csv').open()))
    assert list(rows[0]) == COLUMNS and [r['epoch'] for r in rows] == ['1', '2', '3']
    assert float(rows[-1]['valid_accuracy']) > 0.75
    assert (out / 'curves.png').read_bytes().startswith(b'\x89PNG')
    cfg = json.loads((out / 'config.json').read_text())
    assert cfg['norm'] == 'batch' and cfg['torch'] == torch.__version__
    assert 'valid accuracy' in res.stdout and '\r' not in res.stdout
    assert not list(out.glob('*.tmp'))


def test_folder_of_another_run_is_left_alone(whole):
    out, _ = whole
    before = {f.name: f.read_bytes() for f in out.iterdir()}
    for args in ([], ['--resume', '--norm', 'group']):
        res = run('--out', out, *args)
        assert res.returncode != 0 and len(res.stderr.strip().splitlines()) == 1, res.stderr
    assert before == {f.name: f.read_bytes() for f in out.iterdir()}


@pytest.mark.parametrize(
    'kw, said',
    [
        (dict(norm='bach'), 'batch'),
        (dict(dataset='cifar'), 'fashion_mnist'),
        (dict(lr=0.0), 'lr must be positive'),
        (dict(bs=-1), 'bs must be positive'),
        (dict(epochs=0), 'epochs must be positive'),
        (dict(device='tpu9'), "device 'tpu9' cannot be used"),
        (dict(loader='disk'), 'memory, stream'),
        (dict(sched='x'), 'onecycle'),
        (dict(resume=True), '--resume needs --out'),
        (dict(momentum=1.0), 'below 1'),
        (dict(lr=float('inf')), 'finite'),
        (dict(lr=float('nan')), 'finite'),
        (dict(bs=0), 'bs must be positive'),
        (dict(device='meta'), "device 'meta' cannot be used"),
        (dict(seed=-1), 'seed must be at least 0'),
        (dict(seed=2**32), 'below 2**32'),
        (dict(model='resnet'), 'conv, residual, transformer'),
        (dict(depth=8), "the model 'conv' has no depth"),
        (dict(model='conv', width=8), 'has no width'),
        (dict(model='residual', place='post'), "the model 'residual' has no place"),
        (dict(model='residual', norm='bach'), 'batch'),
        (dict(model='residual', depth=0), 'depth must be at least 1'),
        (dict(model='transformer', norm='batch'), 'norm of a transformer'),
        (dict(model='transformer', place='front'), 'pre, post, sandwich'),
        (dict(model='transformer', width=-4), 'width must be at least 1'),
        (dict(model='transformer', width=30), 'multiple of 4'),
    ],
)
def test_bad_options(kw, said, tmp_path):
    out = tmp_path / 'run'
    with pytest.raises(SystemExit) as e:
        course_train(**{'out': None if 'resume' in kw else str(out), **kw})
    assert said in str(e.value) and '\n' not in str(e.value)
    assert not out.exists()


def test_bad_option_as_a_user_sees_it(tmp_path):
    "One line on stderr, nothing on stdout, a non-zero exit, no folder"
    res = run('--out', tmp_path / 'run', '--norm', 'bach')
    assert res.returncode != 0 and res.stdout == '' and not (tmp_path / 'run').exists()
    assert res.stderr.startswith('course_train: ') and len(res.stderr.splitlines()) == 1, res.stderr


@pytest.mark.parametrize('content', ['[1]', '[]', '"a"', '{', ''])
def test_configuration_that_cannot_be_read(content, tmp_path):
    (tmp_path / 'config.json').write_text(content)
    with pytest.raises(SystemExit, match='cannot be read|another configuration') as e:
        course_train(out=str(tmp_path), resume=True, device='cpu')
    assert (
        '\n' not in str(e.value)
        and [f.name for f in tmp_path.iterdir()] == ['config.json']
        and (tmp_path / 'config.json').read_text() == content
    )


def test_damaged_checkpoint_is_one_line_and_kept(whole, tmp_path):
    out = tmp_path / 'run'
    shutil.copytree(whole[0], out)
    (out / 'checkpoint.pt').write_bytes((out / 'checkpoint.pt').read_bytes()[:1000])
    before = {f.name: f.read_bytes() for f in out.iterdir()}
    with pytest.raises(SystemExit, match='damaged') as e:
        course_train(**SMALL_KW, out=str(out), resume=True)
    assert '\n' not in str(e.value)
    assert before == {f.name: f.read_bytes() for f in out.iterdir()}


def test_finished_run_is_resumed_without_a_step(whole, tmp_path, capsys):
    out = tmp_path / 'run'
    shutil.copytree(whole[0], out)
    before = (out / 'history.csv').read_bytes()
    course_train(**SMALL_KW, out=str(out), resume=True)
    assert 'after 3 epochs' in capsys.readouterr().out and before == (out / 'history.csv').read_bytes()


def test_fit_that_blows_up_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match='loss is') as e:
        course_train(**SMALL_KW | dict(norm='none', lr=1e9, sched='constant'), out=str(tmp_path / 'run'))
    assert '\n' not in str(e.value)


def test_shortest_runs(tmp_path):
    "One step an epoch, with each schedule"
    for sched in SCHEDS:
        assert len(train_run(TrainConfig(bs=6000, epochs=1, sched=sched), tmp_path / sched, 'cpu')) == 1


MODEL_OF = [
    (dict(), dict(norm='batch', depth=None, width=None, place=None), BatchNorm, 4),
    (dict(model='residual', depth=3, width=8), dict(norm='batch', depth=3, width=8), BatchNorm, 6),
    (dict(model='residual', norm='none', depth=3, width=8), dict(norm='none'), BatchNorm, 0),
    (dict(model='transformer', depth=2, width=16), dict(norm='layer', place='pre'), nn.LayerNorm, 5),
    (dict(model='transformer', depth=2, width=16, place='post'), dict(place='post'), nn.LayerNorm, 4),
    (dict(model='transformer', depth=2, width=16, norm='rms', place='sandwich'), dict(norm='rms'), nn.RMSNorm, 9),
]


@pytest.mark.parametrize('kw,filled,layer,count', MODEL_OF)
def test_models(kw, filled, layer, count, tmp_path):
    "Each model is built as it was asked for, trains, and the file says what was left to it"
    cfg = TrainConfig(bs=3000, epochs=1, lr=0.05, **kw)
    net = T.build_learner(cfg, 'cpu').model
    assert sum(isinstance(m, layer) for m in net.modules()) == count
    (row,) = train_run(cfg, tmp_path / 'run', 'cpu')
    assert row['train_loss'] > 0
    saved = json.loads((tmp_path / 'run/config.json').read_text())
    assert {k: saved[k] for k in filled} == filled and saved['model'] == kw.get('model', 'conv')
    assert saved['parameters'] == sum(p.numel() for p in net.parameters())


def test_depth_is_part_of_the_run(tmp_path):
    "A folder of a transformer is not entered by a deeper one"
    out = tmp_path / 'run'
    kw = dict(bs=3000, epochs=1, device='cpu', out=str(out), model='transformer', width=16)
    course_train(**kw, depth=1)
    with pytest.raises(SystemExit, match='depth is 1 there, 2 here'):
        course_train(**kw, depth=2, resume=True)


def test_help_names_the_models():
    said = ' '.join(run('--help').stdout.split())
    for words in ('conv, residual (without a norm as well) or transformer', '--place', '--depth', '--width'):
        assert words in said


def test_stopped_by_hand_says_how_to_go_on(tmp_path, monkeypatch):
    def stopped(*a):
        raise KeyboardInterrupt

    monkeypatch.setattr('course_lib.train.train_run', stopped)
    with pytest.raises(SystemExit, match='stopped; go on with --resume --out .*run') as e:
        course_train(out=str(tmp_path / 'run'))
    assert '\n' not in str(e.value)


def test_bar_on_a_terminal(tmp_path):
    "A tqdm bar with speed and time left; the rows scroll above it"
    pty, fcntl, termios = (pytest.importorskip(o) for o in ('pty', 'fcntl', 'termios'))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 120, 0, 0))  # a new terminal has no width
    p = subprocess.Popen(
        command('--out', tmp_path / 'run', '--epochs', '1'),
        stdout=theirs,
        stderr=theirs,
        env={k: v for k, v in ENV.items() if k != 'IN_TEST'},
    )
    os.close(theirs)
    text = b''
    while True:
        try:
            new = os.read(ours, 10000)
        except OSError:
            break  # the other end is closed
        if not new:
            break
        text += new
    os.close(ours)
    assert p.wait() == 0
    text = text.decode()
    assert re.search(r'\d+%.*\d+/\d+ \[\d\d:\d\d<\d\d:\d\d, +[\d.]+(batch/s|s/batch)\]', text), text[-2000:]
    assert 'train_loss' in text and 'valid accuracy' in text


def test_without_network_it_trains_on_the_sample_and_says_so(tmp_path, monkeypatch, capsys):
    def no_network(*a, **k):
        raise OSError('Name or service not known')

    for k in ('COURSE_SAMPLE', 'COURSE_DATA', 'IN_TEST'):
        monkeypatch.delenv(k, raising=False)
    for k, v in dict(DEBIAN=tmp_path / 'none', _told=set(), _silent=set()).items():
        monkeypatch.setattr(D, k, v)
    monkeypatch.setattr('huggingface_hub.HfApi.dataset_info', no_network)
    monkeypatch.setattr('datasets.load_dataset', no_network)
    with pytest.warns(UserWarning, match='ONLY A SAMPLE of 6,000'):
        course_train(bs=1000, epochs=1, device='cpu', out=str(tmp_path / 'run'))
    assert '6 steps an epoch' in (out := capsys.readouterr().out) and 'valid accuracy' in out


def test_file_in_place_of_a_folder(tmp_path):
    (tmp_path / 'f').write_text('mine')
    with pytest.raises(SystemExit, match='is a file'):
        course_train(out=str(tmp_path / 'f'))
    (tmp_path / 'd').mkdir()
    (tmp_path / 'd/thesis.txt').write_text('mine')
    with pytest.raises(SystemExit, match='something else'):
        course_train(out=str(tmp_path / 'd'), resume=True)
    assert (tmp_path / 'd/thesis.txt').read_text() == 'mine'


def test_data_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.delenv('COURSE_SAMPLE')
    monkeypatch.setenv('COURSE_DATA', str(tmp_path / 'nowhere'))
    with pytest.raises(SystemExit, match='no such folder'):
        course_train(out=str(tmp_path / 'run'), device='cpu')
    monkeypatch.setenv('COURSE_SAMPLE', '1')
    course_train(
        out=str(tmp_path / 'run'), device='cpu', bs=1000, epochs=1
    )  # the failed attempt left the folder usable


def test_killed_and_resumed_is_the_same_run(whole, tmp_path):
    out = tmp_path / 'killed'
    p = subprocess.Popen(command('--out', out), stdout=subprocess.PIPE, text=True, env=ENV)
    while not (out / 'checkpoint.pt').exists() and p.poll() is None:
        time.sleep(0.02)
    p.send_signal(signal.SIGKILL)
    p.wait()
    res = run('--out', out, '--resume')
    assert res.returncode == 0, res.stderr
    states = [torch.load(o / 'checkpoint.pt', weights_only=True)['model'] for o in (whole[0], out)]
    for k in states[0]:
        torch.testing.assert_close(states[0][k], states[1][k], rtol=0, atol=0)
    rows = [
        [{k: v for k, v in r.items() if k != 'seconds'} for r in csv.DictReader((o / 'history.csv').open())]
        for o in (whole[0], out)
    ]
    assert rows[0] == rows[1]


def test_streamed_and_in_memory_train_alike(tmp_path):
    "The two loaders give the same batches, so the same network"
    acc = []
    for loader in ('memory', 'stream'):
        cfg = TrainConfig(bs=500, epochs=1, lr=0.05, loader=loader)
        acc.append(train_run(cfg, tmp_path / loader, 'cpu')[-1]['valid_loss'])
    assert acc[0] == pytest.approx(acc[1], rel=1e-3)


def test_without_a_compiler(tmp_path, monkeypatch):
    "One line, and no folder"
    monkeypatch.setattr(T, 'can_compile', lambda: False)
    with pytest.raises(SystemExit, match='--compile needs a C.. compiler'):
        course_train(compile=True, device='cpu', out=str(tmp_path / 'run'))
    assert not list(tmp_path.iterdir())


def test_threads(tmp_path, monkeypatch):
    "One thread unless more are asked for, whatever torch has taken: several wait for each other on a busy machine"
    seen, before = [], torch.get_num_threads()

    def stop(*args):
        seen.append(torch.get_num_threads())
        raise ValueError('stop')

    monkeypatch.setattr(T, 'build_learner', stop)
    torch.set_num_threads(3)
    try:
        for n in (1, 2):
            with pytest.raises(SystemExit, match='stop'):
                course_train(**({} if n == 1 else dict(threads=n)), device='cpu', out=str(tmp_path / f'{n}'))
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 2]
    with pytest.raises(SystemExit, match='threads must be positive'):
        course_train(threads=0, device='cpu', out=str(tmp_path / 'none'))


def test_amp_and_compile_do_what_they_say(tmp_path, monkeypatch, capsys):
    "Each says so, the compiler gets the model once, and the run is the same but for rounding"
    compiled, real = [], torch.compile

    def compile(f, *args, **kw):
        compiled.append(f)
        return real(f, backend='aot_eager')  # traces as any backend does, without waiting for a C++ compiler

    monkeypatch.setattr(torch, 'compile', compile)
    monkeypatch.setattr(T, 'can_compile', lambda: True)
    kw = dict(bs=3000, epochs=1, lr=0.05, device='cpu')
    losses = {}
    for name, opts in dict(plain={}, compile=dict(compile=True), amp=dict(amp=True)).items():
        course_train(**kw, **opts, out=str(tmp_path / name))
        said = capsys.readouterr().out
        assert ('compile: ' in said) == ('compile' in opts) and ('autocast: ' in said) == ('amp' in opts)
        losses[name] = float(next(csv.DictReader((tmp_path / name / 'history.csv').open()))['valid_loss'])
    assert len(compiled) == 1
    assert losses['compile'] == pytest.approx(losses['plain'], rel=1e-4)
    assert 0 < abs(losses['amp'] / losses['plain'] - 1) < 0.05


@pytest.mark.parametrize('loader', ['memory', 'stream'])
def test_learner_is_what_the_config_says(loader):
    "Seed of the loaders, batch size, rate and momentum arrive where they count"
    learn = T.build_learner(TrainConfig(bs=300, lr=0.03, momentum=0.7, seed=5, loader=loader), device='cpu')
    assert learn.lr == 0.03 and learn.momentum == 0.7
    assert learn.dls.train.sampler.seed == 5 and len(next(iter(learn.dls.train))[0]) == 300


def test_defaults_are_those_of_the_command():
    "Those of `TrainConfig` and those of `course_train` are one set"
    command = inspect.signature(course_train).parameters
    fields = {f.name: f.default for f in dataclasses.fields(TrainConfig)}
    assert {k: command[k].default for k in fields} == fields and fields['bs'] == 128
