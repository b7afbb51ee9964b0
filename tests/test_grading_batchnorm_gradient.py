"The grader of each exercise on batch norm's gradient passes what is right and names each planted mistake."
import pytest
from graders import changed, check_report, planted, submission, wrong_answers

from course_lib.grading import grade

BACKWARD = '''
def Sub(g, x, weight, eps):
    d,v = (0,2,3),lambda t: t.view(1, -1, 1, 1)
    rstd = (x.var(d, keepdim=True, correction=0)+eps).rsqrt()
    xh = (x-x.mean(d, keepdim=True))*rstd
    gh = g*v(weight)
    gx = rstd*(gh-gh.mean(d, keepdim=True)-xh*(gh*xh).mean(d, keepdim=True))
    return gx,(g*xh).sum(d),g.sum(d)
'''

RIGHT = dict(batchnorm_backward=BACKWARD)

PLANTED = [  # exercise, what stands in the right one, what replaces it, what the report must say
    ('batchnorm_backward', '-gh.mean(d, keepdim=True)', '', 'path through the mean is missing'),
    ('batchnorm_backward', '-xh*(gh*xh).mean(d, keepdim=True)', '', 'path through the variance is missing'),
    ('batchnorm_backward', '(gh-gh.mean(d, keepdim=True)-xh*(gh*xh).mean(d, keepdim=True))', 'gh',
     'through the mean and through the variance is missing'),
    ('batchnorm_backward', 'gh = g*v(weight)', 'gh = g', 'weight is forgotten'),
    ('batchnorm_backward', '+eps', '', 'eps is forgotten'),
    ('batchnorm_backward', '(g*xh).sum(d)', '(g*xh).mean(d)', 'a mean in place of a sum'),
    ('batchnorm_backward', '(g*xh).sum(d)', '(g*x).sum(d)', 'g times x̂'),
    ('batchnorm_backward', 'return gx,(g*xh).sum(d),g.sum(d)', 'return gx', 'three tensors'),
]

WRONG = [  # exercise, answer, what the report must say
    ('four_forms', dict(A='n-1', B='n-1', C='graph', D='biased'), '1 of its 2 mistakes'),
    ('four_forms', dict(A=('n-1','detached'), B=('n-1','detached'), C='graph', D='biased'), "'detached' is not so"),
    ('four_forms', dict(A=('n-1','detached'), B='n-1', C='biased', D=...), "'biased' is not so"),
    ('four_forms', dict(A='nothing', B=..., C=..., D=...), 'none of the words'),
]

test_right, test_planted = planted(RIGHT, PLANTED)

test_wrong = wrong_answers(WRONG)


NODES = '''
def Sub(dy, gamma, c, r, xhat):
    d = dict(xhat=gamma*dy)
    d['r'] = (d['xhat']*c).sum(1, keepdim=True)
    d['v'] = -r**3/2*d['r']
    d['c'] = r*d['xhat'] + 2/c.shape[1]*c*d['v']
    d['mu'] = -d['c'].sum(1, keepdim=True)
    d['x'] = d['c'] + d['mu']/c.shape[1]
    return d
'''


@pytest.mark.parametrize('old, new, said', [
    ('gamma*dy', 'dy', 'gamma is forgotten'),
    (".sum(1, keepdim=True)\n    d['v']", "\n    d['v']", 'one number per channel'),
    ('-r**3/2*', 'r**3/2*', 'larger variance makes r smaller'),
    (" + 2/c.shape[1]*c*d['v']", '', 'leaves through v as well'),
    ('2/c.shape[1]', '2', 'has 2/n'),
    ("-d['c'].sum", "d['c'].sum", 'the sign: c = x - mu'),
    (" + d['mu']/c.shape[1]", '', 'leaves through mu as well'),
    ('r**3/2*', 'r**2/2*', 'r is v**-.5'),
    ('r**3/2*', 'r**3*', 'the factor ½ is missing'),
    ('-r**3/2*', '0*', 'detaching does: r does depend on v'),
    ("-d['c'].sum(1, keepdim=True)", "0*d['r']", 'detaching does: mu is subtracted'),
    ('-r**3/2*', '-r**3/7*', 'dv differs: one edge leaves v'),
    ('    return d', "    del d['r']\n    return d", "the row 'r' is missing"),
])
def test_nodes(old, new, said, capsys):
    "One wrong row is named, and the rows that are built on it are still right."
    assert grade('batchnorm_nodes', submission(NODES))
    capsys.readouterr()
    assert not grade('batchnorm_nodes', submission(changed(NODES, old, new)))
    out = capsys.readouterr().out
    check_report(out, said)
    assert out.count('✗') == 1 or 'missing' in said or 'one number' in said, out
