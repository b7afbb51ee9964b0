"""Known defects: each test below fails today, with its reason; delete the line with the defect.

RunningBatchNorm loses the state that it reassigns when a dictionary of buffers is passed from outside.
"""
import pytest

STATE = 'the layer reassigns its buffers, so functional_call, vmap and strict export lose the update'
EMPTY = 'an empty batch or an empty spatial axis is treated differently from PyTorch'
KNOWN = {
    'test_norms_api.py::test_module_database': 'gradients differ from PyTorch on one input of its module database',
    **{f'test_norms_api.py::test_export[True-{k}]': STATE for k in ('running', 'running_rows')},
    **{f'test_norms_api.py::test_{t}[{k}]': STATE for t in ('functional_call', 'vmap_of_models')
       for k in ('running', 'running_rows')},
    'test_norms_api.py::test_running_half[same-dtype0]': 'RunningBatchNorm with fp16 buffers overflows; keep its parameters in float32',
    'test_norms.py::test_equals_torch[instance]': EMPTY,
    'test_norms.py::test_equals_torch[group]': EMPTY,
    'test_norms.py::test_covered': 'fewer examples are counted while the two tests above stop early',
}

def pytest_collection_modifyitems(items):
    for item in items:
        for name, reason in KNOWN.items():
            if item.nodeid.endswith(name): item.add_marker(pytest.mark.xfail(reason=reason, strict=False))
