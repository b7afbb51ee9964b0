"The grader of each exercise on batch renormalization passes what is right and names each planted mistake."
from graders import planted

RENORM = '''
class Sub(nn.Module):
    def __init__(self, num_features, eps=1e-5, momentum=.1, rmax=3., dmax=5.):
        super().__init__()
        self.eps,self.momentum,self.rmax,self.dmax = eps,momentum,rmax,dmax
        self.weight,self.bias = nn.Parameter(torch.ones(num_features)),nn.Parameter(torch.zeros(num_features))
        self.register_buffer('running_mean', torch.zeros(num_features))
        self.register_buffer('running_std', torch.ones(num_features))
    def forward(self, x):
        v = lambda t: t.view(1, -1, 1, 1)
        mean,std = self.running_mean,self.running_std
        if self.training:
            m = x.mean((0,2,3))
            s = (x.var((0,2,3), correction=0)+self.eps).sqrt()
            r = (s/std).clamp(1/self.rmax, self.rmax).detach()
            d = ((m-mean)/std).clamp(-self.dmax, self.dmax).detach()
            self.running_mean = mean.lerp(m.detach(), self.momentum)
            self.running_std = std.lerp(s.detach(), self.momentum)
            y = (x-v(m))/v(s)*v(r)+v(d)
        else: y = (x-v(mean))/v(std)
        return y*v(self.weight)+v(self.bias)
'''

RIGHT = dict(batch_renorm=RENORM)

PLANTED = [  # exercise, what stands in the right one, what replaces it, what the report must say
    ('batch_renorm', '(s/std)', '(std/s)', 'upside down'),
    ('batch_renorm', '.clamp(1/self.rmax, self.rmax).detach()', '.detach()', 'r is not clipped'),
    ('batch_renorm', '.clamp(-self.dmax, self.dmax).detach()', '.detach()', 'd is not clipped'),
    ('batch_renorm', 'self.rmax).detach()', 'self.rmax)', 'gradient flows through r:'),
    ('batch_renorm', '((m-mean)/std)', '((m-mean)/s)', 'divided by the running'),
    ('batch_renorm', 'mean.lerp(m.detach(), self.momentum)', 'mean.lerp(m.detach(), 1-self.momentum)',
     'momentum the wrong way round'),
    ('batch_renorm', 'std.lerp(s.detach(), self.momentum)', '(std**2).lerp(s.detach()**2, self.momentum).sqrt()',
     'variance is moved'),
]

test_right, test_planted = planted(RIGHT, PLANTED)
