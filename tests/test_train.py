"course_train as a user meets it: a fresh process, bad options, a folder that is taken, a run that is killed."
import csv, json, os, signal, subprocess, sys, time
import pytest, torch
from course_lib.train import COLUMNS, TrainConfig, course_train, train_run

ENV = os.environ | dict(COURSE_SAMPLE='1', OMP_NUM_THREADS='1')
SMALL = ['--bs', '250', '--epochs', '3', '--lr', '0.05', '--device', 'cpu']

def command(*args): return [sys.executable, '-m', 'course_lib.train', *SMALL, *map(str, args)]
def run(*args): return subprocess.run(command(*args), capture_output=True, text=True, env=ENV, timeout=300)

@pytest.fixture(autouse=True)
def sample(monkeypatch): monkeypatch.setenv('COURSE_SAMPLE', '1')

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "A run that nobody stops"
    out = tmp_path_factory.mktemp('runs')/'whole'
    return out, run('--out', out)

def test_run_leaves_its_files(whole):
    out,res = whole
    assert res.returncode==0, res.stderr
    rows = list(csv.DictReader((out/'history.csv').open()))
    assert list(rows[0])==COLUMNS and [r['epoch'] for r in rows]==['1','2','3']
    assert float(rows[-1]['valid_accuracy'])>.75
    assert (out/'curves.png').read_bytes().startswith(b'\x89PNG')
    cfg = json.loads((out/'config.json').read_text())
    assert cfg['norm']=='batch' and cfg['torch']==torch.__version__
    assert 'valid accuracy' in res.stdout and '\r' not in res.stdout
    assert not list(out.glob('*.tmp'))

def test_folder_of_another_run_is_left_alone(whole):
    out,_ = whole
    before = {f.name:f.read_bytes() for f in out.iterdir()}
    for args in ([], ['--resume', '--norm', 'group']):
        res = run('--out', out, *args)
        assert res.returncode!=0 and len(res.stderr.strip().splitlines())==1, res.stderr
    assert before=={f.name:f.read_bytes() for f in out.iterdir()}

@pytest.mark.parametrize('kw, said', [
    (dict(norm='bach'), 'batch'), (dict(dataset='cifar'), 'fashion_mnist'), (dict(lr=0.), 'lr must be positive'),
    (dict(bs=-1), 'bs must be positive'), (dict(epochs=0), 'epochs must be positive'), (dict(device='tpu9'), "device 'tpu9' cannot be used"),
    (dict(loader='disk'), 'memory, stream'), (dict(sched='x'), 'onecycle'), (dict(resume=True), '--resume needs --out'),
    (dict(momentum=1.), 'below 1')])
def test_bad_options(kw, said, tmp_path):
    out = tmp_path/'run'
    with pytest.raises(SystemExit) as e: course_train(**{'out': None if 'resume' in kw else str(out), **kw})
    assert said in str(e.value) and '\n' not in str(e.value)
    assert not out.exists()

def test_file_in_place_of_a_folder(tmp_path):
    (tmp_path/'f').write_text('mine')
    with pytest.raises(SystemExit, match='is a file'): course_train(out=str(tmp_path/'f'))
    (tmp_path/'d').mkdir(); (tmp_path/'d/thesis.txt').write_text('mine')
    with pytest.raises(SystemExit, match='something else'): course_train(out=str(tmp_path/'d'), resume=True)
    assert (tmp_path/'d/thesis.txt').read_text()=='mine'

def test_data_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.delenv('COURSE_SAMPLE')
    monkeypatch.setenv('COURSE_DATA', str(tmp_path/'nowhere'))
    with pytest.raises(SystemExit, match='no such folder'): course_train(out=str(tmp_path/'run'), device='cpu')
    monkeypatch.setenv('COURSE_SAMPLE', '1')
    course_train(out=str(tmp_path/'run'), device='cpu', bs=1000, epochs=1)   # the failed attempt left the folder usable

def test_killed_and_resumed_is_the_same_run(whole, tmp_path):
    out = tmp_path/'killed'
    p = subprocess.Popen(command('--out', out), stdout=subprocess.PIPE, text=True, env=ENV)
    while not (out/'checkpoint.pt').exists() and p.poll() is None: time.sleep(.02)
    p.send_signal(signal.SIGKILL); p.wait()
    res = run('--out', out, '--resume')
    assert res.returncode==0, res.stderr
    states = [torch.load(o/'checkpoint.pt', weights_only=True)['model'] for o in (whole[0], out)]
    for k in states[0]: torch.testing.assert_close(states[0][k], states[1][k], rtol=0, atol=0)
    rows = [[{k:v for k,v in r.items() if k!='seconds'} for r in csv.DictReader((o/'history.csv').open())] for o in (whole[0], out)]
    assert rows[0]==rows[1]

def test_streamed_and_in_memory_train_alike(tmp_path):
    "The two loaders give the same batches, so the same network"
    acc = []
    for loader in ('memory', 'stream'):
        cfg = TrainConfig(bs=500, epochs=1, lr=.05, loader=loader)
        acc.append(train_run(cfg, tmp_path/loader, 'cpu')[-1]['valid_loss'])
    assert acc[0]==pytest.approx(acc[1], rel=1e-3)
