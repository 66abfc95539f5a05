"""Result files: what they hold, how they are named, and how they are found again.

A result records what it was measured on: data set, split, checkpoint, epoch, settings, versions, and these by SHA-256
of their content: the weights, the images, the truth that the metric compares maps with, and what else the maps come
from. The name of its file depends on all these, and on the settings that differ from the usual ones.
"""
import hashlib
import json
import platform
import subprocess
import sys
from dataclasses import dataclass, fields
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from experiment.settings import usual_settings
from runtime import screen, whole_files
from wsol.attribution.contrast import CONTRASTS, default_scale
from wsol.attribution.registry import METHODS, SamplingSettings
from wsol.errors import UserError

# settings that are written in a file's name as they are
NAMED = ('score_map_process', 'contrast_method', 'drop_lowest', 'norm_type', 'threshold_type', 'scoremap_root')
FORMATS = {'cue_location': 2, 'interventions': 2}  # metric -> version of its results' layout (default: 1)


def contrast_name(contrast):
    """The name of a contrast method in results. An attribution method's name stands for that method applied to the
    log-odds, which is not the difference of its two maps."""
    return f'{contrast}-of-log-odds' if contrast in METHODS else contrast


def identity(metric, data, split, images, checkpoint, settings, truth=None, maps=None):
    """What a result records about itself: metric, images, truth, network and settings. All processes of a run call it.

    truth: SHA-256 of what the metric compares the maps with, beside the images' labels. maps: SHA-256 of what the maps
    come from, beside the images and the network.
    """
    return {'metric': metric, 'format': FORMATS.get(metric, 1), 'dataset': data.label, 'split': split,
            'images': len(images), 'images_sha256': images.fingerprint(), 'truth_sha256': truth,
            'maps_sha256': maps, **checkpoint_identity(checkpoint), 'settings': settings}


def checkpoint_identity(checkpoint):
    """What a result records about its network."""
    return {'checkpoint': checkpoint and str(checkpoint.path), 'epoch': checkpoint and checkpoint.epoch,
            'weights_sha256': checkpoint and checkpoint.sha256}


def key(about, **usual):
    """8 hexadecimal digits that depend on the images, the truth, the weights, the maps and the unusual settings.

    about: an identity. usual: the usual settings of this network, beside those of config.
    """
    usual, settings = as_compared(usual_settings() | usual), as_compared(about['settings'])
    named = {name for name in NAMED if not isinstance(settings.get(name), list)}  # a file's name holds no list
    unusual = {name: settings[name] for name in usual.keys() & settings.keys() - named if settings[name] != usual[name]}
    text = ' '.join(str(about[f'{part}_sha256']) for part in ('images', 'weights', 'truth', 'maps'))
    if unusual:
        text += f' {json.dumps(unusual, sort_keys=True)}'
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def versions():
    """What a result depends on beyond its settings."""
    return {'python': platform.python_version(), 'torch': torch.__version__,
            'torchvision': metadata.version('torchvision'), 'numpy': np.__version__, 'commit': commit()}


@lru_cache
def commit():
    """The git commit of this code, with -dirty if files were changed since; None outside a git repository."""
    describe = ['git', 'describe', '--always', '--dirty', '--abbrev=40', '--exclude=*']
    try:
        return subprocess.run(describe, cwd=Path(__file__).parent, capture_output=True, text=True,
                              check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def machine(device):
    """The device and the number of threads. Both can change the last digits, as they change the order of sums."""
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else _processor()
    return {'device': f'{device.type}: {name}', 'threads': torch.get_num_threads()}


def _processor():
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        return next(line.split(':')[1].strip() for line in lines if line.startswith('model name'))
    except (OSError, StopIteration):  # macOS, and processors without a name in that file
        return platform.processor() or platform.machine()


@dataclass(frozen=True)
class ResultFile:
    """One JSON file of results. Its figure is beside it under the same name."""
    path: Path
    identity: dict
    device: torch.device

    def figure(self):
        """The path of its figure."""
        return self.path.with_suffix('.png')

    def write(self, measured):
        """Write the result. An earlier result of this name has the same weights, images, truth and maps; the settings
        in which it differs, such as the folder of the images, are printed."""
        before = read_result(self.path)['settings']
        now = json.loads(json.dumps(self.identity['settings']))  # lists in place of tuples, as in a file
        changed = [f'{name} was {before.get(name)}, is {value}' for name, value in now.items()
                   if before and before.get(name) != value]
        whole_files.write_json(self.path, {**self.identity, **measured, 'versions': versions(),
                                           'machine': machine(self.device), 'command': command_line()})
        replaced = f' replaces an earlier result ({"; ".join(changed)})' if changed else ''
        screen.say(f'{self.path}{replaced}')


def command_line():
    """The command that this process was started by."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def digits(outcomes):
    """(N,) bool -> '0110...': the outcome of every image, in order."""
    return ''.join(map(str, np.asarray(outcomes, int)))


def from_digits(text):
    """'0110...' -> (N,) float."""
    return np.array(list(text), float)


def as_text(numbers, decimals):
    """(N,) float -> '0.5 1.5 ...'."""
    return ' '.join(f'{number:.{decimals}f}' for number in numbers)


def from_text(text):
    """'0.5 1.5 ...' -> (N,) float."""
    return np.array(text.split(), float)


def read_result(path):
    """A result's content, with its settings (both {} if the file cannot be read) and its path."""
    content = whole_files.read_json(path)
    content = content if isinstance(content, dict) else {}
    settings = content.get('settings')
    return content | {'settings': settings if isinstance(settings, dict) else {}, 'path': str(path)}


def are_alike(results, what):
    """Whether results were measured on the same 'images', or of one metric compared maps with the same 'truth'."""
    return len({result.get(f'{what}_sha256') for result in results}) < 2


def check_alike(results):
    """Raise UserError unless results of each metric were measured on the same images and truth."""
    references = {}
    for result in results:
        first = references.setdefault(result['metric'], result)
        for what in (what for what in ('images', 'truth') if not are_alike([first, result], what)):
            raise UserError(f'{first["path"]} and {result["path"]} were measured on different {what}, so they are not '
                            'compared: remove the one that is out of date, and run again')


def find_result(folder, metric, method, weights_sha256, on_images_of=None, **settings):
    """The content of the latest result in an experiment's folder with this metric, attribution method and weights.

    method: None if contrast_method is among the settings. on_images_of: a result on the same images; None accepts any
    images. settings: those that the command line gives; all others must have their usual values. Raises UserError.
    """
    usual = usual_settings() | usual_scale(metric, method, settings.get('contrast_method'))
    expected = as_compared(usual | {'score_map_process': method} | settings)
    for path in sorted(Path(folder).glob(f'{metric}_*.json'), key=lambda path: -path.stat().st_mtime_ns):
        content = read_result(path)
        actual = as_compared(usual | content['settings'])  # scripts record different flags
        is_of_these = (content.get('format', 1) == FORMATS.get(metric, 1)
                       and content.get('weights_sha256') == weights_sha256
                       and (on_images_of is None or are_alike([content, on_images_of], 'images')))
        if is_of_these and all(actual.get(name) == value for name, value in expected.items()):
            return content
    stated = ' '.join(f'--{name}={value}' for name, value in ({'score_map_process': method} | settings).items()
                      if value is not None)
    raise UserError(f'{folder} holds no result of {metric} with {stated} for these weights')


def as_compared(settings):
    """Settings in a form that can be compared: as a file has them, one form where two mean the same, and without those
    that the attribution method ignores."""
    settings = json.loads(json.dumps(settings))
    if settings.get('contrast_method') == 'difference':
        settings['contrast_method'] = None
    method = settings.get('contrast_method') or settings.get('score_map_process')
    idle = {'score_map_method'}
    if isinstance(method, str):
        known = CONTRASTS.get(method) or METHODS.get(method)
        idle |= {field.name for field in fields(SamplingSettings)} - set(known.settings if known else ())
    settings = {name: value for name, value in settings.items() if name not in idle}
    roots = {name: str(Path(settings[name]).resolve()) for name in ('data_root', 'metadata_root') if name in settings}
    return settings | roots


# --- the scale of maps ------------------------------------------------------------------------------

SCALES = {'cue_location': ('norm_type', 'threshold_type'), 'wsol': ('norm_type',)}  # metric -> the flags of its scale


def usual_scale(metric, method, contrast=None):
    """{flag: value}: the default of how a metric scales and bins the maps of an attribution or contrast method.

    In the WSOL evaluation the thresholds are shares of a map's range, so that all maps are scaled to 0..1.
    """
    if metric not in SCALES:
        return {}
    scale = ('minmax',) if metric == 'wsol' else default_scale(method, contrast)
    return dict(zip(SCALES[metric], scale, strict=True))
