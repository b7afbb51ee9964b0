"The grader of each exercise on initialization passes what is right and names each planted mistake."
import math

from graders import planted, wrong_answers

INIT = '''
def Sub(m, f):
    z = torch.randn(1_000_000)
    fan = m.weight[0].numel()
    std = f(z).square().mean()**-.5/fan**.5
    nn.init.normal_(m.weight, 0, std.item())
    nn.init.zeros_(m.bias)
'''

RIGHT = dict(init_any=INIT)

PLANTED = [  # exercise, what stands in the right one, what replaces it, what the report must say
    ('init_any', 'fan = m.weight[0].numel()', 'fan = m.weight[:,0].numel()', 'fan out in place of fan in'),
    ('init_any', 'fan = m.weight[0].numel()', 'fan = m.weight.shape[1]', 'counts its taps'),
    ('init_any', 'f(z).square().mean()**-.5', 'f(z).std()**-1', 'keeps the variance after the activation'),
    ('init_any', 'f(z).square().mean()**-.5', 'torch.tensor(2**.5)', 'f is another function'),
    ('init_any', 'f(z).square().mean()**-.5', 'torch.tensor(1.)', 'f is not used'),
    ('init_any', 'f(z).square().mean()**-.5/fan**.5', 'f(z).square().mean()**-1/fan',
     'a variance in place of a standard deviation'),
    ('init_any', 'nn.init.zeros_(m.bias)', 'pass', 'bias is left'),
    ('init_any', 'nn.init.normal_(m.weight, 0, std.item())', 'm.weight = nn.Parameter(torch.randn_like(m.weight)*std)',
     'replaces the Parameter'),
]

WRONG = [  # exercise, answer, what the report must say
    ('gain_relu', 1.716, 'keeps the variance'),
    ('gain_relu', 2, 'variance of the weights'),
    ('gain_relu', 'a tenth', 'a number is wanted'),
    ('gain_gelu', dict(tiny=.5, one=1.5335, huge=2**.5), 'slope of GELU at 0'),
    ('gain_gelu', dict(tiny=2, one=1.7, huge=2**.5), 'one over the standard deviation'),
    ('gain_gelu', dict(tiny=2, one=1.5335, huge=1), 'still lost'),
    ('offset_input', .025, 'uses the variance of the inputs'),
    ('offset_input', .3, 'too large'),
    ('gain_dropout', 2**.5, 'dropout keeps the mean'),
    ('fan_counts', dict(fan_in=288, fan_out=36), 'a quarter of the input channels'),
    ('fan_counts', dict(fan_in=72, fan_out=144), 'a quarter of the windows'),
    ('tanh_back', 1.5925, 'keeps the signal'),
    ('tanh_back', 1.651, 'mean slope'),
    ('first_loss', dict(thousand=3, sure=27), 'logarithm to base 10'),
    ('first_loss', dict(thousand=math.log(1000), sure=30), 'one image in ten'),
    ('first_loss', dict(thousand=math.log(1000), sure=0), 'pay 30 each'),
    ('first_loss', dict(thousand=math.log(1000)), "'sure' is missing"),
    ('rescue_scale', .051, 'it vanishes'),
    ('rescue_scale', 1., 'it explodes'),
    ('rescue_scale', .25, 'it explodes'),
    ('rescue_scale', 128**-.5, 'no ReLU set half'),
    ('rescue_scale', .108, 'a little larger'),
    ('rescue_scale', .148, 'a little smaller'),
    ('rescue_scale', 1/128, 'mostly cancel'),
    ('rescue_scale', 0., 'above 0'),
    ('rescue_scale', 'large', 'a number is wanted'),
    ('products', dict(offset=.1, uniform=.03**.5, grown=1.05**50), 'mean included'),
    ('products', dict(offset=1000**-.5, uniform=.1, grown=1.05**50), 'their variance is'),
    ('products', dict(offset=1000**-.5, uniform=.03**.5, grown=3.5), 'multiply, they do not add'),
]

test_right, test_planted = planted(RIGHT, PLANTED)

test_wrong = wrong_answers(WRONG)
