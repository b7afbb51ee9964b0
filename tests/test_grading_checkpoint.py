"The grader of each exercise on checkpoints passes what is right and names each planted mistake."
from graders import planted

RESUME = '''
PARTS = 'model', 'opt', 'sched', 'data'
def state_of(run): return {k: getattr(run, k).state_dict() for k in PARTS} | dict(rng=torch.get_rng_state())
def put_back(run, state):
    for k in PARTS: getattr(run, k).load_state_dict(state[k])
    torch.set_rng_state(state['rng'])
Sub = state_of, put_back
'''

RIGHT = dict(resume=RESUME)

PLANTED = [  # exercise, what stands in the right one, what replaces it, what the report must say
    ('resume', "'model', 'opt'", "'opt'", 'keeps its own weights'),
    ('resume', "'opt', ", '', 'without velocities'),
    ('resume', "'sched', ", '', 'the schedule is at another step'),
    ('resume', ", 'data'", '', 'other images come next'),
    ('resume', "    torch.set_rng_state(state['rng'])\n", '', 'dropout will drop other values'),
    ('resume', 'getattr(run, k).load_state_dict(state[k])',
     "run.model.load_state_dict({n: v for n,v in state[k].items() if 'running' not in n}, "
     "strict=False) if k=='model' else getattr(run, k).load_state_dict(state[k])",
      'statistics are no parameters'),
    ('resume', 'getattr(run, k).state_dict()', 'getattr(run, k)', 'holds objects'),
    ('resume', 'return {', 'run.model.eval(); return {', 'changes the run that it looks at'),
    ('resume', "    torch.set_rng_state(state['rng'])", "    torch.set_rng_state(state['rng'])\n    run.model.eval()",
     'other weights'),
    ('resume', 'Sub = state_of, put_back', 'Sub = state_of', 'hand in two functions'),
    ('resume', 'return {', '{', 'not the type NoneType'),
]

test_right, test_planted = planted(RIGHT, PLANTED)
