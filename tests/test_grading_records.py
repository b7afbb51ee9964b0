"The grader of each exercise on records passes what is right and names each planted mistake."
from graders import planted

CHANCE = '''
def Sub(values, mark):
    t = (np.mean(values)-mark)/(np.std(values, ddof=1)/len(values)**.5)
    return stats.t.sf(t, len(values)-1)
'''

RIGHT = dict(mark=CHANCE)

PLANTED = [  # exercise, what stands in the right one, what replaces it, what the report must say
    ('mark', 'stats.t.sf(t', '2*stats.t.sf(t', 'has only one'),
    ('mark', 'stats.t.sf(t', 'stats.t.cdf(t', 'the other side'),
    ('mark', 'len(values)-1)', '1e9)', 'not the normal'),
    ('mark', '/len(values)**.5', '', 'by the root of n'),
    ('mark', 'return stats', 'stats', 'is a `return` missing?'),
    ('mark', 'return stats', 'return 3*stats', 'in place of'),
    ('mark', 'return stats.t.sf(t, len(values)-1)', "return stats.ttest_1samp(values, mark, alternative='greater')",
     'return its `.pvalue`'),
    ('mark', 'return stats.t.sf(t, len(values)-1)', 'return [t]', 'not the type list'),
]

test_right, test_planted = planted(RIGHT, PLANTED)
