"The grader of each exercise on seeds and verdicts passes what is right and names each planted mistake."
from graders import planted, wrong_answers

COVERAGE = '''
def Sub(interval, seeds):
    held = 0
    rng = np.random.default_rng(0)
    for _ in range(1000):
        values = rng.normal(size=seeds)
        lo, hi = interval(values)
        held += lo <= 0 <= hi
    return held/1000
'''

PAIRED = '''
def Sub(mine, theirs):
    differences = np.array([mine[seed]-theirs[seed] for seed in mine])
    half = stats.t.ppf(.975, len(differences)-1) * stats.sem(differences)
    return differences.mean()-half, differences.mean()+half
'''

RIGHT = dict(coverage=COVERAGE, paired_interval=PAIRED)

PLANTED = [  # exercise, what stands in the right one, what replaces it, what the report must say
    ('coverage', 'held += lo <= 0 <= hi', 'held += not lo <= 0 <= hi', 'that miss the truth'),
    ('coverage', 'held/1000', 'held', 'is no share'),
    ('coverage', 'held/1000', 'held/10', 'is no share'),
    ('coverage', 'range(1000)', 'range(50)', 'thousand tell'),
    ('coverage', 'rng.normal(size=seeds)', 'rng.uniform(size=seeds)', 'true mean of your values is not 0'),
    ('coverage', 'rng.normal(size=seeds)', 'rng.normal(size=1000)', 'one for each seed'),
    ('coverage', 'rng.normal(size=seeds)', 'np.random.default_rng(0).normal(size=seeds)',
     'each experiment draws the same values'),
    ('coverage', 'lo <= 0 <= hi', 'lo <= values.mean() <= hi', 'ask for the true mean'),
    ('coverage', 'lo <= 0 <= hi', 'lo <= 0', 'both ends count'),
    ('coverage', 'lo <= 0 <= hi', 'lo <= 8.5 <= hi', 'yours say 1.00 and 1.00'),
    ('coverage', 'return held/1000', 'return', 'is a `return` missing?'),
    ('paired_interval', '[mine[seed]-theirs[seed] for seed in mine]',
     '[a-b for a,b in zip(mine.values(), theirs.values())]', 'paired by their place'),
    ('paired_interval', 'mine[seed]-theirs[seed]', 'theirs[seed]-mine[seed]', 'the wrong way round'),
    ('paired_interval', 'stats.t.ppf(.975, len(differences)-1)', '1.96', '1.96 is for many seeds'),
    ('paired_interval', 'len(differences)-1', 'len(differences)', 'leave n-1 degrees of freedom'),
    ('paired_interval', 'len(differences)-1', '4', 'is for five seeds'),
    ('paired_interval', '.975', '.95', '2.5 % are cut off'),
    ('paired_interval', 'stats.sem(differences)', 'differences.std(ddof=1)', 'the mean varies less'),
    ('paired_interval', 'stats.sem(differences)', 'stats.sem(differences, ddof=0)', 'needs ddof=1'),
    ('paired_interval', 'stats.t.ppf(.975, len(differences)-1) * ', '', 'multiply it by t'),
    ('paired_interval', 'return differences.mean()-half, differences.mean()+half',
     'return stats.ttest_ind(list(mine.values()), list(theirs.values())).confidence_interval()', 'not paired'),
    ('paired_interval', 'stats.sem(differences)', 'np.hypot(*(stats.sem([*o.values()]) for o in (mine, theirs)))',
     'the spread of each method went in'),
    ('paired_interval', 'return differences.mean()-half, differences.mean()+half', 'return differences.mean(), half',
     'the mean and half of the width'),
    ('paired_interval', 'return differences.mean()-half, differences.mean()+half', 'return half',
     'two numbers are wanted'),
]

WRONG = [  # exercise, answer, what the report must say
    ('verdicts', dict(group='open', two_points='fails', layer='open', best_of_six='open', edge='open'),
     'what is left open'),
    ('verdicts', dict(group='holds', two_points='holds', layer='open', best_of_six='open', edge='open'),
     'names a size'),
    ('verdicts', dict(group='holds', two_points='fails', layer='holds', best_of_six='open', edge='open'),
     'look at the lower end'),
    ('verdicts', dict(group='holds', two_points='fails', layer='open', best_of_six='fails', edge='open'),
     'refutes nothing'),
    ('verdicts', dict(group='holds', two_points='fails', layer='open', best_of_six='open', edge='holds'),
     'at its own best rate'),
    ('verdicts', dict(group='yes', two_points='fails', layer='open', best_of_six='open', edge='open'),
     "'yes' is none of 'fails', 'holds' or 'open'"),
]

test_right, test_planted = planted(RIGHT, PLANTED)

test_wrong = wrong_answers(WRONG)
