"""The runs of the lesson on small batches that are not in its grid: python experiments/small_batch.py [sources|leaderboard]

sources: the published settings on MNIST, one epoch in batches of 2 at lr .4, and in batches of 16 at lr 1 falling to .2; beside the first,
two smaller rates.
leaderboard: one epoch of MNIST, three learning rates. Rows go to nbs/results/small_batch_<what>.jsonl; killed and started again, it goes on.
The grid itself: course_sweep --dataset fashion_mnist --out nbs/results/small_batch_fashion_mnist.jsonl (and mnist).
"""
from pathlib import Path

from course_lib.small_batch import RunConfig, small_batch_sweep
from course_lib.sweep import main

OUT = Path(__file__).parents[1]/'nbs/results'
S0 = dict(dataset='mnist', norm_1x1=True, model='published', init='default', samples=50_000, n_evals=5)

SOURCES = [RunConfig(norm=norm, batch_size=2, lr=lr, seed=seed, schedule='constant', **S0)
           for norm in ('batch', 'running_naive', 'running', 'group', 'layer', 'none')
           for lr in (.4, .1, .02) for seed in range(3)]
SOURCES += [RunConfig(norm=norm, batch_size=16, lr=1., seed=seed, schedule='fifth', **S0)
            for norm in ('batch', 'running_naive', 'running', 'group') for seed in range(3)]

ENTRIES = ('five', 'batch', (1., .3, 3.)), ('resnet', 'batch', (1., .3, 3.)), ('resnet', 'group', (.3, .1, 1.))
LEADERBOARD = [RunConfig('mnist', norm, 64, lrs[i], seed, model=model, samples=50_000, schedule='onecycle', n_evals=2, n_valid=1000)
               for i in range(3) for seed in range(3) for model,norm,lrs in ENTRIES]

if __name__ == '__main__':
    main(sources=small_batch_sweep(SOURCES, OUT/'small_batch_sources.jsonl', stack=9),
         leaderboard=small_batch_sweep(LEADERBOARD, OUT/'small_batch_leaderboard.jsonl', stack=1))
