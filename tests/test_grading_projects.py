"The grader of each exercise on projects passes what is right and names each planted mistake."
import pytest
from graders import check_report, planted
from torch import nn

from course_lib.grading import grade
from course_lib.grading.projects import small_net

RESCUE = '''
def Sub(net):
    for m in net:
        if isinstance(m, nn.Linear):
            nn.init.kaiming_normal_(m.weight, nonlinearity='relu')
            nn.init.zeros_(m.bias)
'''

RIGHT = dict(train_by_init=RESCUE)

PLANTED = [  # exercise, what stands in the right one, what replaces it, what the report must say
    ('train_by_init', "nonlinearity='relu'", "nonlinearity='linear'", 'vanishes'),
    ('train_by_init', 'nn.init.kaiming_normal_(m.weight', 'nn.init.kaiming_normal_(m.bias[None]', 'explodes'),
    ('train_by_init', 'def Sub(net):', 'def Sub(net):\n    net[1] = nn.BatchNorm1d(32)', 'no longer the same'),
]

test_right, test_planted = planted(RIGHT, PLANTED)


def convert(net):
    for i, m in enumerate(net):
        if isinstance(m, nn.BatchNorm2d):
            net[i] = nn.GroupNorm(1, m.num_features)
    return net


def rows_of(lrs=(.001, .004), seeds=3, mine=.8, batch=.3):
    return [dict(norm=norm, lr=lr, seed=seed, accuracy=accuracy+seed/100)
            for norm, accuracy in dict(mine=mine, batch=batch).items() for lr in lrs for seed in range(seeds)]


@pytest.mark.parametrize('sub, said', [
    ((convert, rows_of(lrs=(.1,))), 'single learning rate'),
    ((convert, rows_of(seeds=1)), 'fewer than three seeds'),
    ((convert, [1]), 'list of dicts'),
    ((convert, [r for r in rows_of() if r['norm'] == 'mine']), 'norms to compare'),
    ((convert, rows_of(mine=.999)), 'does not repeat'),
    ((convert, rows_of(mine=.302)), 'do not defend'),
    ((lambda net: net, rows_of()), 'refuses a batch of one'),
    ((lambda net: convert(small_net(7)), rows_of()), 'carries them over'),
    (convert, 'two things'),
])
def test_defence(sub, said, capsys):
    assert not grade('small_batch_model', sub)
    check_report(capsys.readouterr().out, said)
