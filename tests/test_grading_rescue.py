"The grader of each exercise on rescued runs passes what is right and names each planted mistake."
import pytest
from graders import check_report, planted, wrong_answers

from course_lib.grading import grade
from course_lib.grading.rescue import sample_images

sample_images()   # before any grader's clock runs

START = '''
def Sub(m):
    if isinstance(m, nn.Linear):
        factor = gain('softsign').item()
        nn.init.normal_(m.weight, 0, factor/m.in_features**.5)
        nn.init.zeros_(m.bias)
'''

RIGHT = dict(rescue_start=START)

PLANTED = [  # exercise, what stands in the right one, what replaces it, what the report must say
    ('rescue_start', "gain('softsign').item()", '.5', 'vanishes'),
    ('rescue_start', "gain('softsign').item()", '1e9*gain("softsign").item()', 'explodes'),
    ('rescue_start', "gain('softsign').item()", '1.', 'images are right'),
    ('rescue_start', 'nn.init.normal_(m.weight, 0, factor/m.in_features**.5)', 'nn.init.constant_(m.weight, .005)',
     'all units of a layer are equal'),
    ('rescue_start', 'nn.init.normal_(m.weight, 0, factor/m.in_features**.5)\n        nn.init.zeros_(m.bias)',
     'torch.randn_like(m.weight)*factor', 'no parameter has changed'),
    ('rescue_start', 'nn.init.zeros_(m.bias)', 'm.register_forward_hook(lambda m, i, o: o*2)', 'a hook changes'),
    ('rescue_start', '    if isinstance(m, nn.Linear):',
     '    if isinstance(m, nn.Sequential): m[1] = nn.ReLU()\n    if isinstance(m, nn.Linear):', 'no longer the same'),
]

WRONG = [  # exercise, answer, what the report must say
    ('rescue_run', dict(lr=.1, leak=.1), 'change one thing; this changes 2'),
    ('rescue_run', dict(lr=.4), 'lr is 0.4 already'),
    ('rescue_run', dict(depth=9), "the recipe has no 'depth'"),
    ('rescue_run', .1, 'a dictionary is wanted'),
    ('rescue_run', dict(epochs=50), 'six epochs are enough'),
    ('rescue_run', dict(momentum=1), 'between 0 and 1'),
]

test_right, test_planted = planted(RIGHT, PLANTED)

test_wrong = wrong_answers(WRONG)


@pytest.mark.parametrize('change, said', [
    (dict(epochs=6), 'more time does not bring it back'),
    (dict(leak=.05), 'units cannot die now'),
    (dict(normalize=True), 'centered pixels are not enough'),
    (dict(lr=.0001), 'too small to get going'),
    (dict(lr=.3), 'still too large'),
    (dict(leak=.1), 'its loss became NaN'),
], ids=lambda o: '-'.join(o) if isinstance(o, dict) else '')
def test_wrong_rescue(change, said, capsys):
    assert not grade('rescue_run', change, seconds=60.)
    check_report(capsys.readouterr().out, said)
