"""µP's groups and start: against the package mup, and on models that do not fit.

Their factors are those of the package, once its multiplier of the output is moved into weight and rate.
tests/mup_table.json holds what mup 1.0.0 does to three models: tools/mup_table.py made it, and tells how.
"""

import json
from pathlib import Path

import pytest, torch
from torch import nn
from torch.testing import assert_close

from course_lib.core import set_seed
from course_lib.norms import RunningBatchNorm
from course_lib.transformer import PatchTransformer, scaled_start
from course_lib.width import coordinate_check, growth, mup_groups, mup_scales, mup_start, width_mlp

TABLE = json.loads((Path(__file__).parent / 'mup_table.json').read_text())


def transformer(width):
    return scaled_start(PatchTransformer(depth=1, width=width, heads=width // 8, patch=7))


def convs(width):
    return nn.Sequential(
        nn.Conv2d(1, width, 3),
        nn.GroupNorm(1, width),
        nn.Conv2d(width, width**2 // 8, 3),
        nn.Flatten(),
        nn.Linear(width**2 // 8 * 4, 10),
    )


MODELS = dict(mlp=width_mlp, transformer=transformer, convs=convs)


@pytest.mark.parametrize('name', MODELS)
def test_the_package_mup(name):
    "The same factors for each parameter: of its start, and of the rates of Adam and SGD"
    rows = [row for row in TABLE if row['model'] == name]
    model, base = MODELS[name](rows[0]['width']), MODELS[name](rows[0]['base'])
    grown = growth(model, base)
    assert set(grown) == {row['parameter'] for row in rows}
    for row in rows:
        ours = mup_scales(*grown[row['parameter']])
        assert_close(ours, {k: row[k] for k in ours}, rtol=1e-5, atol=0.0), row


@pytest.mark.parametrize('rule', ['adam', 'sgd'])
def test_groups(rule):
    "Each parameter once, at its own rate"
    model, base = transformer(64), transformer(16)
    rates = {id(p): g['lr'] for g in mup_groups(model, base, 0.5, rule) for p in g['params']}
    assert len(rates) == len(list(model.parameters()))
    for name, grown in growth(model, base).items():
        assert_close(rates[id(model.get_parameter(name))], 0.5 * mup_scales(*grown)[rule])


def test_start():
    "Sizes by their powers, for any start; twice is as once; at the base's width nothing changes"

    def small(width):
        net = width_mlp(width)
        for p in net.parameters():
            nn.init.normal_(p, std=0.02)
        return net

    set_seed(0)
    base, model = small(64), small(1024)
    once = {k: p.clone() for k, p in mup_start(model, base).named_parameters()}
    for k, p in mup_start(model, base).named_parameters():
        assert_close(p, once[k])
    sizes = {k: p.square().mean().sqrt().item() for k, p in once.items()}
    for k, power in (('2.weight', 0), ('4.weight', 0.5), ('6.weight', 1), ('4.bias', 0)):
        base_size = base.get_parameter(k).square().mean().sqrt().item()
        assert_close(sizes[k], base_size * 16.0**-power, rtol=1e-4, atol=0.0)
    set_seed(1)
    same, twin = width_mlp(64), width_mlp(64)
    twin.load_state_dict(same.state_dict())
    for p, q in zip(mup_start(same, twin).parameters(), twin.parameters()):
        assert_close(p, q)


class Tied(nn.Module):
    "Scores by the weights of the embedding."

    def __init__(self, width):
        super().__init__()
        self.embed, self.head = nn.Embedding(7, width), nn.Linear(width, 7)
        self.head.weight = self.embed.weight


class Cube(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, width, width))


class Wide(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, width**2))


class Head(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(10, width))


def empty(width):
    return nn.Sequential(nn.ReLU())


def deeper(width):
    return nn.Sequential(nn.Linear(4, width), *([nn.Linear(width, 2)] if width > 8 else []))


@pytest.mark.parametrize(
    'make,words',
    [
        (empty, 'nothing in it has a width'),
        (deeper, '1.bias is not in both'),
        (Tied, 'untie them'),
        (Cube, 'which is its fan-in'),
        (Wide, 'which is its fan-in'),
        (lambda width: nn.ConvTranspose2d(width, 4, 2, groups=4), 'which is its fan-in'),
        (lambda width: nn.ConvTranspose2d(width, width, 2, groups=width), 'which is its fan-in'),
        (lambda width: nn.Conv2d(1, width, width // 8), 'which is its fan-in'),
        (lambda width: nn.LazyLinear(width), 'run one batch first'),
        (lambda width: width_mlp(128 // width), 'take the narrowest model as base'),
        # scores by weights that are no Linear's
        (Head, 'weight of Head grows along sides .* name it in `inputs`'),
        (lambda width: nn.utils.parametrizations.weight_norm(nn.Linear(width, 10)), 'which is its fan-in'),
        (lambda width: nn.utils.parametrizations.spectral_norm(nn.Linear(width, 10)), 'which is its fan-in'),
        (lambda width: nn.utils.parametrizations.spectral_norm(nn.Linear(width, 1)), 'which is its fan-in'),
        (lambda width: nn.LSTM(5, 2 * width, proj_size=3), 'which is its fan-in'),
        (lambda width: nn.Bilinear(width, 5, 10), 'which is its fan-in'),
    ],
)
def test_models_that_do_not_fit(make, words):
    with pytest.raises(ValueError, match=words):
        mup_groups(make(16), make(8), 0.1)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="not 'rmsprop'"):
        mup_groups(width_mlp(16), width_mlp(8), 0.1, 'rmsprop')
    with torch.device('meta'):
        base = width_mlp(8)
    assert len(mup_groups(width_mlp(16), base, 0.1)) == 2  # numbers are not needed for rates
    with pytest.raises(ValueError, match='has no numbers'):
        mup_start(width_mlp(16), base)


@pytest.mark.parametrize(
    'make,powers',
    [
        (lambda n: nn.Embedding(7, n), (4, 1)),
        (lambda n: nn.ConvTranspose2d(n, 3, 2), (1, 4)),
        (lambda n: nn.ConvTranspose2d(2, n, 2), (4, 1)),
        (lambda n: nn.Conv2d(n, n, 3, groups=n), (4, 1)),
        (lambda n: nn.LSTM(n, 2 * n), (4, 4)),
        (lambda n: nn.LayerNorm((n, n)), (16, 1)),
        (lambda n: RunningBatchNorm(n), (4, 1)),
        (lambda n: nn.TransformerEncoderLayer(n, 2, 2 * n).self_attn, (4, 4)),
    ],
)
def test_which_side_is_which(make, powers):
    assert next(iter(growth(make(32), make(8)).values())) == powers


def test_named_inputs():
    "What has several sides and no fan-in that grows is named"
    assert growth(Head(32), Head(8), inputs=('weight',)) == {'weight': (4, 1)}
    (group,) = mup_groups(Head(32), Head(8), 0.1, inputs=('weight',))
    assert group['lr'] == 0.1


def test_scales_where_one_side_grows_faster():
    "As in table 3 of Yang et al. (2022): the start goes with the fan-in, unless the fan-out is fixed"
    assert mup_scales(2, 4) == dict(std=0.5, adam=0.25, sgd=0.5)
    assert mup_scales(16, 4) == dict(std=0.5, adam=0.25, sgd=4)
    assert mup_scales(1, 4) == dict(std=0.25, adam=0.25, sgd=0.25)


def test_coordinate_check_leaves_no_hooks_and_sees_each_layer():
    model = transformer(16)
    x = torch.randn(4, 1, 28, 28)
    opt = torch.optim.SGD(model.parameters(), 0.0)
    changes = coordinate_check(model, opt, lambda net: net(x).square().mean(), (1, 3))
    assert changes == {k: [0.0, 0.0] for k, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    assert not any(m._forward_hooks for m in model.modules())
