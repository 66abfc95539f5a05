"""The command line: every flag, its default, its meaning. Touches no disk."""
import argparse
import difflib
import math

from munch import Munch

from data_loaders import ALIASES, DATASETS
from util import UserError
from wsol import ARCHITECTURE_NAMES, ARCHITECTURES, METHODS
from wsol.attribution import ACTIVATION_METHODS, PROCESSES
from wsol.metrics import NORM_TYPES, THRESHOLD_TYPES


def boolean(text):
    """True/False/yes/no/1/0."""
    values = {'true': True, 'yes': True, '1': True, 'false': False, 'no': False, '0': False}
    try:
        return values[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f'"{text}" is neither True nor False') from None


def number(kind, low, low_included=True, high=math.inf):
    """A parser of numbers in a range."""
    bracket = '[' if low_included else '('

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (low < value < high or (low_included and value == low)):
            raise argparse.ArgumentTypeError(f'"{text}" is not {"an integer" if kind is int else "a number"} in '
                                             f'{bracket}{low}, {high})')
        return value
    return parse


def choice(options, aliases=None):
    """A parser of names; an unknown one is answered with the nearest."""
    def parse(text):
        name = (aliases or {}).get(text, text)
        if name not in options:
            near = difflib.get_close_matches(text, list(options) + list(aliases or {}), 1)
            listed = ', '.join(options[:30]) + (', ...' if len(options) > 30 else '')
            raise argparse.ArgumentTypeError(f'"{text}" is not one of {listed}'
                                             + (f'; did you mean {near[0]}?' if near else ''))
        return name
    return parse


OBJECT_MASK = 'object_mask'  # the object's segmentation as a map: a control that no model computes


def percentages(text):
    """30,50,70 -> (30, 50, 70)."""
    values = text.replace(',', ' ').split()
    if not values or not all(value.isdecimal() and 0 < int(value) <= 100 for value in values):
        raise argparse.ArgumentTypeError(f'"{text}" is not a list of percentages such as 30,50,70')
    return tuple(map(int, values))


def dataset_name(text):
    """A data set's name, or a folder (written with a slash: ./birds)."""
    if '/' in text or '\\' in text:
        return text
    try:
        return choice(tuple(DATASETS), ALIASES)(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f'{error} (a folder of your own is written with a slash: ./{text})') from None


PROCESS_NAMES = (*ACTIVATION_METHODS, *(name for name in PROCESSES if name not in ACTIVATION_METHODS))
COUNT, SIZE = number(int, 1), number(int, 1)
RATE, NATURAL, SEED = number(float, 0), number(int, 0), number(int, 0, True, 2**32)
METHOD_ALIASES = {'CALM-EM': 'CALM_EM', 'CALM-ML': 'CALM_ML'}

# flag, default, parser, help. A list of names after the parser makes the flag's aliases.
FLAGS = {
    'experiment': (
        ('experiment_name', 'result', str, 'one folder per experiment, below save_root'),
        ('save_root', 'save', str, 'where the experiments are'),
        ('seed', None, SEED, 'seeds python, numpy, torch, loaders and masks; drawn and recorded where not given'),
        ('override_cache', False, boolean, "main.py: start the experiment's training afresh"),
        ('is_train', True, boolean, 'main.py: False evaluates the checkpoint only'),
        ('workers', 4, NATURAL, 'loader processes, at most one per core'),
        ('device', 'auto', choice(('auto', 'cuda', 'mps', 'cpu')), 'auto takes CUDA, else MPS, else the CPU'),
        ('precision', 'float32', choice(('float32', 'bfloat16')), "the backbone's; heads and losses are float32"),
    ),
    'data': (
        ('dataset', 'CUB', dataset_name,
         f'{", ".join(DATASETS)} (ImageNet = ILSVRC), or your own folder of train/, val/ and test/<class>/ images'),
        ('data_root', 'dataset/', str, 'where the images are'),
        ('metadata_root', 'metadata/', str, 'where the lists, labels and boxes are'),
        ('mask_root', 'dataset/', str, "where OpenImages' masks are, below OpenImages/"),
        ('skip_broken', False, boolean, 'leave images out that do not open, and say how many'),
        ('proxy_training_set', False, boolean, 'train on image_ids_proxy.txt'),
        ('resize_size', 256, SIZE, 'training images are resized to this square'),
        ('crop_size', 224, SIZE, 'then cropped to this; evaluation images are resized to it'),
    ),
    'network': (
        ('architecture', 'resnet50', choice(ARCHITECTURE_NAMES),
         f'{", ".join(ARCHITECTURES)}; or any torchvision classifier: convnext_tiny, mobilenet_v3_large, swin_t, ...'),
        ('attribution_method', 'CAM', choice(tuple(METHODS), METHOD_ALIASES), ', '.join(METHODS)),
        ('prior', 'relu', choice(('relu', 'softplus')), 'relu: as released; softplus: with the gradient of its sum'),
        ('large_feature_map', False, boolean, '28x28 instead of 14x14 maps (of 224x224 images)'),
        ('use_bn', False, boolean, "BatchNorm in VGG's and Inception's added layers"),
        ('last_stage', 'layer4', choice(('layer1', 'layer2', 'layer3', 'layer4')),
         'ResNet: stop here, for a smaller receptive field'),
        ('pretrained', True, boolean, "start from ImageNet weights of the backbone"),
        ('use_load_checkpoint', False, boolean, 'main.py: start from load_checkpoint'),
        ('load_checkpoint', None, str, "a folder, a file, an experiment, or a published weight such as CALM_EM-CUB; "
         "evaluations default to the experiment's own"),
        ('is_different_checkpoint', False, boolean, 'fine-tune from weights of another label set: all but conv_last'),
    ),
    'training': (
        ('epochs', 40, COUNT, 'passes over the training set'),
        ('batch_size', 64, COUNT, 'images a step'),
        ('lr', 0.01, RATE, 'learning rate of the backbone'),
        ('lr_classifier_ratio', 10.0, RATE, 'the other layers learn this much faster'),
        ('lr_schedule', 'step', choice(('step', 'one_cycle')), 'step: as published; one_cycle: up, then down to 0'),
        ('lr_decay_frequency', 30, COUNT, 'step: times 0.1 at the start of every epoch this divides'),
        ('momentum', 0.9, number(float, 0, True, 1), "Nesterov's"),
        ('weight_decay', 1e-4, RATE, 'L2'),
    ),
    'maps and metrics': (
        ('score_map_process', 'vanilla', choice((*PROCESS_NAMES, OBJECT_MASK)),
         f'the attribution method: {", ".join(PROCESS_NAMES)}; {OBJECT_MASK}: the segmentation itself, a control'),
        ('score_map_method', 'activation_map', choice(('activation_map', 'backprop')),
         'backprop: with process vanilla, the vanilla gradient; implied by the gradient processes'),
        ('superclass_file', None, str,
         'YAML, "label: [labels]", for superclass processes (default: the data set\'s own)'),
        ('smooth_grad_nr_iter', 50, COUNT, 'noisy copies of the SmoothGrad family'),
        ('smooth_grad_sigma', 4.0, number(float, 0, False), "the noise's deviation is the image's range over this"),
        ('integrated_grad_nr_iter', 50, COUNT, 'points on the path of the integrated gradients'),
        ('norm_type', 'minmax', choice(tuple(NORM_TYPES)), 'max, minmax, or clipping: as it is, cut to 0..1'),
        ('threshold_type', 'even', choice(tuple(THRESHOLD_TYPES)), 'even: 0, .001, ...; log: 1e-7 ... 1'),
        ('iou_thresholds', (30, 50, 70), percentages, 'overlaps in % that count as found, for WSOL boxes: 30,50,70'),
        ('scoremap_root', None, str, 'score maps made elsewhere: <root>/<split>/<image_id>.npy'),
        ('cam_curve_interval', 0.001, number(float, 1e-6, True, 1), 'threshold step'),
    ),
}


class Joined(argparse.Action):
    """Words that make one list of percentages."""

    def __call__(self, parser, namespace, values, option_string=None):
        try:
            setattr(namespace, self.dest, percentages(' '.join(values)))
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentError(self, str(error)) from None


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line."""

    def error(self, message):
        unknown = message.removeprefix('unrecognized arguments: ')
        if unknown != message:
            flag = unknown.split()[0].split('=')[0]
            if not flag.startswith('-'):
                raise UserError(f'"{flag}" belongs to no flag; images go before the flags, a value after its own')
            near = difflib.get_close_matches(flag, self._option_string_actions, 1)
            message = f'unknown flag {flag}' + (f'; did you mean {near[0]}?' if near else '') + ' (--help lists all)'
        raise UserError(message)


def make_parser(description):
    parser = Parser(description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    for title, flags in FLAGS.items():
        group = parser.add_argument_group(title)
        for name, default, kind, text in flags:
            names = ['--' + name] + (['--dataset_name'] if name == 'dataset' else [])
            options = {'type': kind}
            if kind is boolean:
                options |= {'nargs': '?', 'const': True}  # --use_bn alone is True
            elif kind is percentages:
                options = {'nargs': '+', 'action': Joined}  # 30 50 70 as well as 30,50,70
            group.add_argument(*names, dest=name, default=default, metavar='', **options,
                               help=f'{text} (default: {default})'.replace('%', '%%'))
    return parser


def parse(description, argv=None, parser=None):
    """The flags as a Munch; `args.given` holds the names that the command line states."""
    parser = parser or make_parser(description)
    defaults = {action.dest: action.default for action in parser._actions if action.dest != 'help'}
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    given = vars(parser.parse_args(argv))
    args = Munch(defaults | given, given=sorted(given))
    if args.crop_size > args.resize_size:
        raise UserError(f'--crop_size={args.crop_size} is larger than --resize_size={args.resize_size}')
    return args
