"""README and docs are true: their flags, commands, names, links and Python exist, parse and run."""
import importlib
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from conftest import SCRIPTS, roots_of
from PIL import Image

import config
from dataset import open_dataset
from dataset.prepare import RECIPES
from dataset.registry import DATASETS
from dataset.toybirds import class_colours
from dataset.transforms import eval_transform
from evaluation.map_sources import FolderMaps
from experiment import checkpoint_files, weights
from research import findings
from wsol import attribution_maps, build_model
from wsol.attribution.registry import METHODS
from wsol.heads import CALM

ROOT = Path(__file__).resolve().parents[2]
TEXTS = {path.relative_to(ROOT): path.read_text() for path in (ROOT / 'README.md', *sorted(ROOT.glob('docs/*.md')))}
README, DATA, TROUBLE = (TEXTS[Path(name)] for name in (
    'README.md', 'docs/data.md', 'docs/troubleshooting.md'))
EVERYTHING = '\n'.join(TEXTS.values())
STUDIES = tuple(path.stem for path in sorted((ROOT / 'research').glob('*.py')) if 'def make_parser' in path.read_text())


def test_the_lines_of_the_front_page_fit_a_screen():
    assert max(map(len, README.splitlines())) <= 132


def parsers():
    """{script: its parser}; of a study the name without research."""
    modules = {name: name for name in SCRIPTS} | {'compare': 'compare'} | {name: f'research.{name}' for name in STUDIES}
    return {name: importlib.import_module(module).make_parser() for name, module in modules.items()}


def test_every_flag_exists():
    """A flag that a page names is one of the table, of one script, or of a tool; a value that it gives parses."""
    known = {action.dest for parser in parsers().values() for action in parser._actions}
    tools = {'archive', 'nproc_per_node', 'nnodes', 'rdzv_endpoint', 'rdzv_backend', 'node_rank', 'data_root',
             'metadata_root', 'logdir', 'logger_type', 'smoothing_ksize'}
    named = set(re.findall(r'--([a-z]\w+)', re.sub(r'^    (?:#SBATCH|srun).*$', '', EVERYTHING, flags=re.M)))
    assert len(named) > 40
    assert named - tools <= known
    for name, value in re.findall(r'`--(\w+)=([\w./-]+)`', EVERYTHING):
        if name in config.ALL_FLAGS and value not in ('NAME', 'FILE', 'MODE', 'N', 'Q', 'K', 'M'):
            config.ALL_FLAGS[name].parse(value.replace('timm/NAME', 'resnet18'))


def test_every_data_set_and_published_weight_is_named():
    assert all(f'`{name}' in DATA for name in RECIPES)
    assert all(f'`{name}`' in README for name in weights.PUBLISHED)


@pytest.mark.parametrize('page', TEXTS, ids=str)
def test_every_linked_file_is_there(page):
    for link in re.findall(r'\]\(([^)]+)\)', TEXTS[page]):
        if not link.startswith('http'):
            path, _, anchor = link.partition('#')
            target = ROOT / page.parent / path if path else ROOT / page
            assert target.is_file(), link
            if anchor:
                titles = re.findall(r'^#+ (.*)$', target.read_text(), re.M)
                assert anchor in {re.sub(r'[^\w -]', '', title.lower()).replace(' ', '-') for title in titles}, link


@pytest.mark.parametrize('page', TEXTS, ids=str)
def test_python_files_that_are_named_exist(page):
    for name in re.findall(r'(?<![\w/.-])((?:\w+/)*\w+\.py)\b', TEXTS[page]):
        assert 'NAME' in name or (ROOT / name).is_file(), name


def test_every_page_is_in_the_contents():
    """And the contents name no other."""
    contents = yaml.safe_load((ROOT / 'mkdocs.yml').read_text().replace('!!python', 'python'))['nav']
    named = [page for entry in contents for page in ([entry] if isinstance(entry, str) else sum(entry.values(), []))]
    assert sorted(named) == sorted(path.name for path in (ROOT / 'docs').iterdir() if path.suffix in ('.md', '.ipynb'))


def test_make_targets_exist():
    targets = re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.M)
    named = re.findall(r'(?:`|^    )make ([\w-]+)', EVERYTHING, re.M)
    assert named and set(named) <= set(targets)


@pytest.mark.parametrize('page', [*TEXTS, Path('docs/data/commands.csv')], ids=str)
def test_commands_parse(page):
    """The published commands and all others: each parses, and states nothing that its script does not read. A command of
    an earlier commit may not."""
    commits = {row['run']: row['commit'] for row in findings.read('runs')}
    text = TEXTS[page].replace('\\\n', ' ') if page in TEXTS else ''.join(
        f'    {row["command"]}\n' for row in findings.read('commands') if not commits[row['run']])
    parser_of = parsers()
    for script, command in re.findall(r'^    (?:torchrun .*? (?=\w+\.py)|python )(?:-m research\.)?([\w/]+?)(?:\.py)?( .*|)$', text, re.M):
        words = shlex.split(command, comments=True)
        if script == 'dataset/prepare':
            assert words[0] in [*RECIPES, 'all', 'check', 'NAME'], command
            continue
        assert script in parser_of, script
        if script not in SCRIPTS:
            _, rest = parser_of[script].parse_known_args(words)
            config.parse(parser_of['main'], rest)  # what a script of experiments hands on
            continue
        args = config.parse(parser_of[script], words)
        published = 'experiment_name/' in command
        unread = [name for name in args.given if name != 'images' and name not in parser_of[script].reads]
        assert not unread or published and set(unread) <= {'use_load_checkpoint', 'norm_type'}, (script, unread)


def test_the_published_commands_are_on_the_front_page():
    commands = re.findall(r'^    python (\w+)\.py.*experiment_name/', README, re.M)
    assert commands == ['main', 'eval_pixel_perturb', 'eval_cue_location']


def product_code():
    return '\n'.join(path.read_text() for path in ROOT.rglob('*.py')
                     if not {'.venv', 'tests', 'build'} & set(path.relative_to(ROOT).parts))


def test_the_keys_of_result_files_are_in_the_code():
    """docs/protocols.md, "What a result file holds"."""
    section = TEXTS[Path('docs/protocols.md')].split('## What a result file holds')[1].split('\n## ')[0]
    code, keys = product_code(), set(re.findall(r'`([a-z]\w+)(?:`|\[)', section))
    assert len(keys) > 40 and not [key for key in keys if not re.search(rf"'{key}'|\b{key}=", code)]


def test_what_troubleshooting_quotes_is_said_somewhere():
    """The words of every quoted message are in the code, in this order and close together."""
    code = re.sub(r"""['"]\s*\n?\s*f?r?['"]""", '', product_code())  # one string, written in parts
    rows = re.findall(r'^\| `(.*?)` \|', TROUBLE, re.M)
    assert len(rows) > 10
    for quoted in rows:
        pieces = [piece for piece in re.split(r'\.\.\.|\b\d+\b|--architecture=resnet18|--architecture=|\bCUB train\b|\bnan\b|CAM(?= does)|jointll', quoted.replace('\\|', '|'))
                  if len(piece.strip()) > 3]
        assert re.search('.{0,120}?'.join(map(re.escape, (piece.strip() for piece in pieces))), code, re.S), quoted


@pytest.mark.parametrize('page', [page for page in TEXTS if page.name not in ('README.md', 'own.md', 'adding.md', 'elsewhere.md')], ids=str)
def test_python_stands_where_it_is_run(page):
    assert '```python' not in TEXTS[page]


def test_the_block_of_the_front_page_runs(monkeypatch):
    """With random weights, without a download."""
    block, = re.findall(r'```python\n(.*?)```', README, re.S)
    monkeypatch.chdir(ROOT)
    names = {}
    exec(block.replace('weights=weights', 'weights=None'), names)
    assert len(block.splitlines()) == 8 and names['why'].shape == (1, 7, 7)
    logits = names['model'](names['photo'])[0]
    torch.testing.assert_close(names['why'].mean(), logits[names['first'][0]] - logits[names['second'][0]])


def test_the_library_block_runs():
    """docs/own.md, its first block."""
    exec(re.findall(r'```python\n(.*?)```', TEXTS[Path('docs/own.md')], re.S)[0], {})


def blocks_of(page):
    return re.findall(r'```python\n(.*?)```', TEXTS[Path('docs') / page], re.S)


def test_the_example_of_a_method_runs(monkeypatch):
    monkeypatch.setitem(METHODS, 'cue', None)  # removed after the test
    exec(blocks_of('adding.md')[0], {})
    model = build_model('resnet18', 'CALM_EM', 4, last_stage='layer1')
    maps = attribution_maps(model, torch.randn(2, 3, 32, 32), torch.tensor([0, 3]), method='cue')
    assert maps.shape == (2, 8, 8) and METHODS['cue'].head is CALM


def test_the_example_of_a_data_set_runs(monkeypatch, tmp_path):
    monkeypatch.setitem(DATASETS, 'Fruit', None)
    exec(blocks_of('adding.md')[1], {})
    for number, name in enumerate(('apple', 'pear')):
        photo = tmp_path / 'dataset/Fruit/images' / name / 'a.png'
        photo.parent.mkdir(parents=True)
        Image.new('RGB', (40, 30), ('red', 'green')[number]).save(photo)
    lists = tmp_path / 'metadata/Fruit/test'
    lists.mkdir(parents=True)
    (lists / 'image_ids.txt').write_text('apple/a.png\npear/a.png\n')
    (lists / 'class_labels.txt').write_text('apple/a.png,0\npear/a.png,1\n')
    images = open_dataset('Fruit', tmp_path / 'dataset', tmp_path / 'metadata').open_split('test', eval_transform(32))
    assert len(images) == 2 and images[1][0].shape == (3, 32, 32) and images[1][1] == 1


def test_the_example_of_a_metric_runs(monkeypatch, tmp_path, tiny_birds):
    for root, name in zip(roots_of(tiny_birds), ('dataset', 'metadata'), strict=True):
        (tmp_path / name).symlink_to(root)
    monkeypatch.chdir(tmp_path)
    write_network(tmp_path / 'save/demo/CALM_EM', args={'crop_size': 64})
    names = {}
    exec(blocks_of('adding.md')[2], names)
    assert 0 <= names['share'] <= 1
    peak, truth = torch.zeros(2, 4, 4), torch.zeros(2, 4, 4, dtype=torch.bool)
    peak[:, 1, 2], truth[0, 1, 2] = 1, True
    assert names['pointing_game'](peak, truth) == 0.5


def test_captums_maps_are_written_where_evaluations_look_for_them(monkeypatch, tmp_path, tiny_birds):
    """docs/elsewhere.md, with few samples."""
    for root, name in zip(roots_of(tiny_birds), ('dataset', 'metadata'), strict=True):
        (tmp_path / name).symlink_to(root)
    monkeypatch.chdir(tmp_path)
    write_network(tmp_path / 'save/demo/CAM', 'CAM', args={'crop_size': 32})
    block, = blocks_of('elsewhere.md')
    names = {}
    exec(block.replace('n_samples=500', 'n_samples=4'), names)
    maps = FolderMaps('maps/shap', 'test', names['images'])
    last = maps.read(len(names['images']) - 1, [0], 32)[0]
    assert maps.shapes == {(32, 32)} and len(last.unique()) > 1
    assert torch.equal(last, last[2::4, 2::4].repeat_interleave(4, 0).repeat_interleave(4, 1))  # a value for each cell


def write_network(folder, head='CALM_EM', **more):
    """An untrained network for ToyBirds where weights.load_model looks for it."""
    network = {'architecture': 'resnet18', 'attribution_method': head, 'last_stage': 'layer2', 'num_classes': 18}
    torch.manual_seed(0)
    state = build_model(**network).state_dict()
    checkpoint_files.write(folder / weights.FILE, {'model': network, 'state_dict': state, **more})


def test_the_checkpoint_block_runs(monkeypatch, tmp_path):
    """docs/own.md, its second block, on a checkpoint and a photo put where it looks for them."""
    block = re.findall(r'```python\n(.*?)```', TEXTS[Path('docs/own.md')], re.S)[1]
    monkeypatch.chdir(tmp_path)
    photo = Path(re.search(r"open_upright\('(.*?)'\)", block)[1])
    assert photo.parent.name in dict(class_colours())
    photo.parent.mkdir(parents=True)
    Image.new('RGB', (80, 60), 'tan').save(photo)
    folder = Path('save') / re.search(r"load_model\('([\w/]+)'\)", block)[1]
    write_network(folder)
    names = {}
    exec(block, names)
    probs = names['model'](names['images']).softmax(1)
    assert names['joint'].shape == (1, 18, 14, 14)
    torch.testing.assert_close(names['joint'].sum((2, 3)), probs)
    best = names['best']
    torch.testing.assert_close(names['why'].sum((1, 2)), probs[0, best] - probs[0, (best + 1) % 18])
