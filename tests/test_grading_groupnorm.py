"The grader of each exercise on instance and group norm passes what is right and names each planted mistake."
import math

from graders import planted, wrong_answers

INSTANCE = '''
class Sub(nn.Module):
    def __init__(self, num_features, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.weight,self.bias = nn.Parameter(torch.ones(num_features)),nn.Parameter(torch.zeros(num_features))
    def forward(self, x):
        mean = x.mean((2,3), keepdim=True)
        var = x.var((2,3), keepdim=True, correction=0)
        x = (x-mean)/(var+self.eps).sqrt()
        return x*self.weight.view(-1,1,1)+self.bias.view(-1,1,1)
'''

GROUP = '''
class Sub(nn.Module):
    def __init__(self, num_groups, num_channels, eps=1e-5):
        super().__init__()
        if num_channels%num_groups: raise ValueError('channels do not make groups')
        self.eps,self.G = eps,num_groups
        self.weight,self.bias = nn.Parameter(torch.ones(num_channels)),nn.Parameter(torch.zeros(num_channels))
    def forward(self, x):
        N,C,H,W = x.shape
        g = x.view(N, self.G, C//self.G, H, W)
        mean,var = g.mean((2,3,4), keepdim=True),g.var((2,3,4), keepdim=True, correction=0)
        g = (g-mean)/(var+self.eps).sqrt()
        return g.reshape(N, C, H, W)*self.weight.view(-1,1,1)+self.bias.view(-1,1,1)
'''

TWO_SUMS = '''
def Sub(x, g):
    return (g*x).sum((2,3)), g.sum((2,3))
'''

RIGHT = dict(instancenorm=INSTANCE, groupnorm=GROUP, two_sums=TWO_SUMS)

PLANTED = [  # exercise, what stands in the right one, what replaces it, what the report must say
    ('instancenorm', '(2,3)', '(0,2,3)', 'wrong axes'),
    ('instancenorm', 'correction=0', 'correction=1', 'unbiased variance'),
    ('instancenorm', '+self.eps', '+1.', 'eps is 1'),
    ('instancenorm', ', keepdim=True', '', 'missing keepdim'),
    ('groupnorm', 'x.view(N, self.G, C//self.G, H, W)', 'x.view(N, C//self.G, self.G, H, W).transpose(1, 2)',
     'groups split the wrong way'),
    ('groupnorm', '(2,3,4)', '(0,2,3,4)', 'wrong axes'),
    ('groupnorm', '(2,3,4)', '(3,4)', 'wrong axes'),
    ('groupnorm', "if num_channels%num_groups: raise ValueError('channels do not make groups')", 'pass',
     'should raise a ValueError'),
    ('two_sums', '(g*x).sum((2,3)), g.sum((2,3))', '(g*x).sum((0,2,3)), g.sum((0,2,3))', 'do not sum over the images'),
    ('two_sums', '(g*x).sum((2,3)), g.sum((2,3))', 'g.sum((2,3)), (g*x).sum((2,3))',
     'gradient of the offset, not of the factor'),
    ('two_sums', '(g*x).sum', 'x.sum', 'g is missing'),
    ('two_sums', 'g.sum((2,3))', 'g.mean((2,3))', 'a sum, not a mean'),
    ('two_sums', 'g.sum((2,3))', 'g', 'expected shape (N, C)'),
    ('two_sums', ', g.sum((2,3))', '', 'two tensors are wanted'),
]

WRONG = [  # exercise, answer, what the report must say
    ('pooled_instance', dict(pooled=1, one_pixel=0), 'after subtracting'),
    ('pooled_instance', dict(pooled=0, one_pixel=math.nan), 'unbiased variance of one'),
]

test_right, test_planted = planted(RIGHT, PLANTED)

test_wrong = wrong_answers(WRONG)
