"""The command line: one table of flags, and what each means. Reads and writes no file.

A script states the flags that it reads; its arguments hold these and no others:

    def make_parser():
        return config.make_parser(__doc__, *config.IMAGES, 'norm_type')
    args = config.parse(make_parser())
"""
import argparse
from dataclasses import fields
from functools import partial
from typing import NamedTuple

from munch import Munch

from dataset.registry import DATASETS, canonical_name
from runtime import screen
from runtime.command_line import (
    COUNT,
    FILE,
    FOLDER,
    NAME,
    NATURAL,
    RATE,
    SEED,
    SIZE,
    boolean,
    boolean_or_file,
    choice,
    device_name,
    number,
    plain_parser,
    several,
    shown_as,
    text_of,
)
from wsol import ARCHITECTURES, HEADS, METHODS, prior_training
from wsol.attribution.contrast import CONTRASTS
from wsol.attribution.registry import SamplingSettings
from wsol.backbones.resnet import LAYERS
from wsol.heads import PRIORS
from wsol.maps import NORM_TYPES
from wsol.metrics import FILLS, THRESHOLD_TYPES
from wsol.networks import architecture_names, find_architecture

OVERLAYS = {'blend': "the map's colours over the photo in grey", 'mask': 'the photo, darker where the map is lower',
            'map': 'the map alone'}  # how pictures show a map
OBJECT_MASK = 'object_mask'  # the object's segmentation as a map: a control that no model computes
HEAD_ALIASES = {'CALM-EM': 'CALM_EM', 'CALM-ML': 'CALM_ML'}


# --- values that need the data sets or the library ----------------------------------------------------


@shown_as('NAME')
def _architecture(text):
    if text in ARCHITECTURES or text.startswith('timm/'):  # known without the import of torchvision
        find_architecture(text)
        return text
    return choice(architecture_names())(text)


@shown_as('entropy:NUMBER')
def _prior_training(text):
    prior_training.parse(text)
    return text


DATASET = shown_as('NAME|FOLDER')(canonical_name)


# --- the table ------------------------------------------------------------------------------------------


class Flag(NamedTuple):
    """A flag, and all that the project knows of it."""
    name: str
    default: object
    parse: object           # text -> value
    help: str
    main: bool = False      # --help shows it first
    kept: bool = False      # a training that continues must keep its value
    recorded: bool = False  # a result records its value
    network: bool = False   # an argument of build_model, which a checkpoint carries
    shared: bool = True     # scripts that do not read it accept and ignore it, as the published commands need


_kept, _recorded = partial(Flag, kept=True), partial(Flag, recorded=True)
_network = partial(Flag, kept=True, recorded=True, network=True)

FLAGS = {
    'experiment': (
        _recorded('experiment_name', 'result', NAME, "the experiment's folder, below save_root", main=True),
        Flag('save_root', 'save', FOLDER, 'the folder of all experiments'),
        _recorded('seed', None, SEED, 'seed of everything random (default: 0; main.py: one that is drawn and recorded)',
                  main=True, kept=True),
        Flag('workers', 4, NATURAL, 'loader processes; no more than there are CPU cores available'),
        _recorded('device', 'auto', device_name, 'auto: CUDA, else MPS, else the CPU; cuda:1 is the second GPU',
                  main=True),
        _recorded('precision', 'auto', choice(('auto', 'float32', 'tf32', 'bfloat16')), 'precision of the backbone. '
                  'auto: bfloat16 for a training where the hardware is faster in it (on a GPU not for small steps), '
                  'float32 for evaluations. tf32: faster convolutions on NVIDIA GPUs, whose inputs are rounded. Heads, '
                  'losses and maps are always float32', kept=True),
        _recorded('batch_size', 64, COUNT, 'images in a step, summed over all processes', main=True, kept=True),
    ),
    'data': (
        _recorded('dataset', 'CUB', DATASET, f'{", ".join(DATASETS)} (ImageNet is ILSVRC), or your folder with '
                  'train/, val/ and test/<class>/ images', main=True, kept=True),
        _recorded('data_root', 'dataset/', FOLDER, 'the folder of the images'),
        _recorded('metadata_root', 'metadata/', FOLDER, 'the folder of the lists, labels and boxes'),
        _recorded('mask_root', 'dataset/', FOLDER, 'the folder that holds OpenImages/ with its masks; if it is not '
                  'stated, --data_root counts'),
        _recorded('skip_broken', False, boolean, 'leave out images that cannot be read, and print how many', kept=True),
        Flag('cache', False, boolean, 'keep the resized images of each split, and the features of --freeze, in files '
             'below save_root/cache/, so that no image is decoded again; prints their size first'),
        _recorded('crop_size', 224, SIZE, 'side of the square images that the network takes, in pixels: training '
                  'images are cropped to it, evaluation images are fitted to it', kept=True),
        _recorded('fit', None, choice(('crop', 'squash', 'pad')), 'how photos become squares. crop: the shorter side '
                  'becomes resize_size, and the centre is taken; squash: the whole photo is resized to the square, as '
                  "published; pad: the longer side fits, the rest has the mean colour (default: as in the "
                  "classifier's evaluation; squash for networks that main.py trained)"),
    ),
    'network': (
        _network('architecture', 'resnet50', _architecture, 'resnet50, vgg16, inception_v3, another classifier of '
                 'torchvision, or timm/NAME: see docs/own.md', main=True),
        _network('attribution_method', 'CAM', choice(tuple(HEADS), HEAD_ALIASES), 'the head of the network '
                 '(--score_map_process is the attribution method)', main=True),
        _network('prior', 'relu', choice(tuple(PRIORS)), "CALM's prior p(z|x). relu: as in the released code; "
                 'softplus: with the gradient of its sum'),
        _network('large_feature_map', False, boolean, '28x28 maps instead of 14x14, of 224x224 images'),
        _network('use_bn', False, boolean, "BatchNorm in VGG's and Inception's added layers"),
        _network('last_stage', 'layer4', choice(LAYERS), 'ResNet: stop after this stage'),
        Flag('load_checkpoint', None, NAME, 'a folder, a file, an experiment, or a published weight such as '
             "CALM_EM-CUB (default: the experiment's own checkpoint; main.py: none)", main=True),
        Flag('pretrained', True, boolean_or_file, 'start from ImageNet weights of the backbone; False: from random '
             'weights; FILE: from its state dict, all but the classifier'),
        Flag('weights_key', None, NAME, 'which state dict of a file from elsewhere is taken, such as state_dict_ema'),
    ),
    'training': (
        Flag('epochs', 40, COUNT, 'passes over the training set', main=True),
        _kept('lr', 0.01, RATE, 'learning rate of the backbone (of a ResNet without most of layer4)', main=True),
        _kept('lr_classifier_ratio', 10.0, RATE, 'the learning rate of the other layers is this many times higher'),
        _kept('lr_schedule', 'step', choice(('step', 'one_cycle')), 'step: as published; one_cycle: up, then down to '
              '0'),
        _kept('lr_decay_frequency', 30, COUNT, 'step schedule: multiply the rate by 0.1 every so many epochs'),
        _kept('momentum', 0.9, number(float, 0, True, 1), 'momentum (Nesterov)'),
        _kept('weight_decay', 1e-4, RATE, 'L2 penalty on the weights'),
        _recorded('resize_size', 256, SIZE, 'training images are resized to this square, then cropped to crop_size; '
                  'with fit=crop, the shorter side of a photo', kept=True),
        _kept('proxy_training_set', False, boolean, 'train on the smaller set that image_ids_proxy.txt lists, if '
              'the data set has one'),
        _recorded('freeze', False, boolean, 'train only the head, on features that are computed once: no '
                  'augmentation except mirroring', kept=True),
        _kept('prior_training', None, _prior_training, 'add this many times the entropy of p(z|x) to the loss of CALM: '
              'above 0 it sharpens the prior, below 0 it spreads it'),
        Flag('accumulate', 1, COUNT, 'split each step into this many parts, for a device with little memory: the '
             'update is the same, except for BatchNorm'),
        Flag('checkpoint_minutes', 10.0, RATE, 'also save within an epoch, when the last save is this many minutes '
             'old'),
        Flag('is_train', True, boolean, 'False: only test the accuracy of a checkpoint'),
        Flag('override_cache', False, boolean, "ignore the experiment's checkpoints and train from the start"),
        Flag('use_load_checkpoint', False, boolean, 'start from load_checkpoint, as the published commands say; '
             'load_checkpoint alone does the same'),
        _kept('is_different_checkpoint', False, boolean, 'fine-tune from weights of another label set: load all but '
              'conv_last; the whole backbone learns at lr'),
    ),
    'maps and metrics': (
        _recorded('score_map_process', None, choice(lambda: (*METHODS, OBJECT_MASK)), 'the attribution method '
                  '(--attribution_method is the head): see docs/attribution.md (default: vanilla for CAM, jointll for '
                  'CALM); object_mask: a control of evaluations', main=True),
        Flag('score_map_method', 'activation_map', choice(('activation_map', 'backprop')),
             'backprop with score_map_process=vanilla: the vanilla gradient; other gradient methods do not need it'),
        _recorded('scores', 'softmax', choice(('softmax', 'sigmoid')), 'what makes the probabilities of a classifier '
                  'trained elsewhere: softmax over its classes, or sigmoid for several labels', shared=False),
        _recorded('superclass_file', None, FILE, 'YAML, "label: [labels]", for the superclass methods (default: those '
                  'of the data set)'),
        _recorded('smooth_grad_nr_iter', 50, COUNT, 'noisy copies of the SmoothGrad family'),
        _recorded('smooth_grad_sigma', 4.0, number(float, 0, False), 'SmoothGrad: the standard deviation of the '
                  "noise is the image's range divided by this"),
        _recorded('integrated_grad_nr_iter', 50, COUNT, 'points on the path of the integrated gradients'),
        _recorded('finer_cam_alpha', 0.6, RATE, "Finer-CAM: how much of the similar classes' scores is subtracted"),
        _recorded('finer_cam_references', 3, COUNT, 'Finer-CAM: the number of similar classes'),
        _recorded('rise_nr_masks', 4000, COUNT, 'masked images of RISE'),
        _recorded('contrast_method', None, choice(lambda: ('difference', *CONTRASTS)), 'how to contrast class A '
                  'with class B. difference subtracts their maps, as published; the others explain both at once: see '
                  'docs/attribution.md (default: difference; inference.py: that of the head; interventions: all)',
                  main=True, shared=False),
        _recorded('slow_questions', 60, COUNT, 'how many questions a slow method answers (one that takes about 50 '
                  'forwards or more per map); the seed decides which. Fast methods answer all questions', shared=False),
        _recorded('drop_lowest', 0.0, number(float, 0, True, 100), 'percentage of the lowest pixels of each map that '
                  'get the score 0, so that they are left out with log thresholds', shared=False),
        _recorded('norm_type', None, choice(tuple(NORM_TYPES)), 'clipping: values as they are, cut to 0..1; minmax: '
                  'the lowest value becomes 0, the highest 1; max: negative values become 0, the highest 1; rank: the '
                  'share of pixels that are lower (default: clipping for probabilities, otherwise minmax; '
                  'eval_wsol.py: always minmax)', main=True),
        _recorded('threshold_type', None, choice(tuple(THRESHOLD_TYPES)), 'even: 0, .001, ...; log: 1e-7 ... 1 '
                  '(default: log for probabilities, even for all other maps)', main=True),
        _recorded('iou_thresholds', (30, 50, 70), several(number(int, 1, True, 101)), 'overlaps (IoU) in percent that '
                  'count as found', main=True),
        _recorded('fill', 'zeros', choice(FILLS), 'what takes the place of erased pixels. zeros: as published; road: '
                  'the weighted means of their neighbours and a little noise (Rong et al. 2022), which takes longer',
                  shared=False),
        _recorded('scoremap_root', None, FOLDER, 'score maps made elsewhere: FOLDER/<split>/<image_id>.npy; for cue '
                  'localization FOLDER/<split>/<label>/<image_id>.npy', main=True),
        _recorded('control', None, choice(('random_weights', 'blurred')), 'random_weights: measure the maps of a '
                  'network with the same architecture and random weights, which depend on the seed. The trained '
                  'network still classifies the images. blurred: measure the maps after a Gaussian blur whose '
                  'deviation is an eighth of the side', shared=False),
        _recorded('cam_curve_interval', 0.001, number(float, 1e-6, True, 1), 'distance between two even thresholds; '
                  'there are as many log thresholds'),
    ),
    'pictures': (
        Flag('class_names', None, FILE, 'the names of the classes: a line each, numbered lines, a table, JSON or YAML '
             "(default: the checkpoint's, those of your folder that --dataset names, or ImageNet's)", shared=False),
        Flag('output', None, text_of('PATH'), 'inference.py: folder of the results (default: maps); export.py: the '
             'file, .onnx or .pt2 (default: named by the checkpoint)', main=True, shared=False),
        Flag('format', ('png',), choice(('png', 'html')), 'png: a picture for each photo; html: one page for all, '
             'gallery.html', main=True, shared=False),
        _recorded('target', None, NAME, 'class A, whose map is shown: name or number (default: the predicted class)',
                  main=True, shared=False),
        _recorded('contrast', None, NAME, 'add "why A and not this class B": name or number; without a value the '
                  'runner-up', main=True, shared=False),
        Flag('overlay', 'blend', choice(tuple(OVERLAYS)), '; '.join(': '.join(pair) for pair in OVERLAYS.items()),
             shared=False),
        Flag('picture_size', 1024, number(int, 64), 'the longer side of a photo in the picture, in pixels; larger '
             'photos are scaled down; on the page at most 480', shared=False),
        Flag('check', False, boolean, 'also show how p(A) falls when the pixels that the map ranks highest are erased, '
             'beside random pixels and coarse noise', main=True, shared=False),
        Flag('top_k', 5, COUNT, 'html: show maps of this many of the likeliest classes', shared=False),
    ),
    'without effect': tuple(Flag(name, None, NAME, 'changes nothing, as in the published code')
                            for name in ('logger_type', 'smoothing_ksize')),
}
ALL_FLAGS = {flag.name: flag for flags in FLAGS.values() for flag in flags}
NETWORK = tuple(flag.name for flag in FLAGS['network'] if flag.network)
TRAINING = tuple(flag.name for flag in FLAGS['training'])
PICTURES = tuple(flag.name for flag in FLAGS['pictures'])

# --- which flags a script reads -------------------------------------------------------------------------

EVERYWHERE = ('experiment_name', 'save_root', 'device', 'dataset', 'data_root', 'metadata_root', 'crop_size', 'fit',
              'resize_size', *NETWORK, 'load_checkpoint', 'weights_key')
IMAGES = ('seed', 'workers', 'precision', 'batch_size', 'skip_broken')  # for scripts that send images through a network
SAMPLING = tuple(field.name for field in fields(SamplingSettings))
MAPS = (*IMAGES, 'scores', 'score_map_process', 'score_map_method', 'superclass_file', *SAMPLING)
EVALUATION = (*MAPS, 'cache', 'scoremap_root', 'control')


def make_parser(description, *names, listed=()):
    """The parser of a script. names: the flags that it reads beside EVERYWHERE. listed: those of them that take several
    values, separated by commas. Its help shows the main flags first, and then names the flags that it only accepts."""
    parser, reads = plain_parser(description), {*EVERYWHERE, *names}
    parser.usage, parser.reads, parser.listed = '%(prog)s [--flag=value ...]', reads, listed
    parser.defaults = {name: ALL_FLAGS[name].default for name in ALL_FLAGS if name in reads}
    groups, accepted = {title: parser.add_argument_group(title) for title in ('main flags', *FLAGS)}, []
    for title, flags in FLAGS.items():
        for flag in flags:
            if flag.name in reads:
                _add(groups['main flags' if flag.main else title], flag, flag.name in listed)
            elif flag.shared:
                _add(parser, flag, hidden=True)
                accepted.append(f'--{flag.name}')
    parser.epilog = ('Accepted and ignored here, so that one command line serves all scripts:\n' + '\n'.join(
        '  ' + ', '.join(accepted[start:start + 4]) for start in range(0, len(accepted), 4)))
    return parser


def _add(group, flag, listed=False, hidden=False):
    """Add a flag to a group. listed: it takes several values. hidden: --help does not show it."""
    parse = several(flag.parse) if listed else flag.parse
    names = ['--' + flag.name] + ['--dataset_name'] * (flag.name == 'dataset')
    default = ','.join(map(str, flag.default)) if isinstance(flag.default, tuple) else flag.default
    default = '' if default is None else f' (default: {default})'
    text = f'{flag.help}{"; several, separated by commas" * listed}{default}'.replace('%', '%%')
    options = {'type': parse, 'metavar': parse.metavar, 'help': argparse.SUPPRESS if hidden else text}
    if parse in (boolean, boolean_or_file):
        options |= {'nargs': '?', 'const': True}  # --use_bn alone is True
    elif flag.name == 'iou_thresholds':
        options |= {'nargs': '+'}  # 30 50 70 as well as 30,50,70
    elif flag.name == 'contrast':
        options |= {'nargs': '?', 'const': 'runner-up'}
    group.add_argument(*names, dest=flag.name, default=argparse.SUPPRESS, **options)


def sampling_settings(args):
    """The SamplingSettings that the flags state."""
    return SamplingSettings(**{name: args[name] for name in SAMPLING})


def parse(parser, argv=None):
    """The flags that the parser's script reads, as a Munch; `args.given` names all that the command line states."""
    given = vars(parser.parse_args(argv))
    if 'iou_thresholds' in given:
        given['iou_thresholds'] = sum(given['iou_thresholds'], ())
    if given.get('use_load_checkpoint') is False and 'use_load_checkpoint' not in parser.reads:
        screen.say('--use_load_checkpoint=False changes main.py alone: an evaluation always opens a checkpoint')
    known = {name: value for name, value in given.items() if name in parser.reads or name not in ALL_FLAGS}
    return Munch(parser.defaults | known, given=sorted(given))
