"The grader of each exercise on batch norm passes what is right and names each planted mistake."
import pytest
from graders import BATCHNORM, changed, planted, submission, wrong_answers

from course_lib.grading import grade

NET = '''
def Sub():
    c = lambda i, o: [nn.Conv2d(i, o, 3, 2, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
    return nn.Sequential(*c(1,8), *c(8,16), *c(16,32), *c(32,64), nn.Conv2d(64, 10, 3, 2, 1), nn.Flatten())
'''

RIGHT = dict(batchnorm=BATCHNORM, builtin_net=NET)

RUNVAR = 'self.running_var.lerp_(var*n/(n-1), self.momentum)'

PLANTED = [  # exercise, what stands in the right one, what replaces it, what the report must say
    ('batchnorm', 'var = (x-v(mean)).square().mean((0,2,3))', 'var = x.var((0,2,3))',
     'unbiased variance in the forward pass'),
    ('batchnorm', 'lambda t: t.view(1, -1, 1, 1)', 'lambda t: t', 'missing keepdim'),
    ('batchnorm', 'x*v(self.weight)+v(self.bias)', 'x*self.weight+self.bias', 'affine without a view'),
    ('batchnorm', '(v(var)+self.eps).sqrt()', '(v(var).sqrt()+self.eps)', 'eps is outside the root'),
    ('batchnorm', '(v(var)+self.eps)', '(v(var)+1e-5)', 'is the argument used?'),
    ('batchnorm', 'n = x.numel()', 'mean,var = mean.detach(),var.detach(); n = x.numel()', 'statistics under no_grad'),
    ('batchnorm', 'n = x.numel()', 'var = var.detach(); n = x.numel()', 'no gradient flows through the variance'),
    ('batchnorm', "self.register_buffer('running_var', torch.ones(num_features))",
     'self.running_var = torch.ones(num_features)', 'not a buffer'),
    ('batchnorm', "torch.zeros(num_features))\n        self.register_buffer('running_var', torch.ones(num_features))",
     'torch.zeros(num_features), persistent=False)\n'
     "        self.register_buffer('running_var', torch.ones(num_features), persistent=False)",
      'not saved'),
    ('batchnorm', 'else: mean,var = self.running_mean,self.running_var',
     'else:\n            mean,var = self.running_mean.clone(),self.running_var.clone()\n'
     '            self.running_mean.lerp_(x.mean((0,2,3)), self.momentum)',
      'updated in evaluation'),
    ('batchnorm', 'self.running_mean.lerp_(mean, self.momentum)', 'self.running_mean.lerp_(mean, 1-self.momentum)',
     'momentum the wrong way round'),
    ('batchnorm', 'self.running_mean.lerp_(mean, self.momentum)', 'self.running_mean.lerp_(mean, .1)',
     'is the argument used?'),
    ('batchnorm', RUNVAR, 'self.running_var.lerp_(var, self.momentum)', 'the biased variance is tracked'),
    ('batchnorm', RUNVAR, 'self.running_var.lerp_((var*n/(n-1)).sqrt(), self.momentum)',
     'standard deviation is tracked'),
    ('batchnorm', RUNVAR, 'pass', 'never updated'),
    ('batchnorm', 'if self.training:', 'if torch.is_grad_enabled():', 'self.training'),
    ('batchnorm', 'if self.training:', 'if True:', 'training mode taken from elsewhere'),
    ('batchnorm', 'if self.training:', 'if self.in_train:', "no attribute 'in_train'"),
    ('batchnorm', '(x-v(mean))/(v(var)+self.eps)', '(x-v(self.running_mean))/(v(self.running_var)+self.eps)',
     'training normalizes with the running statistics'),
    ('batchnorm', 'nn.Parameter(torch.ones(num_features)),nn.Parameter(torch.zeros(num_features))',
     'torch.ones(num_features),torch.zeros(num_features)', 'affine missing'),
    ('batchnorm', 'nn.Parameter(torch.ones(num_features)),nn.Parameter(torch.zeros(num_features))',
     'nn.Parameter(torch.ones(1)),nn.Parameter(torch.zeros(1))', 'affine is a scalar'),
    ('batchnorm', 'return x*v(self.weight)+v(self.bias)', 'return (x+v(self.bias))*v(self.weight)',
     'bias is added before'),
    ('batchnorm', 'return x*v(self.weight)+v(self.bias)', 'return x+v(self.bias)+0*v(self.weight)',
     'the weight is ignored'),
    ('batchnorm', 'x = (x-v(mean))', 'x = x.float(); x = (x-v(mean))', 'dtype'),
    ('batchnorm', 'x = (x-v(mean))', 'mean = mean+torch.zeros(mean.shape, dtype=mean.dtype); x = (x-v(mean))',
     'device lost'),
    ('batchnorm', 'x = (x-v(mean))/', 'x -= v(mean); x = x/', 'in-place change of the input'),
    ('batchnorm', '(x-v(mean)).square().mean((0,2,3))', '(x*x).mean((0,2,3))-mean*mean', 'cancellation'),
    ('batchnorm', 'with torch.no_grad():\n                self.running_mean.lerp_(mean, self.momentum)',
     'if True:\n                self.running_mean = self.running_mean.lerp(mean, self.momentum)', 'carries the graph'),
    ('batchnorm', '(0,2,3)', '(2,3)', 'wrong axes: something has a value for each channel of each image (15'),
    ('batchnorm', '        return x*v', '        x*v', 'is a `return` missing?'),
    ('batchnorm', 'return x*v(self.weight)+v(self.bias)', 'return (x*v(self.weight)+v(self.bias)).mean(0)',
     'wrong shape'),
    ('batchnorm', 'return x*v(self.weight)+v(self.bias)', 'return [x]', 'returns the type list'),
    ('batchnorm', 'return x*v(self.weight)+v(self.bias)', 'return 1/0', 'raises ZeroDivisionError'),
    ('batchnorm', 'return x*v(self.weight)+v(self.bias)', 'sys.exit()', 'raises SystemExit'),
    ('batchnorm', 'num_features, eps=1e-5, momentum=.1', 'nf, eps=1e-5, mom=.1', 'raises TypeError'),
    ('batchnorm', 'class Sub(nn.Module)', 'class Sub(object)', 'not derived from nn.Module'),
    ('batchnorm', 'super().__init__()\n', '\n', 'raises AttributeError'),
    ('builtin_net', 'bias=False', 'bias=True', 'keeps its bias'),
    ('builtin_net', 'nn.BatchNorm2d(o), ', '', 'no nn.BatchNorm2d'),
    ('builtin_net', 'nn.Flatten()', 'nn.BatchNorm2d(10), nn.Flatten()', 'norm after the last layer'),
]

WRONG = [  # exercise, answer, what the report must say
    ('bn_parameters', dict(learned=64, kept=128, values=3136), 'a weight and a bias'),
    ('ema', dict(weight=.1*.9**9, batches=44, noise=19**-.5), 'ten newer batches'),
    ('one_three', dict(output=1, mean=1.8, var=1.1), 'read "A chain of `lerp`" in Batch normalization'),
    ('one_three', dict(output=3, mean=.2, var=1.1), 'as it came in'),
    ('one_three', dict(output=1, mean=..., var=1.9), '– mean: not filled in yet'),
    ('bn_parameters', dict(learned=..., kept=256, values=...), 'not kept from the data'),
]

test_right, test_planted = planted(RIGHT, PLANTED)

test_wrong = wrong_answers(WRONG)


# four published forms of batch norm, rewritten: what is changed, and what the report must name, and must not
VAR = 'var = (x-v(mean)).square().mean((0,2,3))'
BIASED = {RUNVAR: 'self.running_var.lerp_(var, self.momentum)'}
FORMS = dict(
    unbiased_detached=(BIASED | {VAR: 'mean,var = mean.detach(),x.detach().var((0,2,3))'},
                       ['unbiased variance in the forward pass', 'statistics under no_grad'], []),
    unbiased=(BIASED | {VAR: 'var = x.var((0,2,3))'},
              ['unbiased variance in the forward pass', 'right gradients (the same mistake)'], ['no_grad']),
    graph=({'with torch.no_grad():\n                self.running_mean.lerp_(mean, self.momentum)':
            'if True:\n                self.running_mean = self.running_mean.lerp(mean, self.momentum)'},
           ['carries the graph'], ['no_grad', 'unbiased variance in']),
    biased_tracking=(BIASED, ['the biased variance is tracked'], ['no_grad', 'unbiased variance in']),
)


@pytest.mark.parametrize('form', FORMS)
def test_published_forms(form, capsys):
    "Of two mistakes neither hides the other, and one mistake is not told as two."
    changes, said, unsaid = FORMS[form]
    source = BATCHNORM
    for old, new in changes.items():
        source = changed(source, old, new)
    assert not grade('batchnorm', submission(source))
    out = ' '.join(capsys.readouterr().out.split())
    assert all(w in out for w in said) and not any(w in out for w in unsaid), out
