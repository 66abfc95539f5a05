"""What the tests share: reference data, a tiny ToyBirds, networks trained on it, scripts run in this process.

tests/golden holds outputs of the published code (its README says of which calls). CUB's annotations, the WSOL
evaluation's lists and real photos are not part of the project: they are looked for in the folder that the environment
variable CALM_SHARED names, else in ../shared; tests that need them skip, and say so, where they are absent.
"""
import importlib
import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from matplotlib.figure import Figure
from PIL import Image

import config
from dataset import painter
from runtime import screen

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / 'tests' / 'golden'
SHARED = Path(os.environ.get('CALM_SHARED', ROOT.parent / 'shared'))
# the tests' networks are tiny: threads that wait for one another cost more than they save, above all beside other work;
# the variable tells the processes that tests start
torch.set_num_threads(1)
os.environ['OMP_NUM_THREADS'] = '1'
painter.SUPERSAMPLING = 2  # smooth edges enough: painting takes half the time
settings.register_profile('no deadline', deadline=None)  # a busy machine is no failure
settings.load_profile('no deadline')

# what takes longest begins first, so that no worker of pytest-xdist is left with it at the end while the others wait
LONGEST = ('test_processes', 'test_demo', 'test_ablation', 'test_reproduce', 'test_scripts', 'test_bench', 'test_interventions', 'test_inference')


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def generators(count, seed=0):
    """A generator for each image."""
    return [torch.Generator().manual_seed(seed + index) for index in range(count)]


def shared(*parts):
    """A file or folder of the reference data; skips the test where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f'no reference data at {path}: set CALM_SHARED to its folder')
    return path


def golden(name):
    """{array name: array} of one file of the published code's outputs."""
    with np.load(GOLDEN / f'{name}.npz') as arrays:
        return {key: arrays[key] for key in arrays.files}


def assert_close(ours, reference, relative=1e-5):
    """Largest difference under `relative` times the reference's largest entry."""
    ours, reference = (np.asarray(value.detach() if isinstance(value, torch.Tensor) else value, np.float64)
                       for value in (ours, reference))
    assert ours.shape == reference.shape
    assert np.isfinite(ours).all()
    assert np.abs(ours - reference).max() <= relative * np.abs(reference).max()


def accepted(result, *words):
    """Assert that a script ended without an error, and that it printed all these words. Returns what it printed."""
    code, out, err = result
    assert code == 0, err
    for word in words:
        assert word in out, err
    return out


def refused(result, *words):
    """Assert that a script ended with exit code 2 and one line of error, which holds all these words."""
    code, _, err = result
    message = [line for line in err.splitlines() if line.startswith('error: ')]
    assert code == 2 and len(message) == 1 and 'Traceback' not in err, err
    for word in words:
        assert word in message[0], err


def explained_columns(text):
    """The columns that the tables of a page have a sentence for: {'published: 1', 'published: mean', 'accuracy', ...}."""
    names = set()
    for cell in re.findall(r'^\| ([^|`]+) \| [A-Z].*\. \|$', text, re.M):
        name, _, keys = cell.rpartition(': ')
        names |= {f'{name}: {key}' for key in keys.split(', ')} if name else {*cell.split(', ')}
    return names


# --- scripts ----------------------------------------------------------------------------------------

# whose flags are in config's table
SCRIPTS = ('main', 'eval_pixel_perturb', 'eval_cue_location', 'eval_wsol', 'inference', 'export', 'research.interventions')
SMALL = ['--architecture=resnet18', '--last_stage=layer1', '--pretrained=False', '--batch_size=20']
SIZE = 56  # the crop size of tiny_birds


def flags_of(name, argv):
    """The flags that a script reads from a command line."""
    return config.parse(importlib.import_module(name).make_parser(), argv)


def run_main(name, *flags):
    """Call a script's main() with a command line of its own."""
    before = sys.argv
    sys.argv = [f'{name.split(".")[-1]}.py', *map(str, flags)]
    try:
        importlib.import_module(name).main()
    finally:
        sys.argv = before


CURVES = ('training_curves', 'reliability_curve', 'precision_curves', 'accuracy_curves', 'ratio_curve')


@pytest.fixture
def drawn():
    """For tests of curves: `script` draws them."""


@pytest.fixture
def script(request, monkeypatch, tmp_path, capsys):
    """Call a script as the shell would: script('main', '--epochs=1') -> (exit code, stdout, stderr). Curves are blank
    unless the test asks for `drawn`, and fewer class pairs are resampled: each would take longer than the rest."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('evaluation.pxap.DRAWS', 50)
    for name in () if 'drawn' in request.fixturenames else CURVES:
        monkeypatch.setattr(f'reports.figures.{name}', lambda *_: Figure((1, 1)))

    def call(name, *flags):
        capsys.readouterr()
        code = 0
        try:
            screen.run(lambda: run_main(name, *flags))
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err
    return call


@pytest.fixture
def at_home(request, script, tiny_birds, tmp_path, monkeypatch):
    """A working folder where the scripts find tiny_birds, or few_birds if the test asks for these. Returns the commands
    that studies run, as they run."""
    from research import commands
    ran, run = [], commands.run
    birds = request.getfixturevalue('few_birds') if 'few_birds' in request.fixturenames else tiny_birds
    for root, name in zip(roots_of(birds), ('dataset', 'metadata'), strict=True):
        (tmp_path / name).symlink_to(root)

    def run_and_keep(folder, *command):
        ran.append([*command, f'--save_root={folder}'])
        run(folder, *command)
    monkeypatch.setattr(commands, 'run', run_and_keep)
    return ran


def files_below(folder):
    """{path relative to the folder: content} of all files in it, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob('*') if path.is_file()}


def without(flags, *names):
    """The flags but for those of these names."""
    return [flag for flag in flags if flag.split('=')[0].removeprefix('--') not in names]


def result_paths(folder, metric):
    """The files of results of a metric in an experiment's folder."""
    return sorted(Path(folder).glob(f'{metric}_*.json'))


def read_result(folder, metric, named=''):
    """The one result of a metric in an experiment's folder. named: a part of its file's name."""
    path, = (path for path in result_paths(folder, metric) if named in path.name)
    return json.loads(path.read_text())


@pytest.fixture
def forwards(monkeypatch):
    """The batch sizes of all forwards of the network, as they happen (but for those that compute shapes alone)."""
    from torch._subclasses import FakeTensor

    from wsol.heads import CAM
    seen, extract = [], CAM.extract_features

    def extract_and_count(model, images):
        if not isinstance(images, FakeTensor):
            seen.append(len(images))
        return extract(model, images)
    monkeypatch.setattr(CAM, 'extract_features', extract_and_count)
    return seen


# --- painted birds, and networks that know them -------------------------------------------------------

def paint_birds(root, counts, seed):
    """Paint a ToyBirds with so many images of each class. Returns its flags."""
    from dataset import toybirds
    toybirds.paint_dataset(root / 'data', root / 'meta', counts, seed=seed)
    return ['--dataset=ToyBirds', f'--data_root={root / "data"}', f'--metadata_root={root / "meta"}',
            f'--crop_size={SIZE}', '--resize_size=64', '--workers=0', '--device=cpu', '--precision=float32', '--seed=3']


@pytest.fixture(scope='session')
def tiny_birds(tmp_path_factory):
    """The flags of a ToyBirds with few images, painted once."""
    return paint_birds(tmp_path_factory.mktemp('birds'), {'train': 3, 'val': 1, 'test': 2}, seed=5)


@pytest.fixture(scope='session')
def few_birds(tmp_path_factory):
    """The flags of an even smaller ToyBirds, for studies that run many scripts."""
    return paint_birds(tmp_path_factory.mktemp('few'), {'train': 2, 'val': 1, 'test': 1}, seed=6)


def roots_of(flags):
    """(data root, metadata root) that the flags name."""
    return tuple(Path(flag.split('=')[1]) for flag in flags if '_root' in flag)


@pytest.fixture
def own_birds(tiny_birds, tmp_path):
    """The flags of a copy of tiny_birds that a test may change."""
    roots = [shutil.copytree(root, tmp_path / 'birds' / root.name) for root in roots_of(tiny_birds)]
    return [*without(tiny_birds, 'data_root', 'metadata_root'), f'--data_root={roots[0]}', f'--metadata_root={roots[1]}']


def open_birds(flags, split='test'):
    """The images of a split of tiny_birds, as evaluations see them, and the data set."""
    from dataset import open_dataset
    from dataset.transforms import eval_transform
    data = open_dataset('ToyBirds', *roots_of(flags))
    return data.open_split(split, eval_transform(SIZE)), data


@pytest.fixture(scope='session')
def trained(tiny_birds, tmp_path_factory):
    """A save_root with an experiment for each head, trained for a few epochs. Tests read it, and write elsewhere."""
    save = tmp_path_factory.mktemp('trained')
    for method in ('CAM', 'CALM_EM', 'CALM_ML'):
        run_main('main', *tiny_birds, *SMALL, f'--save_root={save}', f'--experiment_name={method}',
                 f'--attribution_method={method}', '--epochs=3')
    return save


@pytest.fixture
def save(trained, script, tmp_path):
    """The folder `save` of the test's own working folder, with a copy of the trained experiments."""
    shutil.copytree(trained, tmp_path / 'save')
    return tmp_path / 'save'


def change_checkpoint(path, change):
    """Write what change(content) makes of a checkpoint's content back to its file."""
    content = torch.load(path, weights_only=True)
    torch.save(change(content) or content, path)


def noise_dataset(folder, count=5, size=(16, 12)):
    """The training images of a folder to which so many photos of noise are written, resized and cropped to these sizes."""
    from dataset import transforms
    from dataset.images import ImageDataset
    rng = np.random.default_rng(1)
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, (30 + index, 30, 3), dtype=np.uint8)).save(folder / f'{index}.png')
    ids = np.array([f'{index}.png'.encode() for index in range(count)])
    return ImageDataset(ids, np.arange(count), folder, transforms.Transform(*size))


# --- a folder of one's own ------------------------------------------------------------------------------

OWN_FLAGS = [*SMALL, '--epochs=1', '--crop_size=32', '--resize_size=36', '--workers=0', '--device=cpu',
             '--precision=float32', '--seed=0']


def paint_folder(folder, names=('cat', 'dog', 'eel'), counts=(4, 4, 4)):
    """train/, val/ and test/ of three classes, each with a colour of its own. Returns the folder."""
    rng = np.random.default_rng(0)
    for split, count in zip(('train', 'val', 'test'), counts, strict=True):
        for number, name in enumerate(names):
            for index in range(count):
                path = folder / split / name / f'{index}.{"png" if index % 2 else "jpg"}'
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 100, (40, 30, 3), dtype=np.uint8)
                pixels[..., number] += 120
                Image.fromarray(pixels).save(path)
    return folder


# --- trainings --------------------------------------------------------------------------------------------

def content_of(folder):
    from experiment import weights
    return torch.load(folder / weights.FILE, weights_only=True)


def same(first, second):
    """Whether two values of checkpoints are equal, tensors bit for bit."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(value, second[key]) for key, value in first.items())
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


def same_training(first, second):
    """Whether two experiments hold the same network, the same state of the optimiser and the same log."""
    contents = [content_of(folder) for folder in (first, second)]
    logs = [[{key: value for key, value in json.loads(line).items() if 'per_second' not in key}
             for line in (folder / 'log.jsonl').read_text().splitlines()] for folder in (first, second)]
    return logs[0] == logs[1] and all(same(*(content[key] for content in contents))
                                      for key in ('state_dict', 'optimizer', 'epoch', 'model', 'class_names'))


@pytest.fixture
def resnet_pets(script, tmp_path):
    """The flags of a training of resnet18 on a folder of 12 training images in batches of 5, so in 3 steps."""
    folder = paint_folder(tmp_path / 'pets', counts=(4, 2, 2))
    return [*without(OWN_FLAGS, 'epochs', 'batch_size'), '--batch_size=5', f'--dataset={folder}']


@pytest.fixture
def pets(resnet_pets, tiny_random_network):
    """The same of a tiny network, whose training draws at random."""
    return resnet_pets


@pytest.fixture
def tiny_random_network(monkeypatch):
    """resnet18 stands for a tiny network whose training draws at random: dropout, and blocks that are left out."""
    import torchvision
    from torch import nn

    from wsol import networks

    class Block(nn.Sequential):
        def forward(self, features):
            return features + super().forward(features)

    def build(weights=None, **options):
        drop = torchvision.ops.StochasticDepth(0.3, 'row')
        block = Block(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3), drop)
        stages = nn.Sequential()
        stages.add_module('conv1', nn.Conv2d(3, 8, 3, 4))
        stages.add_module('layer1', block)
        return stages, 8
    usual = networks.ARCHITECTURES['resnet18']
    monkeypatch.setitem(networks.ARCHITECTURES, 'resnet18', networks.Architecture(
        build, usual.slow, usual.backbone, usual.options))
