"The grader of each exercise on small batches passes what is right and names each planted mistake."
from graders import wrong_answers

WRONG = [  # exercise, answer, what the report must say
    ('tiny_batch', dict(larger=.7071, spread2=2**.5, spread1024=.044), 'biased one normalizes'),
]

test_wrong = wrong_answers(WRONG)
