"The grader of each exercise on running batch norm passes what is right and names each planted mistake."
from graders import planted

RUNNING = '''
class Sub(nn.Module):
    def __init__(self, num_features, eps=1e-5, momentum=.05):
        super().__init__()
        self.eps,self.momentum = eps,momentum
        self.weight,self.bias = nn.Parameter(torch.ones(num_features)),nn.Parameter(torch.zeros(num_features))
        for k,v in dict(mean=0., var=1., count=0.).items():
            self.register_buffer('running_'+k, torch.full((num_features,) if k!='count' else (), v))
    def forward(self, x):
        v = lambda t: t.view(1, -1, 1, 1)
        mean,var = self.running_mean,self.running_var
        if self.training:
            count = self.running_count*(1-self.momentum)**len(x)+len(x)
            share = len(x)/count
            new = mean.lerp(x.mean((0,2,3)), share)
            square = (x-v(new)).square().mean((0,2,3))
            var = (var+(mean-new).square()).lerp(square, share)
            mean = new
            self.running_mean,self.running_var,self.running_count = mean.detach(),var.detach(),count
        return (x-v(mean))/(v(var)+self.eps).sqrt()*v(self.weight)+v(self.bias)
'''

RIGHT = dict(runningbatchnorm=RUNNING)

PLANTED = [  # exercise, what stands in the right one, what replaces it, what the report must say
    ('runningbatchnorm', 'square = (x-v(new)).square().mean((0,2,3))',
     'square = x.var((0,2,3))+x.mean((0,2,3))*math.sqrt(len(x)-2)*0', 'raises ValueError'),
    ('runningbatchnorm', '(1-self.momentum)**len(x)+len(x)', '(1-self.momentum)+1',
     'counted in batches, not in images: after a change it is halfway after 66 images at batch size 2, after 40 at 8'),
    ('runningbatchnorm', 'share = len(x)/count', 'share = torch.ones(())', 'that is batch norm'),
    ('runningbatchnorm', 'mean.detach(),var.detach(),count', 'mean,var,count', 'carries the graph'),
    ('runningbatchnorm', 'mean = new\n', 'mean,var = new.detach(),var.detach()\n', 'under no_grad or detached'),
    ('runningbatchnorm', '.lerp(square, share)', '.lerp((x*x).mean((0,2,3))-x.mean((0,2,3))**2, share)',
     'cancellation'),
    ('runningbatchnorm', "self.register_buffer('running_'+k, ", "setattr(self, 'running_'+k, ", 'not a buffer'),
    ('runningbatchnorm', 'dict(mean=0., var=1., count=0.)', 'dict(mean=float("nan"), var=1., count=0.)', 'NaN'),
]

test_right, test_planted = planted(RIGHT, PLANTED)
