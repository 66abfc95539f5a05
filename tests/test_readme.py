"""The README is true: its flags, names and Python exist and run."""
import re
from pathlib import Path

import torch
from PIL import Image

import config
import weights
from dataset.prepare import RECIPES
from dataset.toybirds import class_colours
from wsol import HEADS, PROCESSES, attribution_maps, build_model

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
            assert issubclass(HEADS['CAM'], PROCESSES[name].head) == (heads == 'all'), name


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
    """A flag that the README names is one of the table or of prepare.py; a value that it gives is one that parses."""
    named = dict(re.findall(r'--(\w+)(?:=([\w./-]+))?', README))
    assert len(named) > 20
    of_prepare = {'archive', 'help'}
    for name in named.keys() - of_prepare:
        assert name in config.ALL_FLAGS, name
    for name, value in re.findall(r'`--(\w+)=([\w./-]+)`', README):
        if name not in of_prepare:
            config.ALL_FLAGS[name].parse(value)


def test_every_data_set_and_published_weight_is_named():
    assert all(f'`{name}' in section('Data') for name in RECIPES)
    assert all(f'`{name}`' in README for name in weights.PUBLISHED)


def test_every_linked_file_is_there():
    links = [link for link in re.findall(r'\]\(([^)]+)\)', README) if not link.startswith('http')]
    assert links
    assert all((ROOT / link).is_file() for link in links)


def test_commands_parse():
    """The published commands and the short ones: each parses, and states nothing that its script does not read."""
    text = README.replace('\\\n', ' ')
    commands = re.findall(r'^    python (main|eval_\w+|inference)\.py (.*)$', text, re.M)
    assert {name for name, _ in commands} == set(config.SCRIPTS)
    for script, command in commands:
        words = command.split('#')[0].split()
        given = config.make_parser(script, '')
        if script == 'inference':
            given.add_argument('images', nargs='+')
        args = config.parse(script, argv=words, parser=given)
        published = 'experiment_name/' in command
        unread = [name for name in args.given if name != 'images' and script not in config.ALL_FLAGS[name].readers]
        assert not unread or published and set(unread) <= {'use_load_checkpoint', 'norm_type'}, (script, unread)


def test_the_python_block_runs(monkeypatch, tmp_path):
    """On a checkpoint and a photo put where it looks for them."""
    (block,) = re.findall(r'```python\n(.*?)```', README, re.S)
    monkeypatch.chdir(tmp_path)
    photo = Path(re.search(r"open_upright\('(.*?)'\)", block)[1])
    assert photo.parent.name in dict(class_colours())
    photo.parent.mkdir(parents=True)
    Image.new('RGB', (80, 60), 'tan').save(photo)
    folder = Path('save') / re.search(r"load_model\('([\w/]+)'\)", block)[1]
    network = {'architecture': 'resnet18', 'attribution_method': 'CALM_EM', 'last_stage': 'layer2', 'num_classes': 18}
    torch.manual_seed(0)
    weights.save_checkpoint(folder / weights.FILE, model=network, state_dict=build_model(**network).state_dict())
    names = {}
    exec(block, names)
    probs = names['model'](names['images']).softmax(1)
    assert names['joint'].shape == (1, 18, 14, 14)
    torch.testing.assert_close(names['joint'].sum((2, 3)), probs)
    best = names['best']
    torch.testing.assert_close(names['why'].sum((1, 2)), probs[0, best] - probs[0, (best + 1) % 18])
