"""What the tests of graders share: a submission is a right one with a line changed, and its report must say so."""
import math
import re
import sys
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

from course_lib.grading import grade
from course_lib.init import gain

LINES, WIDTH = 24, 100   # a screen

BATCHNORM = '''
class Sub(nn.Module):
    def __init__(self, num_features, eps=1e-5, momentum=.1):
        super().__init__()
        self.eps,self.momentum = eps,momentum
        self.weight,self.bias = nn.Parameter(torch.ones(num_features)),nn.Parameter(torch.zeros(num_features))
        self.register_buffer('running_mean', torch.zeros(num_features))
        self.register_buffer('running_var', torch.ones(num_features))
    def forward(self, x):
        v = lambda t: t.view(1, -1, 1, 1)
        if self.training:
            mean = x.mean((0,2,3))
            var = (x-v(mean)).square().mean((0,2,3))
            n = x.numel()/x.shape[1]
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var*n/(n-1), self.momentum)
        else: mean,var = self.running_mean,self.running_var
        x = (x-v(mean))/(v(var)+self.eps).sqrt()
        return x*v(self.weight)+v(self.bias)
'''

SCHEDULE = '''
def Sub(opt, steps):
    def lr(i): return .6+1.4*i/(.3*steps) if i<=.3*steps else 2-1.9*(i-.3*steps)/(.7*steps)
    return torch.optim.lr_scheduler.LambdaLR(opt, lr)
'''


def submission(source):
    names = dict(torch=torch, nn=nn, F=F, np=np, stats=stats, math=math, time=time, sys=sys, gain=gain)
    exec(source, names)
    return names['Sub']


def changed(source, old, new):
    if old not in source:
        pytest.fail(f'{old!r} is not in the template')
    return source.replace(old, new)


def said(capsys):
    "What a report says, in one line."
    return ' '.join(capsys.readouterr().out.split())


def check_report(text, said=None):
    assert said is None or said in ' '.join(text.split()), text
    lines = text.splitlines()
    assert len(lines) <= LINES and max(map(len, lines)) <= WIDTH and 'Traceback' not in text, text


def planted(right, rows):
    "Two tests: of right submissions, name -> source; and of rows (name, what is replaced, by what, what must be said)."
    assert all(said for *_, said in rows)

    @pytest.mark.parametrize('name', right)
    def test_right(name, capsys):
        assert grade(name, submission(right[name])), capsys.readouterr().out

    @pytest.mark.parametrize('name, old, new, said', rows, ids=[f'{row[0]}-{i}' for i, row in enumerate(rows)])
    def test_planted(name, old, new, said, capsys):
        assert not grade(name, submission(changed(right[name], old, new)), seconds=2.)
        out = capsys.readouterr().out
        check_report(out, said)
        assert not re.search(r'^    .*…$', out, re.M), f'an explanation is cut off:\n{out}'

    return test_right, test_planted


def wrong_answers(rows):
    "A test of rows (name, answer, what must be said)."
    @pytest.mark.parametrize('name, value, said', rows)
    def test_wrong(name, value, said, capsys):
        assert not grade(name, value)
        check_report(capsys.readouterr().out, said)

    return test_wrong
