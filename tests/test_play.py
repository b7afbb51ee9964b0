"Fifty layers and two values, the figures to play with, in a real browser: right numbers, keys that work."

import itertools, math, re

import browser as B
import lint as L
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from course_lib.init import gain
from course_lib.residual import root_scale, stream_formula
from course_lib.transformer import stream_after

pytestmark = pytest.mark.skipif(bool(B.missing()), reason=B.missing() or 'there is a browser')
NAMES = 'layers', 'values'
HEAD = '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'


def figure(name):
    source = (L.ROOT / f'nbs/play/{name}.qmd').read_text(encoding='utf-8')
    return re.search(r'```\{=html\}\n(.*?)\n```', source, re.S)[1]


def page(folder, name, theme='light'):
    path = folder / f'{name}.html'
    path.write_text(f'{HEAD}<body class="quarto-{theme}">{figure(name)}</body></html>', encoding='utf-8')
    return path.as_uri()


@pytest.fixture(scope='module')
def driver():
    with B.browser() as d:
        yield d


@pytest.fixture
def layers(driver, tmp_path):
    driver.get(page(tmp_path, 'layers'))
    return driver


@pytest.fixture
def values(driver, tmp_path):
    driver.get(page(tmp_path, 'values'))
    return driver


def set_to(d, name, **sliders):
    for k, v in sliders.items():
        d.execute_script(
            'const e = document.querySelector(`#play-${arguments[0]} input[name=${arguments[1]}]`); '
            "e.value = arguments[2]; e.dispatchEvent(new Event('input'))",
            name, k, v,
        )  # fmt: skip


def says(d, name, part='.says'):
    return d.find_element('css selector', f'#play-{name} {part}').text


def park_miller_normals(seed):
    "The generator of the figures"
    state = seed

    def uniform():
        nonlocal state
        state = state * 16807 % 2147483647
        return state / 2147483647

    while True:
        first, second = uniform(), uniform()
        yield math.sqrt(-2 * math.log(first)) * math.cos(2 * math.pi * second)


ACTS = dict(linear=lambda x: x, relu=torch.relu, tanh=torch.tanh, gelu=nn.functional.gelu)


@pytest.mark.parametrize('act,scale', list(itertools.product(ACTS, (0.7, 1.0, 1.5))))
def test_layers_are_torchs(layers, act, scale):
    width, depth = 16, 12
    config = dict(act=act, scale=scale, width=width, depth=depth, seed=3)
    got = layers.execute_script('return playLayers.simulate(arguments[0])', config)
    normal = park_miller_normals(3)
    x = torch.tensor([next(normal) for _ in range(width)])
    for layer in range(depth):
        weight = torch.tensor([[next(normal) for _ in range(width)] for _ in range(width)])
        y = weight @ x * scale / width**0.5
        assert_close(got[layer], y.std(correction=0).item(), rtol=1e-3, atol=1e-30)
        x = ACTS[act](y)


@pytest.mark.parametrize('act', ACTS)
def test_theory_is_the_librarys_gain(layers, act):
    "A layer whose output has spread s gives one of spread s * scale / gain(act, s)"
    line = layers.execute_script('return playLayers.theory(arguments[0])', dict(act=act, scale=1.3, depth=6))
    assert line[0] == 1.3
    for s, after in itertools.pairwise(line):
        assert_close(after, s * 1.3 / gain(act, s).item(), rtol=1e-5, atol=0)


STREAMS = dict(skip=(False, 1.0), small=(False, 24**-0.5), pre=(True, 1.0))


@pytest.mark.parametrize('stream', STREAMS)
def test_streams_are_torchs(layers, stream):
    "A layer adds its branch, which may be scaled or begin with a norm"
    width, depth = 16, 12
    config = dict(act='relu', scale=1.2, width=width, depth=depth, seed=3, stream=stream)
    got = layers.execute_script('return playLayers.simulate(arguments[0])', config)
    norm, by = STREAMS[stream]
    normal = park_miller_normals(3)
    x = torch.tensor([next(normal) for _ in range(width)])
    for layer in range(depth):
        weight = torch.tensor([[next(normal) for _ in range(width)] for _ in range(width)])
        seen = nn.functional.rms_norm(x, (width,), eps=0.0) if norm else x
        x = x + by * (weight @ torch.relu(seen)) * 1.2 / width**0.5
        assert_close(got[layer], x.std(correction=0).item(), rtol=1e-3, atol=0.0)


def test_theory_of_streams_is_the_librarys(layers):
    "Mean squares of residual nets and of the pre-norm transformer's MLPs"

    def squares(stream, scale):
        config = dict(act='relu', scale=scale, depth=12, stream=stream)
        return torch.tensor(layers.execute_script('return playLayers.theory(arguments[0])', config)) ** 2

    assert_close(squares('skip', 2**0.5), torch.tensor(stream_formula([1.0] * 12)))
    small = [root_scale(layer, 12) for layer in range(1, 13)]
    assert_close(squares('small', 2**0.5), torch.tensor(stream_formula(small)))
    assert_close(squares('pre', 1.0), torch.tensor([stream_after('pre', n) for n in range(1, 13)]))


def test_streams_can_be_chosen(layers):
    before = says(layers, 'layers')
    layers.find_element('css selector', '#play-layers input[value=pre]').click()
    assert says(layers, 'layers') != before
    assert layers.execute_script('return playLayers.state.stream') == 'pre'


def test_float32_ends(layers):
    "No activation: at scale 2 the spread passes the largest float32 number near layer 128, at .5 the smallest one"
    config = dict(act='linear', width=64, depth=200, seed=1)
    large = layers.execute_script('return playLayers.ends(playLayers.simulate(arguments[0]))', config | dict(scale=2))
    small = layers.execute_script('return playLayers.ends(playLayers.simulate(arguments[0]))', config | dict(scale=0.5))
    assert abs(large - math.log2(torch.finfo(torch.float32).max)) < 12
    assert abs(small - math.log2(1 / torch.finfo(torch.float32).smallest_normal) - 23) < 14
    assert layers.execute_script('return playLayers.ends([1, 2, 3])') == 0
    set_to(layers, 'layers', scale=2, depth=200)
    assert 'too large for float32' in says(layers, 'layers')
    assert layers.find_elements('css selector', '#play-layers .end')
    set_to(layers, 'layers', scale=1, depth=50)
    assert not layers.find_elements('css selector', '#play-layers .end')
    assert len(layers.find_elements('css selector', '#play-layers circle')) == 50


@pytest.mark.parametrize('n,side,momentum', [(2, 1, 0.1), (8, 2, 0.5), (3, 4, 1.0)])
def test_values_are_batch_norms(values, n, side, momentum):
    "Outputs and running averages are those of nn.BatchNorm2d"
    m = n * side**2
    batches = values.execute_script('return playValues.draw(arguments[0], 5)', m)
    kept = values.execute_script('return playValues.running(...arguments)', batches, momentum)
    norm = nn.BatchNorm2d(1, momentum=momentum, dtype=torch.float64)
    for batch, (mean, variance) in zip(batches, kept):
        x = torch.tensor(batch, dtype=torch.float64)
        y = values.execute_script('return playValues.normalize(arguments[0]).y', batch) if batch is batches[0] else None
        out = norm(x.view(n, 1, side, side)).flatten()
        if y:
            assert_close(torch.tensor(y, dtype=torch.float64), out.detach(), rtol=1e-9, atol=1e-9)
        right = torch.cat([norm.running_mean, norm.running_var])
        assert_close(torch.tensor([mean, variance]).double(), right, rtol=1e-6, atol=1e-6)
    assert abs(torch.tensor(batches).mean() - 1) < 0.4 and abs(torch.tensor(batches).std() - 2) < 0.3


def test_what_the_values_say(values):
    assert says(values, 'values', '.warn').startswith('Two values')
    xs = [e.get_attribute('cx') for e in values.find_elements('css selector', '#play-values .out circle')]
    zero = 62 + (630 - 62) * 8 / 18
    assert_close(sorted(float(x) - zero for x in xs), [-568 / 18, 568 / 18], rtol=1e-3, atol=0)
    set_to(values, 'values', N=1)
    assert says(values, 'values', '.warn').startswith('One value')
    set_to(values, 'values', N=8, side=7)
    assert not values.find_element('css selector', '#play-values .warn').is_displayed()
    assert '392 values' in says(values, 'values', '.one') and '2/√392 = 0.10' in says(values, 'values', '.one')


@pytest.mark.parametrize('name', NAMES)
def test_keyboard(driver, tmp_path, name):
    from selenium.webdriver.common.keys import Keys

    driver.get(page(tmp_path, name))
    slider = driver.find_element('css selector', f'#play-{name} input[type=range]')
    before = says(driver, name)
    for _ in range(4):
        slider.send_keys(Keys.ARROW_RIGHT)
    assert says(driver, name) != before
    before = driver.find_element('css selector', f'#play-{name} svg').get_attribute('innerHTML')
    driver.find_element('css selector', f'#play-{name} .new').send_keys(Keys.ENTER)
    assert driver.find_element('css selector', f'#play-{name} svg').get_attribute('innerHTML') != before
    for e in driver.find_elements('css selector', f'#play-{name} input, #play-{name} button, #play-{name} svg'):
        assert e.accessible_name


@pytest.mark.parametrize('name,dark', list(itertools.product(NAMES, (False, True))))
def test_phone(tmp_path, name, dark):
    "At 375 pixels nothing scrolls sideways, what a finger must hit is big enough, and nothing is asked from outside"
    with B.browser(375, 800, dark) as d:
        d.get(page(tmp_path, name, 'dark' if dark else 'light'))
        assert d.execute_script('return document.documentElement.scrollWidth') <= 375
        touched = 'button', '.kinds label', 'input[type=range]'
        low = d.find_elements('css selector', ', '.join(f'#play-{name} {o}' for o in touched))
        assert min(e.size['height'] for e in low) >= 24  # WCAG 2.2, 2.5.8
        assert not [e for e in d.get_log('browser') if e['level'] == 'SEVERE']
    assert not re.search(r'https?://|src=|import\(|fetch\(', figure(name))
