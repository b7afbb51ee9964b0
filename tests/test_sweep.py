"Sweeps: determinism, resuming, kills, executors, and stacked training against single."

import dataclasses, json, os, random, signal, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest, torch

from course_lib import report, small_batch as B, sweep as S
from course_lib.small_batch import RunConfig, config_model, run, sweep_data, train_configs
from course_lib.stacks import AloneTrainer, StackTrainer, batch_order, take_batch
from course_lib.sweep import Sweep, read_rows, same_cell

os.environ['COURSE_SAMPLE'] = '1'
torch.set_num_threads(1)
TINY = RunConfig(samples=32, batch_size=8, n_evals=1, n_valid=20)
GRID = [dataclasses.replace(TINY, norm=n, seed=s) for n in ('none', 'layer') for s in range(3)]


def fake(configs):
    "What a stack gives, at once"
    return [dict(evals=[], accuracy=0.5 + c.seed / 100, recalibrated=None) for c in configs]


def slow(configs):
    time.sleep(0.02)
    return fake(configs)


def die_once(configs):
    "The process of seed 1 dies the first time"
    flag = Path(os.environ['SWEEP_TEST_FLAG'])
    if configs[0].seed == 1 and not flag.exists():
        flag.touch()
        os._exit(1)
    return fake(configs)


def die(configs):
    if configs[0].seed == 1:
        os._exit(1)
    return fake(configs)


def configs_of(rows):
    return sorted(json.dumps(r['config'], sort_keys=True) for r in rows)


def sweep(grid, path, train=fake, stack=1, **kwargs):
    return Sweep(grid, path, train, same_cell, stack, **kwargs)


def once(rows, grid):
    return configs_of(rows) == sorted(json.dumps(dataclasses.asdict(c), sort_keys=True) for c in grid)


def test_deterministic():
    c = dataclasses.replace(TINY, norm='running', samples=160)
    a, b = run(c), run(c)
    assert a['evals'] == b['evals'] and a['accuracy'] == b['accuracy']
    torch.randn(7)
    assert run(c)['evals'] == a['evals']
    assert run(dataclasses.replace(c, seed=5))['evals'] != a['evals']
    assert {'torch', 'commit', 'processor', 'device', 'threads', 'seconds', 'steps_per_second', 'failure'} <= set(a)


CASES = (
    [(n, 2, False, 'five') for n in B.SWEEP_NORMS]
    + [
        (*o, 'five')
        for o in (('running', 1, True), ('group', 1, False), ('batch', 8, True), ('running_naive', 8, True))
    ]
    + [(n, 2, True, 'published') for n in ('none', 'running_naive', 'group', 'layer')]
)  # batch norm of few values is chaotic, alone as well


@pytest.mark.parametrize('norm,bs,norm_1x1,model', CASES)
def test_stacked_is_alone(norm, bs, norm_1x1, model):
    "50 steps in float64, where rounding cannot grow into a difference: every loss, parameter and buffer"
    cs = [
        RunConfig(
            norm=norm,
            batch_size=bs,
            norm_1x1=norm_1x1,
            model=model,
            init='kaiming' if model == 'five' else 'default',
            seed=s,
            lr=lr,
            samples=50 * bs,
        )
        for s, lr in ((0, 0.02), (1, 0.05))
    ]
    loader = sweep_data('fashion_mnist').train
    orders = torch.stack([batch_order(len(loader.y), c.samples, c.batch_size, c.seed) for c in cs])
    torch.set_default_dtype(torch.float64)
    try:
        stack, alone = (
            StackTrainer([config_model(c) for c in cs], [c.lr for c in cs]),
            [AloneTrainer([config_model(c)], [c.lr]) for c in cs],
        )
        for t in range(50):
            x, y = take_batch(loader, orders[:, t])
            x = x.double()
            one = torch.cat([m.step(x[i : i + 1], y[i : i + 1], 1 - t / 50) for i, m in enumerate(alone)])
            torch.testing.assert_close(stack.step(x, y, 1 - t / 50), one, rtol=1e-3, atol=1e-5)
        for a, m in zip(alone, stack.models()):
            got = m.state_dict()
            for k, v in a.model.state_dict().items():
                torch.testing.assert_close(got[k], v, rtol=1e-3, atol=1e-5)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize('norm', ['none', 'batch', 'running', 'group'])
def test_stacked_is_alone_float32(norm):
    "The same in float32, with momentum, from images to accuracy"
    cs = [RunConfig(norm=norm, batch_size=2, seed=s, lr=0.01, samples=100, momentum=0.5, n_evals=1) for s in range(3)]
    for a, b in zip(train_configs(cs), map(run, cs)):
        assert abs(a['evals'][0]['train_loss'] - b['evals'][0]['train_loss']) < 2e-3
        assert abs(a['accuracy'] - b['accuracy']) <= 0.01


def test_diverged_is_a_result():
    cs = [dataclasses.replace(TINY, lr=lr, samples=200) for lr in (0.05, 1e8)]
    good, bad = S.attempt(cs, train_configs)
    assert bad['failure'] == 'diverged' and good['failure'] is None
    assert abs(good['accuracy'] - run(cs[0])['accuracy']) <= 0.01


def test_stack_of_different_shapes():
    with pytest.raises(ValueError, match='seed and lr only'):
        train_configs([TINY, dataclasses.replace(TINY, batch_size=4)])
    with pytest.raises(ValueError, match='of one shape'):
        StackTrainer([config_model(c) for c in GRID[2:4]], [0.1, 0.1])


def test_crash_is_retried_then_recorded():
    calls = []

    def train(cs):
        calls.append(cs)
        if cs[0].seed == 1 or len(cs) > 1:
            raise OSError('no luck')
        return fake(cs)

    rows = S.attempt(GRID[:3], train, 3)
    assert [r['failure'] for r in rows] == [None, 'crashed', None] and rows[1]['error'] == 'OSError: no luck'
    assert len(calls) == 1 + 1 + 3 + 1


def test_a_lucky_retry():
    calls = []

    def train(cs):
        calls.append(cs)
        if len(calls) == 1:
            raise OSError('once')
        return fake(cs)

    assert S.attempt(GRID[:1], train, 2)[0]['failure'] is None


def test_resumes_and_repairs(tmp_path):
    path = tmp_path / 'r.jsonl'
    whole = sweep(GRID, path, stack=2).run(progress=False)
    data = path.read_bytes()
    assert once(whole, GRID)
    for cut in range(0, len(data) + 1, 37):
        path.write_bytes(data[:cut])
        done = []

        def train(cs):
            done.extend(cs)
            return fake(cs)

        rows = sweep(GRID, path, train, stack=2).run(progress=False)
        assert once(rows, GRID) and len(done) == len(GRID) - data[:cut].count(b'\n')


@dataclasses.dataclass(frozen=True)
class Other:
    "A config of another kind, with a tuple"

    seed: int = 0
    steps: tuple = (0.6, 2.0)


def test_any_config(tmp_path):
    "Tuples survive the way through JSON, and the whole config is the key"
    grid = [Other(s, t) for s in range(2) for t in ((0.6, 2.0), (0.6, 3.0))]
    for _ in range(2):
        rows = Sweep(grid, tmp_path / 'r.jsonl', lambda cs: [dict(sum=sum(cs[0].steps), nothing=float('nan'))]).run(
            progress=False
        )
        assert [r['sum'] for r in rows] == [2.6, 3.6] * 2 and rows[0]['nothing'] is None
    assert not Sweep(grid, tmp_path / 'r.jsonl', fake).pending()
    with pytest.raises(ValueError, match='1 runs that are not in this grid'):
        Sweep(grid[:3], tmp_path / 'r.jsonl', fake).pending()
    assert len(Sweep([*grid, Other(3)], tmp_path / 'r.jsonl', fake).pending()) == 1


def test_refuses(tmp_path):
    path = tmp_path / 'r.jsonl'
    sweep(GRID, path).run(progress=False)
    data = path.read_bytes() + b'{"torn'
    path.write_bytes(data)
    with pytest.raises(ValueError, match='3 runs that are not in this grid'):
        sweep(GRID[:3], path).run(progress=False)
    assert path.read_bytes() == data
    path.write_bytes(b'{"broken\n' + data)
    with pytest.raises(ValueError, match='line 1 is no result'):
        sweep(GRID, path).run(progress=False)
    path.write_bytes(b'')
    with sweep(GRID, path).lock(), pytest.raises(RuntimeError, match='another process'):
        sweep(GRID, path).run(progress=False)


SCRIPT = """
import sys; sys.path.insert(0, {tests!r})
from test_sweep import *
grid = [dataclasses.replace(TINY, seed=s) for s in range(60)]
def train(cs):
    with open({log!r}, 'a') as f: f.write(''.join(f'{{c.seed}}\\n' for c in cs))
    return slow(cs)
print('ready', flush=True)
sweep(grid, {path!r}, train, stack=3).run(progress=False)
"""


def test_twenty_kills(tmp_path):
    "No finished run is lost, and none is done again"
    path, log = tmp_path / 'r.jsonl', tmp_path / 'log'
    code = SCRIPT.format(tests=str(Path(__file__).parent), log=str(log), path=str(path))
    # one process imports torch; its forks are killed, each at a random moment of its sweep
    driver = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nimport test_sweep\ntest_sweep.kill_forks({code!r}, {str(path)!r})"  # noqa: E501
    out = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', driver],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | dict(COURSE_SAMPLE='1'),
    )
    assert out.returncode == 0, out.stderr
    assert out.stdout.count('killed') == 20
    grid = [dataclasses.replace(TINY, seed=s) for s in range(60)]
    assert once(read_rows(path), grid)
    # a stack that was cut off is begun again, so at most one stack of 3 a kill; a finished one never is
    assert 60 <= len(log.read_text().split()) <= 60 + 3 * 20


def kill_forks(code, path):
    "Twenty children that run `code` and die by SIGKILL; then one that may finish"
    rng, path = random.Random(0), Path(path)
    for i in range(21):
        before = path.read_bytes() if path.exists() else b''
        pid = os.fork()
        if not pid:
            exec(code, {})
            os._exit(0)
        if i < 20:
            time.sleep(rng.uniform(0.01, 0.08))
            os.kill(pid, signal.SIGKILL)
            print('killed', flush=True)
        assert (os.waitpid(pid, 0)[1] == 0) or i < 20
        assert path.read_bytes().startswith(before[: before.rfind(b'\n') + 1])  # what was finished is still there


def test_any_executor(tmp_path):
    with ThreadPoolExecutor(2) as ex:
        rows = sweep(GRID, tmp_path / 'r.jsonl', stack=2).run(ex, progress=False)
    assert once(rows, GRID)


def test_spawned_pool(tmp_path):
    "Real runs in two processes give the numbers of this one"
    rows = sweep(GRID[:3], tmp_path / 'r.jsonl', train_configs).run(workers=2, progress=False)
    assert once(rows, GRID[:3])
    by_seed = {r['config']['seed']: r for r in rows}
    assert by_seed[0]['evals'] == run(GRID[0], 'cpu')['evals']


def test_worker_dies_once(tmp_path, monkeypatch):
    monkeypatch.setenv('SWEEP_TEST_FLAG', str(tmp_path / 'flag'))
    monkeypatch.setenv(
        'PYTHONPATH', os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get('PYTHONPATH')]))
    )
    rows = sweep(GRID[:3], tmp_path / 'r.jsonl', die_once).run(workers=1, progress=False)
    assert once(rows, GRID[:3]) and not any(r['failure'] for r in rows)


def test_worker_dies_always(tmp_path, monkeypatch):
    "The run that kills its process is recorded, and the others are done"
    monkeypatch.setenv(
        'PYTHONPATH', os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get('PYTHONPATH')]))
    )
    rows = sweep(GRID[:3], tmp_path / 'r.jsonl', die).run(workers=1, progress=False)
    assert once(rows, GRID[:3])
    assert {r['config']['seed']: r['failure'] for r in rows} == {0: None, 1: 'crashed', 2: None}


def test_dask(tmp_path):
    distributed = pytest.importorskip('distributed')
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:
        with distributed.Client(cluster) as client:
            rows = sweep(GRID, tmp_path / 'r.jsonl', stack=3).run(client.get_executor(), progress=False)
    assert once(rows, GRID)


def test_report(tmp_path):
    path = tmp_path / 'r.jsonl'
    grid = [
        RunConfig(norm=n, batch_size=bs, lr=lr, seed=s, norm_1x1=o)
        for n in ('batch', 'group')
        for bs in (2, 8)
        for lr in (0.01, 0.1)
        for s in range(3)
        for o in (False, True)
    ]

    def train(cs):
        return [
            r | dict(cpu_seconds=1.0, recalibrated=0.6, evals=[dict(samples=100, valid_accuracy=0.85)])
            for r in fake(cs)
        ]

    sweep(grid, path, train).run(progress=False)
    report.course_report.__wrapped__(str(path), str(tmp_path / 'out'))  # fastcore 1.7 reads argv in any call
    text = (tmp_path / 'out/report.md').read_text()
    assert '0.510 ±\u00a00.010' in text and 'batch' in text and '| 0.510–' not in text
    assert len(list((tmp_path / 'out').glob('*.png'))) == 6
    assert report.sweep_cells(read_rows(path))['recalibrated', 2]['mean'] == pytest.approx(0.6)


@pytest.mark.parametrize('name', ['fashion_mnist', 'mnist'])
def test_committed_rows(name, capsys):
    "The rows of the lesson belong to its grid, no config twice, and the report's table shows their means"
    path = Path(__file__).parents[1] / f'nbs/results/small_batch_{name}.jsonl'
    rows = read_rows(path)
    configs = [RunConfig(**r['config']) for r in rows]
    assert len(set(configs)) == len(configs) and set(configs) <= set(B.small_batch_grid(name))
    report.course_report.__wrapped__(str(path))
    text = capsys.readouterr().out
    cell = [
        r
        for r in rows
        if r['config']['norm'] == 'group' and r['config']['batch_size'] == 2 and not r['config']['norm_1x1']
    ]
    means = {
        lr: sum(r['accuracy'] for r in cell if r['config']['lr'] == lr) / sum(r['config']['lr'] == lr for r in cell)
        for lr in B.sweep_lrs(2)
    }
    assert f'{max(means.values()):.3f} ±' in text


@pytest.mark.parametrize('name', B.MODELS)
def test_each_model_fits_the_images(name):
    assert config_model(dataclasses.replace(TINY, model=name))(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_help_of_an_experiment_names_its_parts(capsys):
    with pytest.raises(SystemExit):
        S.main(['--help'], tune=lambda: None, judge=lambda: None)
    assert 'which of tune, judge' in ' '.join(capsys.readouterr().out.split())
