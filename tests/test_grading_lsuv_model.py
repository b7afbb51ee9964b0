"The grader of each exercise on LSUV for any model passes what is right and names each planted mistake."
from graders import planted

LSUV = '''
@torch.no_grad()
def Sub(model, xb, tol=.01, max_iter=10):
    order,out = [],{}
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear,nn.Conv2d))]
    hooks = [m.register_forward_hook(lambda m, i, o: order.append(m)) for m in layers]
    model(xb)
    for h in hooks: h.remove()
    for m in order:
        hook = m.register_forward_hook(lambda m, i, o: out.update(o=o))
        for _ in range(max_iter):
            model(xb)
            o = out['o']
            std,mean = o.std(),o.mean()
            if std<1e-6 or abs(std-1)<tol and (m.bias is None or abs(mean)<tol): break
            m.weight /= std
            if m.bias is not None: m.bias.copy_((m.bias-mean)/std)
        hook.remove()
'''

RIGHT = dict(lsuv=LSUV)

PLANTED = [  # exercise, what stands in the right one, what replaces it, what the report must say
    ('lsuv', 'for _ in range(max_iter):', 'for _ in range(100):', 'no iteration cap: '),
    ('lsuv', 'for _ in range(max_iter):', 'while True:', 'without an iteration cap?'),
    ('lsuv', 'for m in order:', 'for m in order[::-1]:', 'wrong order'),
    ('lsuv', 'for m in order:', 'for m in [m for m in model.modules() if isinstance(m, nn.Linear)]:', 'wrong order'),
    ('lsuv', 'm.weight /= std\n', 'm.weight /= std**2\n', 'in place of its root'),
    ('lsuv', 'if m.bias is not None: m.bias.copy_((m.bias-mean)/std)', 'm.bias.copy_((m.bias-mean)/std)',
     'raises AttributeError'),
    ('lsuv', 'std<1e-6 or ', '', 'dead layer has std 0'),
    ('lsuv', '        hook.remove()', '        pass', 'hook is left behind'),
    ('lsuv', 'if m.bias is not None: m.bias.copy_((m.bias-mean)/std)', 'pass', 'the mean of'),
]

test_right, test_planted = planted(RIGHT, PLANTED)
