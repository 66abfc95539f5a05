"""config: the one table of flags. Each flag is read by the scripts that the table names and by no other; help says so."""
import ast
import importlib
import re
import shlex

import pytest
from conftest import ROOT, SCRIPTS, flags_of, refused, run_main

import config
from config import ALL_FLAGS
from experiment.settings import adopt, changed_settings, network_settings
from runtime import command_line
from wsol.errors import UserError

FLAG_READERS = ('config', 'evaluation/session', 'experiment/weights')  # modules that read flags for several scripts
PARSERS = {name: importlib.import_module(name).make_parser() for name in SCRIPTS}


def is_flags(node):
    """Whether an expression is the bag of flags: `args`, or `network.args`."""
    return (isinstance(node, ast.Name) and node.id == 'args') or (isinstance(node, ast.Attribute) and node.attr == 'args')


def flags_read(module):
    """The flags that a module's code reads: args.name, args['name'], or a flag's name as a text beside args[variable]."""
    read, texts, by_variable = set(), set(), False
    for node in ast.walk(ast.parse((ROOT / f'{module.replace(".", "/")}.py').read_text())):
        if isinstance(node, ast.Attribute) and is_flags(node.value) and isinstance(node.ctx, ast.Load):
            read.add(node.attr)
        elif isinstance(node, ast.Subscript) and is_flags(node.value):
            if isinstance(node.slice, ast.Constant):
                read.add(node.slice.value)
            else:
                by_variable = True
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.add(node.value)
    return (read | (texts if by_variable else set())) & ALL_FLAGS.keys()


@pytest.mark.parametrize('name', SCRIPTS)
def test_a_script_reads_the_flags_that_it_states_and_no_others(name):
    """So that no flag is accepted and explained without use, or missing in its arguments."""
    stated, read = PARSERS[name].reads, flags_read(name)
    assert read and read - stated == set()
    assert stated - read - {*config.NETWORK, *config.SAMPLING} - {flag for module in FLAG_READERS for flag in flags_read(module)} == set()
    assert flags_of(name, []).keys() - {'given', 'images'} == stated


def test_the_table_is_sound():
    for name, flag in ALL_FLAGS.items():
        assert flag.name == name and flag.help and flag.parse.metavar
        assert any(name in parser.reads for parser in PARSERS.values()) != (flag in config.FLAGS['without effect'])
        assert not flag.network or (flag.kept and flag.recorded)  # what the network is made of is known afterwards
        assert flag.default is None or isinstance(flag.default, (bool, tuple)) or flag.parse(str(flag.default)) == flag.default
    assert len(ALL_FLAGS) == sum(len(flags) for flags in config.FLAGS.values())  # no name twice


def help_of(name, capsys):
    with pytest.raises(SystemExit) as stop:
        run_main(name, '--help')
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize('name', SCRIPTS)
def test_help_shows_the_use_the_main_flags_and_then_the_rest(name, capsys):
    out = help_of(name, capsys)
    explained, accepted = out.split('\nAccepted and ignored here')
    said = {flag: ' '.join(text.split()) for flag, text in re.findall(r'^  --(\w+)((?:.|\n(?!  -|\n))*)', explained, re.M)}
    reads, many = PARSERS[name].reads, PARSERS[name].listed
    assert len(explained.split('main flags:')[0].splitlines()) < 40 and f'python {"-m " * ("." in name)}{name}' in explained
    main = re.findall(r'^  --(\w+)', explained.split('main flags:')[1].split('\n\n')[0], re.M)
    assert 5 <= len(main) <= 15 and main == [flag for flag in ALL_FLAGS if ALL_FLAGS[flag].main and flag in reads]
    assert said.keys() == reads
    for flag in reads:
        text, default = re.sub(r'\s', '', said[flag]), ALL_FLAGS[flag].default
        assert re.sub(r'\s', '', ALL_FLAGS[flag].help) in text and 'VALUE' not in text, flag
        if default is not None:
            shown = ','.join(map(str, default)) if isinstance(default, tuple) else default
            assert f'(default:{shown})' in text, flag
        assert ('several,separatedbycommas' in text) == (flag in many), flag
    named = re.findall(r'--(\w+)', accepted)
    assert named == [*(flag for flag in ALL_FLAGS if flag not in reads and ALL_FLAGS[flag].shared)]


def test_all_scripts_take_one_command_line():
    """Every shared flag is taken by every script, and what a script reads is read back the same."""
    line, values = [], {}
    for flag in ALL_FLAGS.values():
        if flag.shared:
            value = flag.default if flag.default is not None else {
                'seed': 7, 'fit': 'pad', 'prior_training': 'entropy:-1', 'score_map_process': 'random', 'norm_type': 'max', 'threshold_type': 'log'}.get(flag.name, 'x')
            line.append(f'--{flag.name}={",".join(map(str, value)) if isinstance(value, tuple) else value}')
            values[flag.name] = value
    for name in SCRIPTS:
        args, parser = flags_of(name, [*line, '--logger_type=PythonLogger', '--smoothing_ksize=1']), PARSERS[name]
        expected = {key: (value,) if key in parser.listed else value for key, value in values.items() if key in parser.reads}
        assert {key: args[key] for key in expected} == expected and [flag for flag in args.given if flag != 'images'] == sorted(values)
        assert not (values.keys() - parser.reads) & args.keys()


PUBLISHED = """
python main.py --experiment_name=experiment_name/ \\
                --architecture=resnet50 \\
                --attribution_method=CALM-EM \\
                --dataset=CUB \\
                --use_bn=True --large_feature_map=True \\ 
"""  # noqa: W291


@pytest.mark.parametrize('name', SCRIPTS)
def test_a_published_command_is_taken_as_it_is_pasted(name, capsys):
    """A backslash before a blank at the end of a line leaves an argument that is one blank."""
    words = shlex.split(PUBLISHED)
    assert ' ' in words[2:]
    args = flags_of(name, [*words[2:], "--data_root='dataset/'", '--metadata_root="metadata/"'])
    assert (args.attribution_method, args.use_bn, args.large_feature_map) == ('CALM_EM', True, True)
    assert (args.data_root, args.metadata_root) == ('dataset/', 'metadata/')
    assert 'warning: a blank argument is ignored: a line of the command ends in a backslash and a blank' in capsys.readouterr().err


@pytest.mark.parametrize('flags, words', [
    (['--use_load_checkpoint=no', '--load_checkpoint=x'], 'always opens a checkpoint'), (['--load_checkpoint=x'], '')])
def test_an_evaluation_says_that_it_takes_a_checkpoint_whatever_use_load_checkpoint_says(flags, words, capsys):
    flags_of('eval_wsol', flags)
    assert words in (line := capsys.readouterr().out) and bool(line) == bool(words)
    flags_of('main', flags)
    assert not capsys.readouterr().out


@pytest.mark.parametrize('text, value', [*((text, True) for text in ('True', 't', 'YES', 'y', '1')), *((text, False) for text in ('false', 'F', 'no', 'n', '0'))])
def test_booleans(text, value):
    assert flags_of('main', [f'--use_bn={text}']).use_bn is value


@pytest.mark.parametrize('text, expected', [('jointll', ('jointll',)), ('jointll, vanilla,jointll', ('jointll', 'vanilla'))])
def test_inference_takes_several_methods_and_the_evaluations_one(script, text, expected):
    flag = f'--score_map_process={text}'
    assert flags_of('inference', [flag]).score_map_process == expected
    if ',' in text:
        refused(script('eval_wsol', flag), '--score_map_process', 'is not one of')
        refused(script('inference', 'a.jpg', '--score_map_process=jointll,vanila'), '"vanila"', 'did you mean vanilla?')


@pytest.mark.parametrize('text, taken', [('auto', True), ('cuda', True), ('cuda:1', True), ('cuda:', False), ('cuda:x', False), ('cpu:1', False), ('gpu', False)])
def test_devices_are_named_with_their_number(text, taken):
    if taken:
        assert flags_of('main', [f'--device={text}']).device == text
    else:
        with pytest.raises(UserError, match='is not one of auto, cuda'):
            flags_of('main', [f'--device={text}'])


def test_flags_of_pictures_are_inferences_alone(script):
    for flag in ('--target=1', '--output=x', '--contrast'):
        refused(script('eval_wsol', flag), f'unknown flag {flag.split("=")[0]}')


@pytest.mark.parametrize('words, expected', [
    (['30,50'], (30, 50)), (['30', '50'], (30, 50)), (['30, 50 70'], (30, 50, 70)), (['100'], (100,)), (['0'], None), (['101'], None), (['a'], None), (['3_0'], None)])
def test_percentages(words, expected):
    def parse():
        return flags_of('eval_wsol', ['--iou_thresholds', *words]).iou_thresholds
    if expected is None:
        with pytest.raises(UserError, match='is not an integer in .1, 101'):
            parse()
    else:
        assert parse() == expected


@pytest.mark.parametrize('text', ['', ' '])
def test_weights_of_an_empty_name_are_refused(script, text):
    """As from a variable of the shell that is not set: random weights would be trained without a word."""
    refused(script('main', f'--pretrained={text}'), f'--pretrained: "{text}" is neither True nor False nor the path of a file')


def test_numbers_are_bounded_where_the_table_says():
    with pytest.raises(UserError):
        command_line.number(int, 0, True, 10)('10')
    assert command_line.number(float, 0, False)('1e-9') == 1e-9
    for text in ('0', 'inf', 'nan', '-1'):
        with pytest.raises(UserError):
            command_line.number(float, 0, False)(text)


# --- the flags and a checkpoint -------------------------------------------------------------------------

def settings(*flags):
    return network_settings(flags_of('main', list(flags)))


def test_use_bn_and_prior_count_only_where_a_network_takes_them():
    """The published command line states --use_bn=True for a ResNet too, which has no use for it."""
    assert settings('--architecture=resnet50', '--use_bn=True') == settings('--architecture=resnet50')
    assert settings('--architecture=vgg16', '--use_bn=True') != settings('--architecture=vgg16')
    assert settings('--attribution_method=CAM', '--prior=softplus') == settings('--attribution_method=CAM')
    assert settings('--attribution_method=CALM_EM', '--prior=softplus')['prior'] == 'softplus'


@pytest.mark.parametrize('architecture, compared', [('resnet50', False), ('vgg16', True), ('inception_v3', True)])
def test_a_checkpoint_is_contradicted_by_use_bn_only_where_it_matters(architecture, compared):
    network = settings(f'--architecture={architecture}', '--use_bn=False')
    stated = flags_of('eval_wsol', [f'--architecture={architecture}', '--use_bn=True'])
    before = dict(flags_of('main', [f'--architecture={architecture}'])) | network
    again = flags_of('main', [f'--architecture={architecture}', '--use_bn=True'])
    if compared:
        with pytest.raises(UserError, match='x.pth was trained with --use_bn=False, not --use_bn=True'):
            adopt(stated, 'x.pth', {}, network)
        assert changed_settings(again, before) == ['use_bn was False, is True']
    else:
        assert adopt(stated, 'x.pth', {}, network).use_bn is False
        assert changed_settings(again, before) == []


def test_silent_flags_take_what_the_checkpoint_knows_and_stated_ones_stay():
    network = settings('--architecture=resnet18', '--attribution_method=CALM_EM', '--last_stage=layer1')
    known = {'dataset': 'ToyBirds', 'crop_size': 56, 'resize_size': 64}
    args = adopt(flags_of('eval_wsol', ['--crop_size=48', '--attribution_method=CALM_EM']), 'x', known, network)
    assert (args.dataset, args.crop_size, args.resize_size) == ('ToyBirds', 48, 64)
    assert args.architecture == 'resnet18' and args.last_stage == 'layer1'
    assert args.batch_size == ALL_FLAGS['batch_size'].default
    with pytest.raises(UserError, match='--last_stage=layer1, not --last_stage=layer2'):
        adopt(flags_of('eval_wsol', ['--last_stage=layer2']), 'x', known, network)


def test_a_flag_that_the_network_cannot_have_is_refused_and_not_dropped():
    """convnext takes no --last_stage; the checkpoint would win, and the result would not say so."""
    with pytest.raises(UserError, match='x was trained with --last_stage='):
        adopt(flags_of('eval_wsol', ['--last_stage=layer2']), 'x', {}, settings('--architecture=convnext_tiny'))


def test_a_crop_larger_than_the_resized_image_is_refused_where_images_are_cropped(script):
    large = ['--crop_size=300', '--resize_size=256', '--dataset=nowhere/at_all']
    refused(script('main', *large), '--crop_size=300 is larger than --resize_size=256')
    refused(script('main', *large, '--freeze'), 'nowhere/at_all')  # the next thing that is wrong


def test_changed_settings_are_those_that_a_training_keeps():
    before = dict(flags_of('main', ['--seed=1']))
    free = ['--experiment_name=x', '--workers=1', '--device=cpu', '--epochs=9', '--data_root=y', '--pretrained=False', '--seed=1']
    assert changed_settings(flags_of('main', free), before) == []
    changed = ['--seed=2', '--lr=0.5', '--batch_size=3', '--crop_size=100', '--precision=bfloat16', '--dataset=ToyBirds']
    assert changed_settings(flags_of('main', changed), before) == [
        'seed was 1, is 2', 'precision was auto, is bfloat16', 'batch_size was 64, is 3', 'dataset was CUB, is ToyBirds',
        'crop_size was 224, is 100', 'lr was 0.01, is 0.5']
