"The style of the figures in a notebook."
import os, subprocess, sys

CODE = '''
from IPython.core.interactiveshell import InteractiveShell
ip = InteractiveShell.instance()
import matplotlib as mpl, matplotlib.pyplot as plt
from course_lib.plot import small_png, use_style
use_style()
plt.figure()
assert ip.display_formatter.formatters['image/png'].lookup_by_type(mpl.figure.Figure) is small_png
'''

def test_the_first_figure_is_sharp():
    "The backend of a notebook is loaded by the first figure, and must not put its own pictures in place of ours then"
    env = os.environ | dict(MPLBACKEND='module://matplotlib_inline.backend_inline')
    res = subprocess.run([sys.executable, '-c', CODE], env=env, capture_output=True, text=True)
    assert not res.returncode, res.stderr
