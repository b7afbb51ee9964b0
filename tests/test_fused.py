"""The page of the Triton kernels in a process of its own, where its interpreter can be chosen."""

import os, subprocess, sys
from pathlib import Path
import pytest

pytest.importorskip('triton')
ROOT = Path(__file__).parents[1]
CHECK = """
import torch
from torch.nn import functional as F
from torch.testing import assert_close
from course_lib.norms.fused import fused_layernorm, kernels_ready
assert kernels_ready()
for N, D in ((1, 1), (5, 7), (33, 100), (0, 4)):
    x, w, b = (torch.randn(*shape, requires_grad=True) for shape in ((N, D), (D,), (D,)))
    g, exact = torch.randn(N, D), [o.detach().double().requires_grad_() for o in (x, w, b)]
    y, z = fused_layernorm(x, w, b), F.layer_norm(exact[0], (D,), *exact[1:])
    got, want = (y, *torch.autograd.grad(y, (x, w, b), g)), (z, *torch.autograd.grad(z, exact, g.double()))
    for o, e in zip(got, want): assert_close(o.double(), e, rtol=1e-4, atol=1e-5)
"""


def run(code, **env):
    env = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1') | env
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env, timeout=300)


def test_kernels_equal_torch():
    res = run(CHECK)
    assert res.returncode == 0, res.stderr


def test_triton_loaded_too_early():
    "Without a GPU, and with Triton loaded before, the error says what to do"
    import torch

    if torch.cuda.is_available():
        pytest.skip('needs a machine without a GPU')
    res = run(
        'import triton, torch; from course_lib.norms.fused import fused_layernorm; '
        'fused_layernorm(torch.ones(2, 3), torch.ones(3), torch.ones(3))'
    )
    assert res.returncode and 'set TRITON_INTERPRET=1' in res.stderr
