"What does not belong on the page on data: every source and its failures, workers, resuming at random points."

import gzip, hashlib, io, os, pickle, random, subprocess, sys, time, warnings
from pathlib import Path

import numpy as np, pytest, torch
from torch.testing import assert_close

datasets = pytest.importorskip('datasets')
import course_lib.sources as D
from course_lib.datasets import (
    CLASSES,
    DataLoaders,
    DatasetError,
    dataset_from_arrays,
    from_hub,
    from_idx,
    from_sample,
    get_dataset,
    image_to_tensor,
    inplace,
    pixel_stats,
    pixels,
)
from course_lib.sources import parse_idx

ROOT = Path(__file__).resolve().parents[1]
SAMPLE_HASH = '6f8596ccb3e4234b48241378a3619d486e8d3455dc87b1a8de62d15de1b974d3'


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    "No variable, package or network of this machine decides what a test sees"
    for k in ('COURSE_DATA', 'COURSE_SAMPLE', 'IN_TEST'):
        monkeypatch.delenv(k, raising=False)
    monkeypatch.setattr(D, 'DEBIAN', tmp_path / 'no-debian')
    monkeypatch.setattr(D, '_told', set())
    monkeypatch.setattr(D, '_silent', set())

    def network(*a, **k):
        raise AssertionError('a test asked the network')

    monkeypatch.setattr('huggingface_hub.HfApi.dataset_info', network)
    monkeypatch.setattr('datasets.load_dataset', network)


@pytest.fixture(scope='module')
def sample():
    return from_sample()


@pytest.fixture
def small(sample):
    return datasets.DatasetDict(train=sample['train'].select(range(300)), test=sample['test'].select(range(100)))


def idx(a):
    return bytes([0, 0, 8, a.ndim]) + np.array(a.shape, '>u4').tobytes() + a.astype(np.uint8).tobytes()


def arrays(n=5, m=3):
    rng = np.random.default_rng(0)
    return {
        p: (rng.integers(0, 256, (k, 28, 28), np.uint8), rng.integers(0, 10, k).astype(np.uint8))
        for p, k in (('train', n), ('t10k', m))
    }


def write(root, monkeypatch, data=None, gz=True, name='mnist'):
    "A folder of IDX files whose hashes are the expected ones"
    folder = root / name.replace('_', '-')
    folder.mkdir(parents=True, exist_ok=True)
    for pre, pair in (data or arrays()).items():
        for stem, a in zip((f'{pre}-images-idx3-ubyte', f'{pre}-labels-idx1-ubyte'), pair):
            monkeypatch.setitem(D.SHA256, f'{folder.name}/{stem}', hashlib.sha256(idx(a)).hexdigest())
            if gz:
                (folder / f'{stem}.gz').write_bytes(gzip.compress(idx(a)))
            else:
                (folder / stem).write_bytes(idx(a))
    return folder


# ---- IDX files
@pytest.mark.parametrize('gz', [True, False])
def test_idx_round_trip(tmp_path, monkeypatch, gz):
    data = arrays()
    write(tmp_path, monkeypatch, data, gz)
    before = sorted(p for p in tmp_path.rglob('*'))
    dd = get_dataset('mnist', tmp_path)
    assert list(dd) == ['train', 'test'] and dd['train'].features['label'].names == CLASSES['mnist']
    for split, pre in (('train', 'train'), ('test', 't10k')):
        x, y = data[pre]
        assert (pixels(dd[split])[:, 0].numpy() == x).all() and dd[split]['label'] == y.tolist()
        assert all((np.array(im) == o).all() for im, o in zip(dd[split]['image'], x))
    assert sorted(p for p in tmp_path.rglob('*')) == before, 'loading wrote to disk'


def test_idx_errors_name_file_and_remedy(tmp_path, monkeypatch):
    def error():
        with pytest.raises(DatasetError) as e:
            get_dataset('mnist', tmp_path)
        assert e.value.__cause__ is None and '\n' not in str(e.value)
        assert 'COURSE_DATA' in str(e.value) or 'download' in str(e.value)
        return str(e.value)

    folder = tmp_path / 'mnist'
    assert 'no such folder' in error() and str(folder) in error()
    write(tmp_path, monkeypatch)
    file, other = folder / 'train-images-idx3-ubyte.gz', folder / 'train-labels-idx1-ubyte.gz'
    good = file.read_bytes()
    content = gzip.decompress(good)
    cases = {
        'no such file': None,
        'truncated or damaged gzip': good[:-9],
        '0x00000801': other.read_bytes(),
        'its header (5, 28, 28) asks for': gzip.compress(content[:-1]),
        'damaged gzip': b'<html>not found</html>',
        'sha256': gzip.compress(content[:-1] + bytes([content[-1] ^ 1])),
        'magic number 0x': gzip.compress(b''),
    }
    for want, damaged in cases.items():
        if damaged is None:
            file.unlink()
        else:
            file.write_bytes(damaged)
        msg = error()
        assert want in msg and str(file) in msg, (want, msg)
    file.write_bytes(good)
    get_dataset('mnist', tmp_path)


@pytest.mark.parametrize('cut', [0, 1, 5, 10, 11, 200])
def test_every_truncation_of_gzip_is_caught(tmp_path, monkeypatch, cut):
    file = write(tmp_path, monkeypatch) / 't10k-labels-idx1-ubyte.gz'
    file.write_bytes(file.read_bytes()[:cut] if cut < 200 else file.read_bytes()[:-1])
    with pytest.raises(DatasetError, match='t10k-labels-idx1-ubyte.gz'):
        get_dataset('mnist', tmp_path)


def test_count_mismatch(tmp_path, monkeypatch):
    data = arrays()
    data['t10k'] = data['t10k'][0], data['t10k'][1][:-1]
    write(tmp_path, monkeypatch, data)
    with pytest.raises(DatasetError, match=r'3 images in t10k-images.* 2 labels in t10k-labels'):
        get_dataset('mnist', tmp_path)


def test_parse_idx_fuzz():
    "Random damage either leaves a valid file or is a DatasetError, never another exception"
    rng, good = random.Random(0), idx(arrays()['train'][0])
    for _ in range(300):
        b = bytearray(good[: rng.choice([len(good), rng.randrange(40)])])
        for _ in range(rng.randrange(3)):
            if b:
                b[rng.randrange(min(len(b), 20))] = rng.randrange(256)
        try:
            assert parse_idx(bytes(b), 3).size == len(b) - 16
        except DatasetError:
            pass


@pytest.mark.skipif('COURSE_DATA' not in os.environ, reason='needs the full data')
def test_sample_is_the_start_of_the_full_data(sample):
    full = from_idx(os.environ['COURSE_DATA'], 'fashion_mnist')
    for k, n in dict(train=6000, test=1000).items():
        part = full[k].select(range(n))
        assert (
            pixels(sample[k]).equal(pixels(part))
            and sample[k]['label'] == part['label']
            and sample[k].features == part.features
        )


# ---- sources
def test_sample_content(sample):
    "Hashes of the decoded sample: changing the files is noticed without the full data"
    h = hashlib.sha256()
    for ds in sample.values():
        h.update(pixels(ds).numpy().tobytes())
        h.update(bytes(ds['label']))
    assert h.hexdigest() == SAMPLE_HASH
    files = sorted((ROOT / 'course_lib/data').iterdir())
    assert [f.name for f in files] == ['NOTICE', 'fashion_mnist_test.parquet', 'fashion_mnist_train.parquet']
    assert sum(f.stat().st_size for f in files) < 3.5e6
    assert 'MIT License' in files[0].read_text() and 'Zalando SE' in files[0].read_text()


def test_order_of_sources(tmp_path, monkeypatch):
    said = []
    for f in ('from_idx', 'from_sample', 'from_hub'):
        monkeypatch.setattr(D, f, lambda *a, f=f: said.append((f, *map(str, a))))

    def got(**env):
        said.clear()
        with monkeypatch.context() as m:
            for k, v in env.items():
                m.setenv(k, v)
            get_dataset()
        return said[0][:2]

    hub, sample = ('from_hub', 'fashion_mnist'), ('from_sample', 'fashion_mnist')
    assert got() == hub
    assert got(COURSE_DATA='a') == ('from_idx', 'a')
    assert got(COURSE_DATA='a', IN_TEST='1') == ('from_idx', 'a')
    assert got(COURSE_DATA='a', COURSE_SAMPLE='1') == sample
    assert got(COURSE_SAMPLE='1') == got(IN_TEST='1') == sample
    assert got(COURSE_SAMPLE='0') == got(COURSE_SAMPLE='') == got(COURSE_DATA='') == hub
    (tmp_path / 'debian' / 'fashion-mnist').mkdir(parents=True)
    monkeypatch.setattr(D, 'DEBIAN', tmp_path / 'debian')
    assert (
        got() == ('from_idx', str(tmp_path / 'debian'))
        and got(COURSE_DATA='a') == ('from_idx', 'a')
        and got(IN_TEST='1') == sample
    )
    monkeypatch.setenv('COURSE_SAMPLE', '1')
    said.clear()
    get_dataset('mnist', 'here')
    assert said == [('from_idx', 'here', 'mnist')], 'a folder in the call comes first'


def test_named_folder_never_falls_back(monkeypatch, tmp_path):
    monkeypatch.setenv('COURSE_DATA', str(tmp_path / 'nowhere'))
    with pytest.raises(DatasetError, match='nowhere'):
        get_dataset()
    with pytest.raises(DatasetError, match='elsewhere'):
        get_dataset(path=tmp_path / 'elsewhere')


def test_sample_of_mnist(monkeypatch):
    monkeypatch.setenv('COURSE_SAMPLE', '1')
    for name in ('mnist', 'mnist_50k'):
        with pytest.raises(DatasetError, match='fashion_mnist only'):
            get_dataset(name)
    with pytest.raises(ValueError, match="no data set 'cifar'"):
        get_dataset('cifar')


def test_damaged_sample(monkeypatch, tmp_path):
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'fashion_mnist_train.parquet').write_bytes(b'PAR1')
    monkeypatch.setattr(D, 'files', lambda _: tmp_path)
    with pytest.raises(DatasetError, match='fashion_mnist_train.parquet.*install course_lib again'):
        from_sample()


def test_mnist_50k(monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    data = dict(train=(np.zeros((60_000, 1, 1)), rng.integers(0, 10, 60_000)), t10k=(np.ones((7, 1, 1)), np.arange(7)))
    write(tmp_path, monkeypatch, data)
    dd = get_dataset('mnist_50k', tmp_path)
    assert {k: len(v) for k, v in dd.items()} == dict(train=50_000, valid=10_000, test=7)
    assert list(dd['train']['label']) + list(dd['valid']['label']) == data['train'][1].tolist() and dd['test'][
        'label'
    ] == list(range(7))
    dls = DataLoaders.in_memory(dd, 10_000, 'cpu', normalize=False)
    assert dls.valid.y.tolist() == dd['valid']['label'] and len(dls.train) == 5


# ---- the Hub, played by stand-ins
class Hub:
    "Answers `load_dataset` with `res` and remembers how it was asked"

    def __init__(self, res):
        self.res, self.asked = res, []

    def __call__(self, repo):
        self.asked.append((repo, datasets.config.HF_HUB_OFFLINE))
        if isinstance(self.res, Exception):
            raise self.res
        return self.res


@pytest.fixture
def hub(monkeypatch, small):
    def make(res=small, answer=lambda *a, **k: 'fine'):
        hub = Hub(res)
        monkeypatch.setattr('datasets.load_dataset', hub)
        monkeypatch.setattr('huggingface_hub.HfApi.dataset_info', answer)
        return hub

    return make


def no_answer(*a, **k):
    raise OSError('Name or service not known')


def test_hub_answers(hub, small):
    h = hub()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert get_dataset() is small and get_dataset('mnist') is small
    assert h.asked == [('zalando-datasets/fashion_mnist', False), ('ylecun/mnist', False)]


def test_hub_cached_copy(hub, small):
    h = hub(answer=no_answer)
    assert get_dataset('mnist') is small
    assert h.asked == [('ylecun/mnist', True)], 'without an answer only the cache is asked'
    assert datasets.config.HF_HUB_OFFLINE is False, 'and the setting is put back'


def test_hub_silent(hub):
    hub(ConnectionError('offline'), lambda *a, **k: time.sleep(30))
    start = time.perf_counter()
    with pytest.raises(DatasetError, match='ylecun/mnist.*does not answer.*COURSE_DATA'):
        from_hub('mnist', timeout=0.2)
    assert time.perf_counter() - start < 5


def test_a_silent_hub_is_asked_once(hub):
    asked = []

    def silent(self, repo, **kw):
        asked.append(repo)
        time.sleep(30)

    hub(ConnectionError('offline'), silent)
    for name in ('mnist', 'fashion_mnist', 'mnist'):
        with pytest.raises(DatasetError, match='does not answer'):
            from_hub(name, timeout=0.2)
    assert asked == ['ylecun/mnist']


def test_hub_breaks_off(hub):
    hub(ConnectionError('reset by peer'))
    with pytest.raises(DatasetError, match='failed with ConnectionError.*COURSE_DATA') as e:
        get_dataset('mnist')
    assert e.value.__cause__ is None and datasets.config.HF_HUB_OFFLINE is False


def test_fall_back_is_loud_once(hub):
    hub(ConnectionError('offline'), no_answer)
    with pytest.warns(UserWarning, match='ONLY A SAMPLE') as w:
        dd = get_dataset()
    assert len(w) == 1 and w[0].filename == __file__ and len(dd['train']) == 6000
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        get_dataset()
    with pytest.raises(DatasetError):
        get_dataset('mnist')


def test_fall_back_in_a_fresh_process(tmp_path):
    "The real library without a network: bounded, one warning on stderr, no retries"
    code = (
        "import course_lib.sources as D; D.DEBIAN = D.Path('nowhere')\n"
        "for _ in range(2): print(len(D.get_dataset()['train']))"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith(('COURSE_', 'HF_')) and k != 'IN_TEST'}
    env |= dict(HF_HOME=str(tmp_path), HF_ENDPOINT='http://127.0.0.1:9', OMP_NUM_THREADS='1')
    start = time.perf_counter()
    r = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, timeout=120)
    assert r.stdout.split() == ['6000', '6000'], r.stderr
    assert r.stderr.count('ONLY A SAMPLE') == 1 and 'Retrying' not in r.stderr, r.stderr
    assert time.perf_counter() - start < 100


# ---- loaders
def batches(dl):
    return [tuple(o.clone() for o in b) for b in dl]


def same(a, b):
    assert len(a) == len(b)
    for u, v in zip(a, b):
        assert_close(u, v)


def test_loaders_agree(small):
    mem = DataLoaders.in_memory(small, 64, 'cpu', seed=3)

    def norm(b):
        return (b[0] - mem.mean) / mem.std, b[1]

    for kw in (dict(batch_tfm=norm), dict(tfm=lambda im: (image_to_tensor(im) - mem.mean) / mem.std)):
        st = DataLoaders.from_dd(small, 64, seed=3, **kw)
        mem.train.load_state_dict(dict(seed=3, epoch=0, batch=0))
        for _ in range(2):
            same(batches(mem.train), batches(st.train))
        same(batches(mem.valid), batches(st.valid))


def test_workers_give_the_same_batches(small):
    "Two processes that read ahead, twice over, and a resume in mid-epoch"
    one, two = DataLoaders.from_dd(small, 64), DataLoaders.from_dd(small, 64, num_workers=2, persistent_workers=True)
    same(batches(one.train), batches(two.train))
    it = iter(two.train)
    next(it)
    state = two.state_dict()
    rest = [tuple(o.clone() for o in b) for b in it]
    one.load_state_dict(state)
    same(batches(one.train), rest)


def test_pickles_for_spawned_workers(small):
    dls = DataLoaders.from_dd(small, 64)
    for o in (dls.train.collate_fn, dls.train.dataset, dls.train.sampler):
        pickle.loads(pickle.dumps(o))
    ds = pickle.loads(pickle.dumps(dls.train.dataset))
    assert_close(ds[0]['image'], dls.train.dataset[0]['image'])


def test_resume_anywhere(small):
    "Stop at a random batch of a random epoch, save, go on in new loaders: the same sequence as without a stop"
    rng = random.Random(0)

    def labels(dl):
        return [yb.tolist() for xb, yb in dl]

    for make in (DataLoaders.in_memory, DataLoaders.from_dd):
        whole = make(small, 50, seed=9)
        want = [labels(whole.train) for _ in range(3)]
        for _ in range(9):
            dls, e, b = make(small, 50, seed=9), rng.randrange(3), rng.choice([0, 1, 2, 5, 6])
            for _ in range(e):
                labels(dls.train)
            it = iter(dls.train)
            for _ in range(b):
                next(it)
            state = torch.load(io.BytesIO(saved(dls.state_dict())), weights_only=True)
            new = make(small, 50, seed=1)
            new.load_state_dict(state)
            assert labels(new.train) == want[e][b:]
            if e < 2:
                assert labels(new.train) == want[e + 1]


def test_every_epoch_and_seed_has_its_own_order(small):
    "Also where seed + epoch agree"
    for make in (DataLoaders.in_memory, DataLoaders.from_dd):
        dls = [make(small, 50, seed=s) for s in range(4)]
        orders = [tuple(torch.cat([yb for _, yb in o.train]).tolist()) for _ in range(4) for o in dls]
        assert len(set(orders)) == 16 and len({tuple(sorted(o)) for o in orders}) == 1


def test_set_epoch_as_distributed_libraries_call_it(small):
    dls = DataLoaders.from_dd(small, 50)
    first, second = ([yb for _, yb in dls.train] for _ in range(2))
    for e, want in ((1, second), (0, first), (1, second)):
        dls.train.sampler.set_epoch(e)
        same([(yb,) for _, yb in dls.train], [(yb,) for yb in want])


def saved(state):
    f = io.BytesIO()
    torch.save(state, f)
    return f.getvalue()


def test_no_global_randomness(small):
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    for dls in (DataLoaders.in_memory(small, 64, 'cpu'), DataLoaders.from_dd(small, 64)):
        batches(dls.train)
    assert (
        states[0].equal(torch.get_rng_state())
        and states[1] == random.getstate()
        and (states[2] == np.random.get_state()[1]).all()
    )


def test_batches_are_independent(small):
    "A training step that changes a batch in place must not change the data"
    dls = DataLoaders.in_memory(small, 300, 'cpu', normalize=False)
    a = batches(dls.train)
    dls.load_state_dict(dict(train=dict(seed=42, epoch=0, batch=0), valid=dict(seed=42, epoch=0, batch=0)))
    for xb, yb in dls.train:
        xb.zero_()
        yb.zero_()
    dls.train.load_state_dict(dict(seed=42, epoch=0, batch=0))
    same(a, batches(dls.train))


def test_last_batch_and_lengths(small):
    for make in (DataLoaders.in_memory, DataLoaders.from_dd):
        dls = make(small, 128, valid_batch_size=70)
        assert [len(dls.train), len(dls.valid)] == [3, 2]
        assert [len(yb) for _, yb in dls.train] == [128, 128, 44] and [len(yb) for _, yb in dls.valid] == [70, 30]
        assert torch.cat([yb for _, yb in dls.valid]).tolist() == small['test']['label']
        with pytest.raises(ValueError, match='at least 1, got 0'):
            make(small, 0)


def test_statistics_are_those_of_the_training_images(small):
    dls = DataLoaders.in_memory(small, 64, 'cpu')
    x = torch.stack([image_to_tensor(im) for im in small['train']['image']]).double()
    assert_close(
        torch.tensor([dls.mean, dls.std]).double(), torch.stack([x.mean(), x.std(correction=0)]), rtol=1e-6, atol=0
    )
    assert isinstance(dls.mean, float) and isinstance(dls.std, float)
    xv = torch.cat([xb for xb, _ in dls.valid])
    want = (torch.stack([image_to_tensor(im) for im in small['test']['image']]) - dls.mean) / dls.std
    assert_close(xv, want)


def test_constant_images():
    ds = dataset_from_arrays(np.full((4, 5, 5), 9, np.uint8), np.zeros(4), 'a')
    dls = DataLoaders.in_memory(datasets.DatasetDict(a=ds, b=ds), 2, 'cpu')
    xb, _ = next(iter(dls.train))
    assert_close(xb, torch.zeros(2, 1, 5, 5))


def test_colour_and_other_columns():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (6, 4, 5, 3), np.uint8)
    feats = datasets.Features(img=datasets.Image(), fine=datasets.Value('int64'))
    from PIL import Image

    ds = datasets.Dataset.from_dict(dict(img=[Image.fromarray(o) for o in x], fine=[5, 4, 3, 2, 1, 0]), feats)
    dd = datasets.DatasetDict(train=ds, test=ds)
    dls = DataLoaders.in_memory(dd, 3, 'cpu', normalize=False, cols=('img', 'fine'))
    xb, yb = next(iter(dls.valid))
    assert_close(xb, torch.tensor(x[:3]).permute(0, 3, 1, 2) / 255)
    assert yb.tolist() == [5, 4, 3]
    same([next(iter(DataLoaders.from_dd(dd, 3).valid))], [(xb, yb)])
    with pytest.raises(ValueError, match=r"no column 'label', there are \['img', 'fine'\]"):
        DataLoaders.in_memory(dd, 3, 'cpu')


def test_in_memory_refuses_a_transform(small):
    @inplace
    def tfm(b):
        b['image'] = [image_to_tensor(o) for o in b['image']]

    with pytest.raises(ValueError, match='has a transform, use from_dd'):
        DataLoaders.in_memory(small.with_transform(tfm), 10)


def test_shuffled_and_selected_data(small):
    "Rows picked by index, in another order and with repeats"
    ds = small['train'].select([7, 3, 3, 250]).flatten_indices()
    picked = small['train'].select([7, 3, 3, 250])
    assert pixels(picked).equal(pixels(ds)) and pixels(picked)[1].equal(pixels(small['train'])[3])


def test_pixel_stats_large_count():
    "Counts beyond 2**24, where float32 cannot hold them"
    n, k = 40_000_000, 30_000_001
    x = torch.zeros(n, dtype=torch.uint8)
    x[:k] = 255
    mean, std = pixel_stats(x)
    assert abs(mean - k / n) < 1e-12 and abs(std**2 - k / n * (1 - k / n)) < 1e-12


def test_memory_of_the_full_data():
    x, y = np.zeros((60_000, 28, 28), np.uint8), np.zeros(60_000, np.int64)
    ds = dataset_from_arrays(x, y, CLASSES['mnist'])
    dls = DataLoaders.in_memory(datasets.DatasetDict(train=ds, test=ds.select(range(10))), 1024, 'cpu')
    assert dls.train.nbytes == 60_000 * (784 + 8) < 60e6
    assert dls.train.x.dtype == torch.uint8 and dls.train.x.untyped_storage().nbytes() == 60_000 * 784
