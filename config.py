"""The command line: one table of flags, what each means, and who reads it. Touches no disk."""
import argparse
from typing import NamedTuple

from munch import Munch

from dataset.registry import DATASETS, canonical_name
from runtime.command_line import (
    COUNT,
    NATURAL,
    RATE,
    SEED,
    SIZE,
    Joined,
    boolean,
    boolean_or_file,
    choice,
    device_name,
    number,
    percentages,
    plain_parser,
    several,
)
from wsol import ARCHITECTURES, HEADS, METHODS, prior_training
from wsol.attribution.contrast import CONTRASTS
from wsol.backbones.resnet import LAYERS
from wsol.errors import UserError
from wsol.heads import PRIORS
from wsol.maps import NORM_TYPES
from wsol.metrics import THRESHOLD_TYPES
from wsol.networks import architecture_names, find_architecture, options_taken

OVERLAYS = {'blend': "the map's colours over the photo in grey", 'mask': 'the photo, darker where the map is lower',
            'outline': 'lines of equal value over the photo', 'map': 'the map alone'}  # how pictures show a map
OBJECT_MASK = 'object_mask'  # the object's segmentation as a map: a control that no model computes
METHOD_ALIASES = {'CALM-EM': 'CALM_EM', 'CALM-ML': 'CALM_ML'}

EVALUATIONS = ('eval_pixel_perturb', 'eval_cue_location', 'eval_wsol')
MAPS = (*EVALUATIONS, 'inference')
INTERVENTIONS = ('eval_interventions',)
RUNS = ('main', *MAPS, *INTERVENTIONS)  # what sends images through a network
SCRIPTS = (*RUNS, 'export')
CUE, WSOL, MAIN, INFERENCE, EXPORT = (('eval_cue_location',), ('eval_wsol',), ('main',), ('inference',), ('export',))


def architecture_name(text):
    """A network of torchvision, or timm/NAME."""
    if text in ARCHITECTURES:
        return text  # without the import of torchvision
    if text.startswith('timm/'):
        try:
            find_architecture(text)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return text
    return choice(architecture_names())(text)


def dataset_name(text):
    """A data set's name, or a folder (written with a slash: ./birds)."""
    try:
        return canonical_name(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def prior_term(text):
    """entropy:WEIGHT, of wsol.prior_training."""
    try:
        prior_training.parse(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


class Flag(NamedTuple):
    """A flag, and all that the house knows of it."""
    name: str
    default: object
    parse: object
    help: str
    readers: tuple[str, ...] = SCRIPTS  # the scripts that read it; the others take it, as published, without use for it
    kept: bool = False      # a training that goes on must keep it
    recorded: bool = False  # a result says what it was
    network: bool = False   # an argument of build_model, which a checkpoint carries
    shared: bool = True     # whether the scripts that do not read it take it
    several: tuple[str, ...] = ()  # the scripts in which it takes several values, separated by commas


def _network(name, default, parse, text):
    return Flag(name, default, parse, text, kept=True, recorded=True, network=True)


def _training(name, default, parse, text):
    return Flag(name, default, parse, text, MAIN, kept=True)


def _maps(name, default, parse, text, readers=MAPS, several=()):
    return Flag(name, default, parse, text, readers, recorded=True, several=several)


def _picture(name, default, parse, text, recorded=False, several=()):
    return Flag(name, default, parse, text, INFERENCE, recorded=recorded, shared=False, several=several)


FLAGS = {
    'experiment': (
        Flag('experiment_name', 'result', str, 'one folder per experiment, below save_root', recorded=True),
        Flag('save_root', 'save', str, 'where the experiments are'),
        Flag('seed', None, SEED, 'seeds python, numpy, torch, loaders and masks; a training without it draws one and '
             'records it, the other scripts take 0', RUNS, kept=True, recorded=True),
        Flag('override_cache', False, boolean, "start the experiment's training afresh", MAIN),
        Flag('is_train', True, boolean, 'False tests the accuracy of a checkpoint only', MAIN),
        Flag('workers', 4, NATURAL, 'loader processes, at most one for each core that this process may use', RUNS),
        Flag('device', 'auto', device_name, 'auto takes CUDA, else MPS, else the CPU; cuda:1 is the second GPU',
             recorded=True),
        Flag('precision', 'auto', choice(('auto', 'float32', 'bfloat16')),
             "the backbone's; auto: trains in bfloat16 where the hardware computes in it, and evaluates in float32 (as "
             'torch computes it: its convolutions use TF32 on recent NVIDIA GPUs), but for val after each epoch; '
             'heads, losses and maps are float32',
             RUNS, kept=True, recorded=True),
    ),
    'data': (
        Flag('dataset', 'CUB', dataset_name, f'{", ".join(DATASETS)} (ImageNet = ILSVRC), or your own folder of '
             'train/, val/ and test/<class>/ images', kept=True, recorded=True),
        Flag('data_root', 'dataset/', str, 'where the images are', recorded=True),
        Flag('metadata_root', 'metadata/', str, 'where the lists, labels and boxes are', recorded=True),
        Flag('mask_root', 'dataset/', str, "where OpenImages' masks are, below OpenImages/", WSOL, recorded=True),
        Flag('skip_broken', False, boolean, 'leave images out that do not open, and say how many', RUNS, kept=True,
             recorded=True),
        Flag('cache', False, boolean, 'keep the resized images in one file per split below save_root/cache/, so that '
             'nothing is decoded again, and the features of --freeze; the size is told before',
             ('main', *EVALUATIONS, *INTERVENTIONS)),
        Flag('proxy_training_set', False, boolean, 'train on image_ids_proxy.txt', MAIN, kept=True),
        Flag('resize_size', 256, SIZE, 'training images are resized to this square', MAIN, kept=True),
        Flag('crop_size', 224, SIZE, 'then cropped to this; evaluation images are resized to it', kept=True,
             recorded=True),
    ),
    'network': (
        _network('architecture', 'resnet50', architecture_name, f'{", ".join(ARCHITECTURES)}; or any torchvision '
                 'classifier: convnext_tiny, mobilenet_v3_large, swin_t, ...; or any of timm, written timm/NAME'),
        _network('attribution_method', 'CAM', choice(tuple(HEADS), METHOD_ALIASES), ', '.join(HEADS)),
        _network('prior', 'relu', choice(tuple(PRIORS)), "CALM's; relu: as released; softplus: with the "
                 'gradient of its sum'),
        _network('large_feature_map', False, boolean, '28x28 instead of 14x14 maps (of 224x224 images)'),
        _network('use_bn', False, boolean, "BatchNorm in VGG's and Inception's added layers"),
        _network('last_stage', 'layer4', choice(LAYERS), 'ResNet: stop here, for a smaller receptive field'),
        Flag('pretrained', True, boolean_or_file, 'start from ImageNet weights of the backbone; False: from random '
             'ones; a file: from the state dict in it, which fits but for the classifier',
             (*MAIN, *INFERENCE, *EXPORT)),
        Flag('use_load_checkpoint', False, boolean, 'start from load_checkpoint, as naming one does by itself', MAIN),
        Flag('load_checkpoint', None, str, 'a folder, a file, an experiment, or a published weight such as '
             "CALM_EM-CUB; by default the experiment's own (main.py: none)"),
        Flag('is_different_checkpoint', False, boolean, 'fine-tune from weights of another label set: all but '
             'conv_last; the whole backbone learns at lr', MAIN, kept=True),
    ),
    'training': (
        Flag('freeze', False, boolean, 'train the head alone, on features that are computed once; no augmentation but '
             'mirroring', MAIN, kept=True, recorded=True),
        Flag('epochs', 40, COUNT, 'passes over the training set', MAIN),
        Flag('batch_size', 64, COUNT, 'images a step, of all processes together', RUNS, kept=True, recorded=True),
        Flag('accumulate', 1, COUNT, "take a step's images in so many parts, where the device has no memory for all at "
             'once: the same update, but for what BatchNorm sees', MAIN),
        Flag('checkpoint_minutes', 10.0, RATE, 'save within an epoch, so long after the last save', MAIN),
        _training('lr', 0.01, RATE, 'learning rate of the backbone; of a ResNet, up to layer3'),
        _training('lr_classifier_ratio', 10.0, RATE, 'the other layers learn this much faster'),
        _training('lr_schedule', 'step', choice(('step', 'one_cycle')), 'step: as published; one_cycle: up, then down '
                  'to 0'),
        _training('lr_decay_frequency', 30, COUNT, 'step: times 0.1 at the start of every epoch this divides'),
        _training('momentum', 0.9, number(float, 0, True, 1), "Nesterov's"),
        _training('weight_decay', 1e-4, RATE, 'L2'),
        _training('prior_training', None, prior_term, 'entropy:WEIGHT adds WEIGHT times the entropy of p(z|x) to the '
                  'loss of CALM: above 0 it sharpens the prior, below 0 it spreads it'),
        Flag('tensorboard', False, boolean, "write each epoch's line for TensorBoard too, in the experiment's folder "
             '(an optional package)', MAIN),
    ),
    'maps and metrics': (
        _maps('score_map_process', None, choice(lambda: (*METHODS, OBJECT_MASK)), 'the attribution method (default: '
              f'vanilla for CAM, jointll for CALM): {", ".join(METHODS)}; {OBJECT_MASK}: the segmentation '
              'itself, a control of evaluations', several=(*INFERENCE, *CUE)),
        Flag('score_map_method', 'activation_map', choice(('activation_map', 'backprop')),
             'backprop: with process vanilla, the vanilla gradient; implied by the gradient processes', MAPS),
        _maps('superclass_file', None, str, 'YAML, "label: [labels]", for superclass processes (default: the data '
              "set's own)"),
        _maps('smooth_grad_nr_iter', 50, COUNT, 'noisy copies of the SmoothGrad family', (*MAPS, *INTERVENTIONS)),
        _maps('smooth_grad_sigma', 4.0, number(float, 0, False),
              "the noise's deviation is the image's range over this", (*MAPS, *INTERVENTIONS)),
        _maps('integrated_grad_nr_iter', 50, COUNT, 'points on the path of the integrated gradients',
              (*MAPS, *INTERVENTIONS)),
        Flag('contrast_method', None, choice(lambda: ('difference', *CONTRASTS)),
             'how class A is contrasted with class B: difference, of the maps of A and of B (default of '
             'eval_cue_location.py, as published), or, of both classes at once: '
             f'{", ".join(CONTRASTS)} (eval_interventions.py: all of them; inference.py: prior-log-odds for CALM, '
             'log-odds for CAM)', (*CUE, *INTERVENTIONS, *INFERENCE),
             recorded=True, shared=False, several=(*CUE, *INTERVENTIONS)),
        Flag('slow_questions', 60, COUNT, 'so many questions, drawn by the seed, for methods that take some fifty '
             'forwards and more for a map; all questions for the others', INTERVENTIONS, recorded=True, shared=False),
        Flag('verbose', False, boolean, 'list the class pairs that are left out, not their number alone', CUE,
             shared=False),
        Flag('drop_lowest', 0.0, number(float, 0, True, 100), 'percentage of the pixels of each map, the lowest, that '
             'get the score 0: log thresholds then count them nowhere', CUE, recorded=True, shared=False, several=CUE),
        _maps('norm_type', None, choice(tuple(NORM_TYPES)), 'max, minmax; clipping: as it is, cut to 0..1; '
              'rank: the share of pixels that are lower, on which no scale has an influence (default: clipping for '
              "maps that are CALM's probabilities, but in eval_wsol; minmax for all others)", (*CUE, *WSOL)),
        _maps('threshold_type', None, choice(tuple(THRESHOLD_TYPES)), 'even: 0, .001, ...; log: 1e-7 ... 1 (default: '
              "log for maps that are CALM's probabilities, even for all others)", CUE),
        _maps('iou_thresholds', (30, 50, 70), percentages, 'overlaps in percent that count as found: 30,50,70', WSOL),
        _maps('scoremap_root', None, str, 'score maps made elsewhere: <root>/<split>/<image_id>.npy; where two '
              'classes are contrasted, <root>/<split>/<label>/<image_id>.npy',
              (*EVALUATIONS, *INTERVENTIONS)),
        _maps('cam_curve_interval', 0.001, number(float, 1e-6, True, 1), 'threshold step',
              (*CUE, *WSOL, *INTERVENTIONS)),
    ),
    'pictures': (
        Flag('output', None, str, 'inference.py: folder of the results (default: maps); export.py: the file, .onnx or '
             '.pt2 (default: named by the checkpoint)', (*INFERENCE, *EXPORT), shared=False),
        _picture('format', ('png',), choice(('png', 'html')), 'png: a picture for each photo; html: one page for all, '
                 'gallery.html, to look through in a browser', several=INFERENCE),
        _picture('target', None, str, 'class A, whose map is shown, name or number (default: the predicted one)', True),
        _picture('contrast', None, str, 'add "why A and not this class B", name or number; without a value the '
                 'runner-up', True),
        _picture('overlay', 'blend', choice(tuple(OVERLAYS)), '; '.join(': '.join(pair) for pair in OVERLAYS.items())),
        _picture('picture_size', 1024, number(int, 64), 'the longer side of a photo as it is drawn, in pixels; a '
                 'larger one is scaled down, and the command says so'),
        _picture('top_k', 5, COUNT, 'html: how many of the likeliest classes there are maps of'),
    ),
}
ALL_FLAGS = {flag.name: flag for flags in FLAGS.values() for flag in flags}


def _add(group, flag, text, script):
    names = ['--' + flag.name] + (['--dataset_name'] if flag.name == 'dataset' else [])
    options = {'type': flag.parse, 'metavar': 'VALUE'}
    if script in flag.several:
        options = {'type': several(flag.parse), 'metavar': 'VALUE,...'}
    if flag.parse in (boolean, boolean_or_file):
        metavar = 'True|False' if flag.parse is boolean else 'True|False|FILE'
        options |= {'nargs': '?', 'const': True, 'metavar': metavar}  # --use_bn alone is True
    elif flag.parse is percentages:
        options = {'nargs': '+', 'action': Joined, 'metavar': 'PERCENT'}  # 30 50 70 as well as 30,50,70
    elif flag.name == 'contrast':
        options |= {'nargs': '?', 'const': 'runner-up'}
    group.add_argument(*names, dest=flag.name, default=argparse.SUPPRESS, help=text, **options)


def make_parser(script, description):
    """The parser of one of SCRIPTS. Its help shows what the script reads, then names what it only accepts."""
    parser, accepted = plain_parser(description), []
    for title, flags in FLAGS.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            if script in flag.readers:
                shown = ','.join(map(str, flag.default)) if script in flag.several and flag.default else flag.default
                default = '' if flag.default is None else f' (default: {shown})'
                many = '; several, separated by commas' if script in flag.several else ''
                _add(group, flag, f'{flag.help}{many}{default}'.replace('%', '%%'), script)
            elif flag.shared:
                _add(parser, flag, argparse.SUPPRESS, script)
                accepted.append('--' + flag.name)
    parser.epilog = ('Accepted without use here, so that one command line serves all scripts:\n'
                     + '\n'.join('  ' + ', '.join(accepted[start:start + 4]) for start in range(0, len(accepted), 4)))
    return parser


def parse(script, description='', argv=None, parser=None):
    """The flags as a Munch; `args.given` holds the names that the command line states."""
    parser = parser or make_parser(script, description)
    defaults = {flag.name: flag.default for flag in ALL_FLAGS.values() if flag.shared or script in flag.readers}
    given = vars(parser.parse_args(argv))
    args = Munch(defaults | given, given=sorted(given))
    if script == 'main' and args.is_train and not args.freeze and args.crop_size > args.resize_size:
        raise UserError(f'--crop_size={args.crop_size} is larger than --resize_size={args.resize_size}')
    return args


# --- the flags and a checkpoint -------------------------------------------------------------------------


def problem_of(name, value):
    """What is wrong with a setting that a checkpoint carries, by the flag's own parser; None if nothing is."""
    flag = ALL_FLAGS.get(name)
    if flag is None:
        return 'no flag has this name'
    if value is None and flag.default is None:
        return None
    try:
        parsed = flag.parse(','.join(map(str, value)) if isinstance(value, tuple) else str(value))
    except argparse.ArgumentTypeError as error:
        return str(error)
    return None if type(parsed) is type(value) and parsed == value else f'{value!r} is no value of its kind'


def network_settings(args):
    """The arguments of build_model that the flags state; a checkpoint carries the same dict. What this network has no
    use for, and the published command lines state all the same, has its default."""
    unused = _without_use(args.architecture, args.attribution_method)
    return {name: flag.default if name in unused else args[name] for name, flag in ALL_FLAGS.items() if flag.network}


def _without_use(architecture, attribution_method):
    return {'use_bn', 'prior'} - set(options_taken(architecture, attribution_method))


def adopt(args, source, known, network):
    """The flags, completed by what a checkpoint knows. Raises UserError where the command line contradicts it.

    source: the checkpoint's path, for the message. known: {flag: value} of its data, taken over where the command line
    is silent. network: its arguments of build_model; a flag that states another value is refused where it matters.
    """
    unused = _without_use(*(network.get(name, args[name]) for name in ('architecture', 'attribution_method')))
    for name in (name for name, flag in ALL_FLAGS.items() if flag.network and name not in unused):
        if name in network and name in args.given and args[name] != network[name]:
            raise UserError(f'{source} was trained with --{name}={network[name]}, not --{name}={args[name]}; leave the '
                            'flag out or name another checkpoint')
    silent = {name: value for name, value in known.items() if name not in args.given}
    return Munch(args, **silent, **network)


def changed_settings(args, before):
    """What a training that goes on may not change and yet does: ['lr was 0.1, is 0.2']. before: its own settings."""
    now = args | network_settings(args)
    then = {name: before.get(name, flag.default) for name, flag in ALL_FLAGS.items() if flag.kept}  # some are newer
    return [f'{name} was {value}, is {now[name]}' for name, value in then.items() if value != now[name]]


def usual_settings(script):
    """{flag: value} of the settings by which two results of the same maps differ: as they are where a command line is
    silent. crop_size is not among them: a training knows its own."""
    names = [flag.name for flag in FLAGS['maps and metrics'] if flag.recorded] + ['seed', 'precision', 'skip_broken']
    usual = {name: ALL_FLAGS[name].default for name in names if script in ALL_FLAGS[name].readers}
    return usual | {name: value for name, value in {'seed': 0, 'precision': 'float32'}.items() if name in usual}


def recorded_settings(args, script):
    """The settings that a result records: those that its script reads and that bear on it."""
    return {name: args[name] for name, flag in sorted(ALL_FLAGS.items()) if flag.recorded and script in flag.readers}
