"The style of the figures in a notebook, and colours that readers can tell apart."
import os
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest

from course_lib.report import draw_ledger
from course_lib.plot import NORM_COLORS, linear_rgb

UNCHANGED = '''
import matplotlib as mpl
before = dict(mpl.rcParams)
import course_lib.plot
assert dict(mpl.rcParams)==before
'''
SHARP = '''
from IPython.core.interactiveshell import InteractiveShell
ip = InteractiveShell.instance()
import matplotlib as mpl, matplotlib.pyplot as plt
from course_lib.plot import small_png, use_style
use_style()
plt.figure()
assert ip.display_formatter.formatters['image/png'].lookup_by_type(mpl.figure.Figure) is small_png
'''


@pytest.mark.parametrize('code', [UNCHANGED, SHARP], ids=['the import changes nothing', 'the first figure is sharp'])
def test_in_a_fresh_process(code):
    "The backend of a notebook is loaded by the first figure, and must not put its own pictures in place of ours then"
    env = os.environ | dict(MPLBACKEND='module://matplotlib_inline.backend_inline')
    res = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
    assert not res.returncode, res.stderr


# What somebody without one kind of cone sees, as a matrix of linear colours (Machado et al. 2009, severity 1)
VISION = dict(
    normal=np.eye(3),
    protanopia=[[.152286, 1.052583, -.204868], [.114503, .786281, .099216], [-.003882, -.048116, 1.051998]],
    deuteranopia=[[.367322, .860646, -.227968], [.280085, .672501, .047413], [-.011820, .042940, .968881]],
    tritanopia=[[1.255528, -.076749, -.178779], [-.078411, .930809, .147602], [.004733, .691367, .303900]])


def seen(color, vision):
    return np.clip(np.array(VISION[vision])@linear_rgb(color), 0, 1)


def to_lab(rgb):
    "CIE L*a*b* (D65) of linear rgb"
    m = [[.4124564, .3575761, .1804375], [.2126729, .7151522, .0721750], [.0193339, .1191920, .9503041]]
    x = np.array(m)@rgb/(.95047, 1, 1.08883)
    f = np.where(x>(6/29)**3, np.cbrt(x), x*841/108+4/29)
    return np.array([116*f[1]-16, 500*(f[0]-f[1]), 200*(f[1]-f[2])])


def closest(colors, vision):
    "Smallest distance between two of `colors`: 2 is just visible side by side"
    lab = [to_lab(seen(o, vision)) for o in colors]
    return min(np.linalg.norm(lab[i]-lab[j]) for i in range(len(lab)) for j in range(i))


@pytest.mark.parametrize('vision', VISION)
def test_colours_stay_apart(vision):
    np.testing.assert_allclose(seen('#808080', vision), linear_rgb('#808080'), atol=2e-6)  # grey is grey to everybody
    assert closest(NORM_COLORS.values(), vision)>20


def test_the_measure_of_colours():
    np.testing.assert_allclose(to_lab(linear_rgb('white')), [100, 0, 0], atol=.02)
    assert closest(mpl.color_sequences['tab10'], 'protanopia')<5   # of Matplotlib's own ten two are all but one


def test_ledger_has_a_line_for_each_start_and_no_empty_one():
    "Its axis ends where its lines end"
    left, right = draw_ledger('init').axes
    bottom, top = left.get_ylim()
    starts = [text.get_text().split(':')[0] for text in left.texts]
    assert len(starts) == len(set(starts)) > 1 and bottom - top == pytest.approx(len(starts) + 0.2)
    assert right.get_ylim() == left.get_ylim()
