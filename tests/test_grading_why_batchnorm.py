"The grader of each exercise on why batch norm helps passes what is right and names each planted mistake."
from graders import planted

DRIFT = '''
def Sub(before, after):
    dims = (0,2,3)
    moved = (after.mean(dims)-before.mean(dims)).abs()
    return (moved/before.std(dims)).mean()
'''

UNBIASED_CONTROL = '''
def Sub(x, eps=1e-5):
    dims = (0,2,3)
    mean = x.mean(dims, keepdim=True)
    var = x.var(dims, keepdim=True)
    return (x-mean)/(var+eps).sqrt()
'''

RIGHT = dict(drift=DRIFT, unbiased_control=UNBIASED_CONTROL)

PLANTED = [  # exercise, what stands in the right one, what replaces it, what the report must say
    ('unbiased_control', 'var(dims, ', 'var(dims, correction=0, ', 'divides by n'),
    ('unbiased_control', 'x-mean)', 'x-mean.detach())', 'the mean is constant'),
    ('unbiased_control', '(var+eps)', '(var.detach()+eps)', 'the variance is constant'),
    ('unbiased_control', '    return (x-mean)/(var+eps)',
     '    mean, var = mean.detach(), var.detach()\n    return (x-mean)/(var+eps)', 'mean and variance are constant'),
    ('unbiased_control', '(var+eps)', 'var', 'is `eps` added'),
    ('unbiased_control', 'return (x', '(x', 'is a `return` missing?'),
    ('drift', '.abs()', '', 'up and down cancel'),
    ('drift', '/before.std(dims)', '/after.std(dims)', 'not the new one'),
    ('drift', '/before.std(dims)', '', 'in units of the standard deviation'),
    ('drift', '(moved/before.std(dims)).mean()', 'moved.mean()/before.std(dims).mean()', 'divide channel by channel'),
    ('drift', 'before.std(dims)', 'before.var(dims)', 'divided by the variance'),
    ('drift', '(moved/before.std(dims)).mean()', 'moved/before.std(dims)', 'take the mean over the channels'),
    ('drift', '(moved/before.std(dims)).mean()', '(moved/before.std(dims)).square().mean().sqrt()',
     'the mean of the absolute values'),
    ('drift', 'dims = (0,2,3)', 'dims = (0,1,2,3)', 'one mean for all channels'),
    ('drift', '(moved/before.std(dims)).mean()', 'before', 'not the shape'),
    ('drift', '(after.mean(dims)-before.mean(dims)).abs()', '(after-before).abs().mean(dims)',
     'how far the values moved'),
    ('drift', 'return (moved', 'return 2*(moved', 'in place of'),
    ('drift', 'return (moved', '(moved', 'is a `return` missing?'),
]

test_right, test_planted = planted(RIGHT, PLANTED)
