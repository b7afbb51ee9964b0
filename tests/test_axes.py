"The interactive figure in a real browser: its arithmetic is PyTorch's, and keys, colours and warnings work."

import itertools, re
import pytest, torch, torch.nn.functional as F
from torch.testing import assert_close

import browser as B, lint as L
from course_lib.plot import NORM_COLORS, contrast, stat_elements, stat_extent, stat_warning

pytestmark = pytest.mark.skipif(bool(B.missing()), reason=B.missing() or 'there is a browser')
SOURCE = (L.ROOT / 'nbs/play/axes.qmd').read_text(encoding='utf-8')
FIGURE = re.search(r'```\{=html\}\n(.*?)\n```', SOURCE, re.S)[1]


def reference(x, norm, G):
    "What PyTorch says"
    if norm == 'batch':
        return F.batch_norm(x, None, None, training=True) if x[:, 0].numel() > 1 else torch.zeros_like(x)
    if norm == 'layer':
        return F.layer_norm(x, x.shape[1:])
    if norm == 'token':
        return F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1)  # over the channels of a position
    if norm == 'rms':
        return F.rms_norm(x.movedim(1, -1), x.shape[1:2], eps=1e-5).movedim(-1, 1)
    return F.group_norm(x, G if norm == 'group' else x.shape[1])


@pytest.fixture(scope='module', params=['light', 'dark'])
def page(request, tmp_path_factory):
    f = tmp_path_factory.mktemp('axes') / 'axes.html'
    f.write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<body class="quarto-{request.param}">{FIGURE}</body></html>',
        encoding='utf-8',
    )
    with B.browser(dark=request.param == 'dark') as d:
        d.get(f.as_uri())
        yield d


@pytest.fixture
def d(page):
    page.refresh()
    return page


def set_to(d, norm=None, **axes):
    "Move the sliders and choose the norm as a hand does: by events on the controls"
    for k, v in axes.items():
        d.execute_script(
            "const e = document.querySelector(`#norm-axes input[name=${arguments[0]}]`); e.value = arguments[1]; e.dispatchEvent(new Event('input'))",  # noqa: E501
            k,
            v,
        )
    if norm:
        d.find_element('css selector', f'#norm-axes input[value={norm}]').click()


def text(d, q):
    return d.find_element('css selector', f'#norm-axes {q}').text


def shown(d, t, what='textContent'):
    return d.execute_script(
        f"return [...document.querySelectorAll('#norm-axes [id^=norm-axes-{t}-][data-i]')].sort((a,b) => a.dataset.i - b.dataset.i).map(e => {what})"  # noqa: E501
    )


def number(s):
    return float(s.replace('−', '-'))


def test_arithmetic_is_pytorchs(d):
    gen, cases = torch.Generator().manual_seed(42), 0
    for N, C, H, W, norm in itertools.product(
        (1, 2, 3), (1, 2, 4, 6), (1, 2), (1, 3), ('batch', 'layer', 'instance', 'group', 'rms', 'token')
    ):
        for G in [g for g in range(1, C + 1) if C % g == 0] if norm == 'group' else [1]:
            x = torch.randn(N, C, H, W, dtype=torch.float64, generator=gen)
            r = d.execute_script('return normAxes.normalize(...arguments)', x.flatten().tolist(), norm, [N, C, H, W], G)
            m = C if norm in ('token', 'rms') else stat_elements(norm, x.shape, G)
            want = reference(x, norm, G) if m > 1 or norm == 'rms' else torch.zeros_like(x)
            assert_close(torch.tensor(r['y'], dtype=torch.float64).view_as(x), want, rtol=1e-9, atol=1e-9)
            assert set(r['count']) == {m} and len(r['count']) * m == x.numel()
            token = dict(token='layer').get(norm, norm), (1, C, 1, 1)  # one position has the set of a map of one pixel
            said = stat_warning(*token) if norm in ('token', 'rms') else stat_warning(norm, x.shape, G)
            assert d.execute_script('return normAxes.warning(...arguments)', norm, m) == said
            cases += 1
    assert cases > 250


def test_colours_are_the_courses(d):
    got = d.execute_script('return Object.fromEntries(Object.entries(normAxes.NORMS).map(([k,v]) => [k,v.color]))')
    assert got == {k: NORM_COLORS['layer' if k == 'token' else k] for k in got}


def test_what_is_shown_is_normalized(d):
    for norm in ('batch', 'layer', 'instance', 'group', 'rms', 'token'):
        set_to(d, norm, N=2, C=4, H=2, W=2, G=2)
        first = lambda t: torch.tensor([number(s) for s in shown(d, t, 'e.firstChild.data')]).view(2, 4, 2, 2)
        assert_close(first('y'), reference(first('x'), norm, 2), rtol=0, atol=0.0051)


def test_colour_is_the_set(d):
    "Cells share a colour exactly if PyTorch's norm shares their statistic"
    for norm, G in (('batch', 1), ('layer', 1), ('instance', 1), ('group', 2), ('group', 4)):
        set_to(d, norm, N=3, C=4, H=2, W=1, G=G)
        colours = shown(d, 'x', 'getComputedStyle(e).backgroundColor')
        n, c = stat_extent(norm, 3, 4, G)
        sets = [(i // 8 // n, (i // 2) % 4 // c) for i in range(24)]
        pairs = {(s, col) for s, col in zip(sets, colours)}
        assert len(pairs) == len(set(sets)) == len(set(colours))


def test_warnings(d):
    set_to(d, 'batch', N=2, C=3, H=1, W=1)
    assert text(d, '.warn') == '2 values: the output is ±1'
    set_to(d, 'instance')
    assert text(d, '.warn') == '1 value: the output is 0'
    set_to(d, 'batch', N=4)
    assert not d.find_element('css selector', '#norm-axes .warn').is_displayed()
    set_to(d, 'group', C=6, G=4)
    assert text(d, '.warn') == 'GroupNorm: num_channels (6) must be divisible by num_groups (4)'
    set_to(d, G=3)
    assert '12 sets of 2 values' in text(d, '.count')


def test_keyboard(d):
    from selenium.webdriver.common.keys import Keys

    body = d.find_element('css selector', 'body')
    names = []
    for _ in range(12):
        d.switch_to.active_element.send_keys(Keys.TAB) if names else body.send_keys(Keys.TAB)
        names.append(d.execute_script("const a = document.activeElement; return a.name || a.className || a.tagName"))
    assert [n for n in ('norm-axes-kind', 'N', 'C', 'H', 'W', 'new', 'TABLE') if n in names] == [
        'norm-axes-kind',
        'N',
        'C',
        'H',
        'W',
        'new',
        'TABLE',
    ], names
    table = d.find_element('css selector', '#norm-axes table')
    table.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
    at = table.get_attribute('aria-activedescendant')
    assert d.find_element('id', at).get_attribute('aria-label').startswith('image 0, channel 1, row 1, column 0')
    assert d.find_element('id', at).get_attribute('aria-selected') == 'true' and 'mean' in text(d, '.step')
    slider = d.find_element('css selector', '#norm-axes input[name=N]')
    slider.send_keys(Keys.ARROW_RIGHT)
    assert d.execute_script('return normAxes.state.N') == 3
    radio = d.find_element('css selector', '#norm-axes input[value=batch]')
    radio.send_keys(Keys.ARROW_RIGHT)
    assert 'LayerNorm' in text(d, '.count')


def test_for_a_screen_reader(d):
    "Every control has a name, tables are grids with a caption, changes are announced"
    for e in d.find_elements('css selector', '#norm-axes input, #norm-axes button, #norm-axes table'):
        assert e.accessible_name, e.get_attribute('outerHTML')[:80]
    assert {e.aria_role for e in d.find_elements('css selector', '#norm-axes table')} == {'grid'}
    assert len(d.find_elements('css selector', '#norm-axes [aria-live=polite]')) == 2 and d.find_elements(
        'css selector', '#norm-axes [role=alert]'
    )


def test_contrast(d):
    "Text on every colour of a set, and on the warning: 4.5 to 1 (WCAG 2.1, 1.4.3)"
    set_to(d, 'instance', N=4, C=8, H=1, W=1)
    rgb = lambda s: tuple(int(o) / 255 for o in re.findall(r'\d+', s)[:3])
    pairs = shown(d, 'x', '[getComputedStyle(e).color, getComputedStyle(e).backgroundColor]')
    pairs.append(
        d.execute_script(
            "const s = getComputedStyle(document.querySelector('#norm-axes .warn')); return [s.color, s.backgroundColor]"  # noqa: E501
        )
    )
    assert min(contrast(rgb(a), rgb(b)) for a, b in pairs) >= 4.5


def test_nothing_from_outside(d):
    assert not re.search(r'https?://|//\w|src=|import\(|fetch\(', FIGURE.replace('// ', '').replace('//  ', '')), (
        'the figure asks for nothing'
    )
    assert not [e for e in d.get_log('browser') if e['level'] == 'SEVERE']


@pytest.mark.parametrize('dark', [False, True])
def test_phone(tmp_path, dark):
    "At 375 pixels nothing but the tables scrolls sideways, and what a finger must hit is big enough"
    f = tmp_path / 'axes.html'
    f.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><body>{FIGURE}</body></html>',  # noqa: E501
        encoding='utf-8',
    )
    with B.browser(375, 800, dark) as d:
        d.get(f.as_uri())
        set_to(d, 'group', N=4, C=8, H=4, W=4)
        assert d.execute_script('return document.documentElement.scrollWidth') <= 375
        low = [
            e.size['height']
            for e in d.find_elements(
                'css selector', '#norm-axes button, #norm-axes .kinds label, #norm-axes input[type=range]'
            )
        ]
        assert min(low) >= 24  # WCAG 2.2, 2.5.8
