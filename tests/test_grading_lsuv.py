"The grader of each exercise on the way to LSUV passes what is right and names each planted mistake."
from graders import planted, wrong_answers

LAYER_STEP = '''
@torch.no_grad()
def Sub(layer, x):
    y = layer(x)
    std, mean = torch.std_mean(y, [d for d in range(y.ndim) if d!=1])
    layer.weight /= std.view(-1, *[1]*(layer.weight.ndim-1))
    if layer.bias is not None:
        layer.bias.copy_((layer.bias-mean)/std)
'''

ROW = '''
@torch.no_grad()
def Sub(net, x):
    for layer in net:
        if isinstance(layer, nn.Sequential):
            x = Sub(layer, x)
            continue
        y = layer(x)
        if isinstance(layer, nn.Linear):
            std, mean = torch.std_mean(y)
            layer.weight /= std
            if layer.bias is not None:
                layer.bias.copy_((layer.bias-mean)/std)
        x = layer(x)
    return x
'''

NEAREST = '''
def Sub(x, y, new):
    means = torch.stack([x[y==c].mean(0) for c in range(10)])
    return torch.cdist(new, means).argmin(1)
'''

RIGHT = dict(lsuv_layer=LAYER_STEP, lsuv_row=ROW, nearest_mean=NEAREST)

PLANTED = [  # exercise, what stands in the right one, what replaces it, what the report must say
    ('lsuv_layer', 'std.view(-1, *[1]*(layer.weight.ndim-1))', 'std', 'does each scale meet'),
    ('lsuv_layer', 'y, [d for d in range(y.ndim) if d!=1]', 'y', 'one scale for the whole'),
    ('lsuv_layer', '[1]*(layer.weight.ndim-1))', '[1]*(layer.weight.ndim-1))**2', 'variance in place of its root'),
    ('lsuv_layer', '(layer.bias-mean)/std', '(layer.bias-mean.mean())/std', 'has mean'),
    ('lsuv_layer', '(layer.bias-mean)/std', 'layer.bias/std-mean', 'has mean'),
    ('lsuv_layer', 'if layer.bias is not None:', 'if True:', 'raises AttributeError'),
    ('lsuv_layer', '    y = layer(x)', '    y = layer(x); layer.weight = nn.Parameter(layer.weight.clone())',
     'a new Parameter'),
    ('lsuv_row', '            x = Sub(layer, x)\n            continue\n', '            pass\n', 'inner nn.Sequential'),
    ('lsuv_row', '        x = layer(x)\n', '        x = y\n', 'measured before the layers in front'),
    ('lsuv_row', 'torch.std_mean(y)', 'torch.std_mean(y.sigmoid())', 'in place of 1'),
    ('lsuv_row', 'if layer.bias is not None:', 'if False:', 'has mean'),
    ('lsuv_row', 'if layer.bias is not None:', 'if True:', 'raises AttributeError'),
    ('nearest_mean', 'argmin', 'argmax', 'the farthest'),
    ('nearest_mean', 'torch.cdist(new, means).argmin(1)', '(new@means.T).argmax(1)', 'long means win'),
    ('nearest_mean', 'torch.cdist(new, means).argmin(1)', 'y[torch.cdist(new, x).argmin(1)]', 'nearest image'),
    ('nearest_mean', 'argmin(1)', 'argmin()', 'a class number for each'),
]

WRONG = [  # exercise, answer, what the report must say
    ('one_step', dict(weight=.25, bias=1.), 'old mean 3 is still in it'),
    ('one_step', dict(weight=.25, bias=.5), 'old mean 3 is still in it'),
]

test_right, test_planted = planted(RIGHT, PLANTED)

test_wrong = wrong_answers(WRONG)
