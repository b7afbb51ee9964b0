"Names that readers and their scripts import can still be imported from where they were."
import importlib
import re

import pytest

import lint as L

NORMS = 'LayerNorm RMSNorm BatchNorm InstanceNorm GroupNorm RunningBatchNorm norm_factory'
NAMES = {
    'core': 'def_device set_seed to_device to_cpu clean_mem read_results',
    'plot': 'plot_func show_image show_images get_grid use_style plot_axes norm_style NORM_COLORS INK PAPER '
            'stat_elements stat_extent stat_warning moved_by plot_block draw_set',
    'datasets': 'DataLoaders EpochSampler MemoryLoader StreamLoader get_dataset inplace DatasetError CLASSES '
                'from_sample pixels pixel_stats collate_dict image_to_tensor',
    'models': 'conv get_model GeneralRelu ResBlock LeNet',
    'checks': 'check_layer check_compile sample_input check_outputs check_buffers check_state_dict check_modes '
              'check_gradients check_gradcheck check_dtypes check_errors Recipe normalize_as recipes explain '
              'random_affine share_params',
    'learner': 'Learner MomentumLearner Callback MetricsCB DeviceCB TrainCB ProgressCB BatchTransformCB NaNGuardCB '
               'SingleBatchCB random_flip random_shift CancelFitException CancelEpochException CancelBatchException',
    'training': 'RecorderCB BatchSchedCB EpochSchedCB LRFinderCB ParamScheduler CheckpointCB lr_find read_checkpoint '
                'combine_scheds sched_lin sched_cos',
    'activations': 'Hook Hooks ActivationStats',
    'init': 'init_weights gain gauss_mean WEIGHTED fans set_weight scale_branches as_func',
    'weights': 'fans set_weight scale_branches as_func',
    'lsuv': 'lsuv_init',
    'diagnose': 'signal_report layers_in_order TextTable',
    'norms': NORMS,
    'norms.convert': 'convert_norms freeze_norms recalibrate fold_norms norm_report norm_layers FrozenBatchNorm',
    'norms.gap': 'accuracy_by_mode',
    'norms.modes': 'BatchNormGradMode lazy_lenet',
    'sweep': 'Sweep main same_cell read_rows',
    'small_batch': 'RunConfig run train_configs small_batch_grid course_sweep',
    'statistics': 'group_rows tuned paired cell_stats',
    'report': 'course_report',
    'bench': 'course_bench NORM_PAIRS NORM_PASSES alternate speed_ratio norm_pair fwd_bwd compiled count_fused '
             'count_passes bench_passes bench_norm bench_ceiling bench_epochs bench_stack',
    'train': 'course_train',
    'distributed': 'SyncBatchNorm DistributedCB AccelerateCB ShardSampler convert_sync as_sync run_processes torchrun',
    'grading': 'grade course_progress',
    'exercises': 'grade course_progress',
}
PATCHED = {'learner.Learner': 'lr_find', 'datasets.DataLoaders': 'from_dd in_memory',
           'activations.ActivationStats': 'color_dim plot_stats dead_chart'}


@pytest.mark.parametrize('module', NAMES)
def test_names(module):
    mod = importlib.import_module(f'course_lib.{module}')
    assert [n for n in NAMES[module].split() if not hasattr(mod, n)]==[]


@pytest.mark.parametrize('where', PATCHED)
def test_methods(where):
    module, cls = where.split('.')
    importlib.import_module('course_lib.training')   # adds `lr_find`
    cls = getattr(importlib.import_module(f'course_lib.{module}'), cls)
    assert [n for n in PATCHED[where].split() if not hasattr(cls, n)]==[]


STARS = {'learner': 'Learner MomentumLearner Callback CancelFitException MetricsCB BatchTransformCB',
         'training': 'CheckpointCB read_checkpoint BatchSchedCB EpochSchedCB RecorderCB lr_find'}


@pytest.mark.parametrize('module', STARS)
def test_star(module):
    "What moved to a page of its own is still imported with everything else"
    names = {}
    exec(f'from course_lib.{module} import *', names)
    assert [n for n in STARS[module].split() if n not in names]==[]


def imports(text):
    for module, names in re.findall(r'^from (course_lib[\w.]*) import (.+)$', text, re.M):
        yield module, names.split(', ')


def test_readme():
    found = list(imports((L.ROOT/'README.md').read_text(encoding='utf-8')))
    assert len(found)>=4
    for module, names in found:
        mod = importlib.import_module(module)
        assert [n for n in names if not hasattr(mod, n)]==[], module


def test_commands():
    for command in L.settings()['console_scripts'].split():
        module, function = command.split('=')[1].split(':')
        assert callable(getattr(importlib.import_module(module), function))


def test_old_name_is_the_module():
    import course_lib.exercises
    import course_lib.grading
    assert course_lib.exercises is course_lib.grading
