"""What the package `mup` does to three models (tests/test_width.py): python tools/mup_table.py > tests/mup_table.json

Run with mup 1.0.0 installed (pip install mup; no dependency of the course). A row is a parameter with three factors
against the base model: `std` of its start, rates of `adam` and `sgd`. The package keeps output weights large and
divides what they multiply by the width (`MuReadout`), so its output rows are translated: a weight W under a factor 1/m
in the forward pass is one of W/m, which a step of Adam moves by 1/m of its rate, and one of SGD by 1/m**2.
"""

import json

import mup
import torch
from torch import nn

from course_lib.transformer import PatchTransformer, scaled_start
from course_lib.width import growth, width_mlp


def mlp(width):
    net = width_mlp(width)
    net[6] = mup.MuReadout(width, 10)
    return net


def transformer(width):
    net = scaled_start(PatchTransformer(depth=1, width=width, heads=width // 8, patch=7))
    net.head = mup.MuReadout(width, 10)
    return net


def convs(width):
    "The second convolution's fan-in grows with the width, its fan-out as its square; the head's is that."
    return nn.Sequential(
        nn.Conv2d(1, width, 3),
        nn.GroupNorm(1, width),
        nn.Conv2d(width, width**2 // 8, 3),
        nn.Flatten(),
        mup.MuReadout(width**2 // 8 * 4, 10),
    )


def rows(name, make, width, base_width, delta_width):
    model, base = make(width), make(base_width)
    for p in model.parameters():
        p.data = torch.ones_like(p)
    mup.set_base_shapes(model, base, delta=make(delta_width))
    optimizers = dict(adam=mup.MuAdam(model.parameters(), lr=1.0), sgd=mup.MuSGD(model.parameters(), lr=1.0))
    rates = {rule: {id(p): g['lr'] for g in opt.param_groups for p in g['params']} for rule, opt in optimizers.items()}
    for key, p in model.named_parameters():
        where, _, leaf = key.rpartition('.')
        module = model.get_submodule(where)
        multiplier = 1 / module.width_mult() if isinstance(module, mup.MuReadout) and leaf == 'weight' else 1.0
        started_by_fan_in = isinstance(module, (nn.Linear, nn.Conv2d))  # PyTorch's, biases as well
        fan_in = growth(model, base)[f'{where}.weight'][1] if started_by_fan_in else 1.0
        yield dict(
            model=name,
            width=width,
            base=base_width,
            parameter=key,
            std=round(p.flatten()[0].item() * fan_in**-0.5 * multiplier, 6),
            adam=rates['adam'][id(p)] * multiplier,
            sgd=rates['sgd'][id(p)] * multiplier**2,
        )


if __name__ == '__main__':
    made = [*rows('mlp', mlp, 256, 32, 64), *rows('transformer', transformer, 64, 16, 32)]
    made += rows('convs', convs, 32, 8, 16)
    print('[', ',\n'.join(map(json.dumps, made)), ']', sep='\n')
