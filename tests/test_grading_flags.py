"The grader of each exercise on PyTorch's batch norm passes what is right and names each planted mistake."
from graders import BATCHNORM, planted, wrong_answers

FREEZE = '''
def Sub(model):
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d): m.register_forward_pre_hook(lambda m, args: m.train(False) and None)
'''

RIGHT = dict(textbook_norm=BATCHNORM, freeze=FREEZE)

PLANTED = [  # exercise, what stands in the right one, what replaces it, what the report must say
    ('freeze', 'm.register_forward_pre_hook(lambda m, args: m.train(False) and None)', 'm.eval()',
     'switches them on again'),
    ('freeze', 'm.register_forward_pre_hook(lambda m, args: m.train(False) and None)', 'm.momentum = 0.',
     'normalizes with those of its batch'),
    ('freeze', '        if isinstance',
     '        m.train = lambda mode=True, m=m: m\n        m.training = False\n        if isinstance',
     'dropout is frozen'),
    ('freeze', 'for m', 'model.requires_grad_(False)\n    for m', 'no longer learn'),
    ('textbook_norm', 'if self.training', 'if torch.is_grad_enabled()', 'read self.training'),
    ('textbook_norm', "self.register_buffer('running_mean', torch.zeros(num_features))",
     'self.running_mean = torch.zeros(num_features)', 'state that is not a buffer'),
]

WRONG = [  # exercise, answer, what the report must say
    ('running_after', dict(mean=.9, var=1.1), 'momentum the wrong way round'),
    ('running_after', dict(mean=.1, var=1.), 'unbiased one, 2, is tracked'),
    ('output_std', 1., 'divides by n-1'),
    ('gap_cases', dict(a='stale', b='stale', c='moved'), 'fresh statistics change nothing'),
    ('gap_cases', dict(a='overfit', b='overfit', c='moved'), 'the weights know them'),
    ('gap_cases', dict(a='overfit', b='stale', c='stale'), 'would mend it'),
    ('gap_cases', dict(a='overfit', b='stale', c='norm'), 'is none of'),
    ('mode_table', {(a,b): 'batch' if a else 'running' for a in (True,False) for b in (True,False)},
     'nothing else to use'),
]

test_right, test_planted = planted(RIGHT, PLANTED)

test_wrong = wrong_answers(WRONG)
