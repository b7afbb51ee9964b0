"The grader of each exercise on data and training passes what is right and names each planted mistake."
from graders import SCHEDULE, planted

STOP = '''
from course_lib.learner import Callback, CancelBatchException, CancelEpochException, CancelFitException
class Sub(Callback):
    def after_loss(self, learn):
        if not torch.isfinite(learn.loss): raise CancelFitException
'''

RIGHT = dict(stop_at_nan=STOP, schedule=SCHEDULE)

PLANTED = [  # exercise, what stands in the right one, what replaces it, what the report must say
    ('schedule', '    def lr', '    steps *= 10\n    def lr', 'peak is'),
    ('schedule', '(.3*steps)', '(.5*steps)', 'peak'),
    ('schedule', 'return torch.optim.lr_scheduler.LambdaLR(opt, lr)', 'return lr', 'should return a scheduler'),
    ('stop_at_nan', 'after_loss', 'after_batch', 'too late'),
    ('stop_at_nan', 'after_loss', 'after_backward', 'in validation goes unseen'),
    ('stop_at_nan', 'raise CancelFit', 'raise CancelEpoch', 'the next epoch begins'),
    ('stop_at_nan', 'raise CancelFit', 'raise CancelBatch', 'goes on after it'),
    ('stop_at_nan', 'not torch.isfinite', 'torch.isnan', 'isfinite in place of isnan'),
    ('stop_at_nan', 'raise CancelFitException', 'raise ValueError', 'ends with ValueError'),
    ('stop_at_nan', 'not torch.isfinite(learn.loss)', 'learn.loss>0', 'losses are all finite'),
    ('stop_at_nan', 'class Sub(Callback)', 'class Sub', 'not derived from Callback'),
    ('stop_at_nan', 'if not torch', 'learn.loss = 2*learn.loss\n        if not torch', 'it changes the training'),
    ('stop_at_nan', 'after_loss(self, learn):',
     'before_batch(self, learn):\n        if not hasattr(learn, "loss"): return', 'another batch was begun'),
]

test_right, test_planted = planted(RIGHT, PLANTED)
