"The picture of a shared link, that of the landing page, and the icon of the tab: `python tools/make_card.py`."
import sys
from pathlib import Path

import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).parent))
import lint as L
from derived import mix
from course_lib.plot import INK, NORM_COLORS, PAPER, plot_axes, use_style

def main():
    use_style()
    cfg = L.settings()
    fig = plt.figure(figsize=(12, 6.3), dpi=100, facecolor=PAPER)
    title,_,rest = cfg['title'].partition(', ')
    fig.text(.05, .86, title, fontsize=40, weight='bold', color=INK)
    fig.text(.05, .76, rest, fontsize=40, weight='bold', color=NORM_COLORS['batch'])
    fig.text(.05, .67, cfg['description'].split(' in which ')[1].capitalize() + '.', fontsize=22, color=INK)
    for i,norm in enumerate(('batch', 'layer', 'instance', 'group')):
        ax = fig.add_axes([.04+.235*i, .1, .22, .46])
        plot_axes(norm, 3, 4, 2, 2, num_groups=2, ax=ax)
    fig.savefig(L.ROOT/'nbs/images/card.png', metadata={'Title': cfg['title'], 'Description': cfg['description']})
    plt.close(fig)
    blocks = plt.figure(figsize=(12, 3.1), dpi=100, facecolor=PAPER)
    for i,norm in enumerate(('batch', 'layer', 'instance', 'group')):
        plot_axes(norm, 3, 4, 2, 2, num_groups=2, ax=blocks.add_axes([.02+.245*i, .02, .22, .86]))
    blocks.savefig(L.ROOT/'nbs/images/axes.png')
    plt.close(blocks)
    icon = plt.figure(figsize=(.64, .64), dpi=100)
    ax = icon.add_axes([0, 0, 1, 1])
    ax.axis('off')
    for i in range(9):   # one column, one norm's set of values, stands out
        color = NORM_COLORS['batch'] if i%3==1 else mix(NORM_COLORS['batch'], PAPER, .7)
        ax.add_patch(plt.Rectangle((i%3+.06, i//3+.06), .88, .88, color=color))
    ax.set(xlim=(0, 3), ylim=(0, 3))
    icon.savefig(L.ROOT/'nbs/images/favicon.png', transparent=True)

if __name__=='__main__':
    main()
