"The grader of each exercise on layer norm passes what is right and names each planted mistake."
from torch import nn

from graders import planted, wrong_answers

LAYERNORM = '''
class Sub(nn.Module):
    def __init__(self, SHAPE, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.weight,self.bias = nn.Parameter(torch.ones(SHAPE)),nn.Parameter(torch.zeros(SHAPE))
    def forward(self, x):
        mean = x.mean((1,2,3), keepdim=True)
        var = x.var((1,2,3), keepdim=True, correction=0)
        x = (x-mean)/(var+self.eps).sqrt()
        return x*(self.weight)+(self.bias)
'''

RMS = '''
class Sub(nn.Module):
    def __init__(self, shape, eps=1e-5):
        super().__init__()
        self.eps,self.weight = eps,nn.Parameter(torch.ones(shape))
    def forward(self, x): return x*(x.square().mean((1,2,3), keepdim=True)+self.eps).rsqrt()*self.weight
'''

STANDARDIZE = '''
def Sub(x, dims, eps=1e-5):
    mean = x.mean(dims, keepdim=True)
    var = x.var(dims, keepdim=True, correction=0)
    return (x-mean)/(var+eps).sqrt()
'''

RIGHT = dict(layernorm=LAYERNORM, rmsnorm=RMS, standardize=STANDARDIZE)

PLANTED = [  # exercise, what stands in the right one, what replaces it, what the report must say
    ('layernorm', 'correction=0', 'correction=1', 'unbiased variance in the forward pass'),
    ('layernorm', '(1,2,3)', '(0,2,3)', 'wrong axes'),
    ('layernorm', '(1,2,3)', '(2,3)', 'wrong axes'),
    ('layernorm', ', keepdim=True', '', 'missing keepdim'),
    ('layernorm', '(var+self.eps).sqrt()', '(var.sqrt()+self.eps)', 'eps is outside the root'),
    ('layernorm', 'nn.Parameter(torch.ones(SHAPE)),nn.Parameter(torch.zeros(SHAPE))',
     'nn.Parameter(torch.tensor(1.)),nn.Parameter(torch.tensor(0.))', 'affine is a scalar'),
    ('layernorm', ',nn.Parameter(torch.zeros(SHAPE))', ',0.', 'affine missing'),
    ('layernorm', 'mean = x.mean((1,2,3), keepdim=True)', 'mean = x.mean((1,2,3), keepdim=True).detach()',
     'no gradient flows through the mean'),
    ('layernorm', 'x = (x-mean)/', 'x -= mean; x = x/', 'in-place change of the input'),
    ('rmsnorm', 'return x*', 'x = x-x.mean((1,2,3), keepdim=True); return x*', 'the mean is subtracted'),
    ('rmsnorm', '(1,2,3)', '(0,1,2,3)', 'wrong axes'),
    ('standardize', 'correction=0', 'correction=1', 'unbiased variance'),
    ('standardize', 'x.mean(dims, ', 'x.mean((2,3), ', 'use the argument dims everywhere'),
    ('standardize', '(var+eps).sqrt()', '(var.sqrt()+eps)', 'eps is outside the root'),
    ('standardize', 'x.mean(dims, keepdim=True)', 'x.mean()', 'the other examples included: mean; use dims'),
    ('standardize', 'x.var(dims, keepdim=True, correction=0)', '(x-mean).square().mean()',
     'the other examples included: variance; use dims'),
    ('standardize', '    return (', '    mean,var = x.mean(),x.var(correction=0); return (',
     'included: mean and variance; use dims'),
    ('standardize', '(var+eps).sqrt()', '(var+eps)', 'divided by the variance, not by its root'),
    ('standardize', '    return (x-mean)/(var+eps).sqrt()', '    return (x-x.mean())/(var+eps)',
     'mean; use dims; divided by the variance, not by its root'),
    ('standardize', 'correction=0', 'correction=1', 'read "Three lines" in Layer normalization'),
    ('standardize', '    return (', '    x = x.detach(); mean = mean.detach(); var = var.detach(); return (',
     'without gradient'),
]

WRONG = [  # exercise, answer, what the report must say
    ('norm_counts', dict(batchnorm=20, layernorm=6, values=100), 'layer norm'),
    ('norm_counts', dict(batchnorm=6, layernorm=20), "'values' is missing"),
    ('norm_counts', [6, 20, 600], 'a dictionary is wanted'),
    ('image_sets', dict(whole=nn.LayerNorm((6,4,5)), group=..., position=lambda x: x.movedim(1, -1), token=...),
     'move the channels back with movedim(-1, 1)'),
    ('image_sets', dict(whole=nn.LayerNorm((6,4,5)), group=..., position=lambda x: x.movedim(1, -1), token=...),
     '– token: the features of each token: not filled in yet'),
]

test_right, test_planted = planted(RIGHT, PLANTED)

test_wrong = wrong_answers(WRONG)
