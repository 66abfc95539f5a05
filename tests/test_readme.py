"""The README is true: its flags, names and Python exist and run."""
import re
from pathlib import Path

import torch
from PIL import Image

import config
import util
from checkpoints.loading import network_settings
from checkpoints.published import DRIVE_IDS
from dataset.prepare import RECIPES
from dataset.toybirds import class_colours
from wsol import METHODS, build_model
from wsol.attribution import PROCESSES, attribution_maps

ROOT = Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()


def section(title):
    return README.split(f'\n## {title}\n')[1].split('\n## ')[0]


def test_every_process_has_a_row_and_every_row_is_a_process():
    first_cells = re.findall(r'^\| (`.*?) \|', section('Every attribution method'), re.M)
    named = [name for cell in first_cells for name in re.findall(r'`([^`]+)`', cell)]
    assert sorted(named) == sorted([*PROCESSES, config.OBJECT_MASK])


def test_the_rows_name_the_heads_that_define_a_process():
    for cells, heads in re.findall(r'^\| (`.*?) \|.*\| (all|CALM) \|', section('Every attribution method'), re.M):
        for name in set(re.findall(r'`([^`]+)`', cells)) & set(PROCESSES):
            assert issubclass(METHODS['CAM'], PROCESSES[name].head) == (heads == 'all'), name


def test_the_cost_column(monkeypatch):
    """Forwards and backwards, counted."""
    torch.manual_seed(0)
    model = build_model('resnet18', 'CALM_EM', 3, last_stage='layer1').eval()
    counts = {'F': 0, 'B': 0}
    backward = torch.autograd.grad

    def count_forward(module, inputs, output):
        counts['F'] += len(output)

    def count_backward(*args, **options):
        counts['B'] += 1
        return backward(*args, **options)
    model.conv1.register_forward_hook(count_forward)
    monkeypatch.setattr(torch.autograd, 'grad', count_backward)
    rows = re.findall(r'^\| (`.*?) \|.*\| (?:all|CALM) \| (.*?) \|', section('Every attribution method'), re.M)
    for cells, cost in rows:
        stated = {kind: int(number) for number, kind in re.findall(r'(\d+) ([FB])', cost.replace('D+2', '66'))}
        for name in set(re.findall(r'`([^`]+)`', cells)) & set(PROCESSES):
            counts.update(F=0, B=0)
            attribution_maps(model, torch.randn(1, 3, 56, 56), torch.tensor([1]), name, superclasses=torch.eye(3) > 0)
            assert counts == {'F': 0, 'B': 0} | stated, name


def test_every_flag_exists():
    known = {name for flags in config.FLAGS.values() for name, *_ in flags}
    known |= {'archive', 'contrast', 'output', 'target', 'help'}  # of prepare.py and inference.py
    named = set(re.findall(r'--(\w+)', README))
    assert len(named) > 20
    assert named <= known, named - known


def test_every_data_set_and_published_weight_is_named():
    assert all(f'`{name}' in section('Data') for name in RECIPES)
    assert all(f'`{name}`' in README for name in DRIVE_IDS)


def test_every_linked_file_is_there():
    links = [link for link in re.findall(r'\]\(([^)]+)\)', README) if not link.startswith('http')]
    assert links
    assert all((ROOT / link).is_file() for link in links)


def test_commands_parse():
    """The published commands and the short ones."""
    text = README.replace('\\\n', ' ')
    commands = re.findall(r'^    python (?:main|eval_\w+)\.py (.*)$', text, re.M)
    assert len(commands) >= 7
    for command in commands:
        config.parse('', command.split())


def test_the_python_block_runs(monkeypatch, tmp_path):
    """On a checkpoint and a photo put where it looks for them."""
    (block,) = re.findall(r'```python\n(.*?)```', README, re.S)
    monkeypatch.chdir(tmp_path)
    photo = Path(re.search(r"open_upright\('(.*?)'\)", block)[1])
    assert photo.parent.name in dict(class_colours())
    photo.parent.mkdir(parents=True)
    Image.new('RGB', (80, 60), 'tan').save(photo)
    folder = Path('save') / re.search(r'--load_checkpoint=([\w/]+)', block)[1]
    args = config.parse('', ['--dataset=ToyBirds', '--crop_size=64', '--resize_size=72', '--architecture=resnet18',
                             '--attribution_method=CALM_EM', '--last_stage=layer2'])
    network = network_settings(args, 18)
    torch.manual_seed(0)
    util.save_checkpoint(folder / util.CHECKPOINT, model=network, args=dict(args),
                         state_dict=build_model(**network).state_dict())
    names = {}
    exec(block, names)
    probs = names['model'](names['images']).softmax(1)
    assert names['joint'].shape == (1, 18, 8, 8)
    torch.testing.assert_close(names['joint'].sum((2, 3)), probs)
    best = names['best']
    torch.testing.assert_close(names['why'].sum((1, 2)), probs[0, best] - probs[0, (best + 1) % 18])
