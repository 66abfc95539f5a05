"""Several processes compute what one does; one that fails ends all; what a scheduler's signal asks for is done by all."""
import json
import shutil

import pytest
import several
import torch
from conftest import files_below, roots_of, same, without

from experiment import weights
from wsol import networks


def training_flags(birds):
    """Of a training of 36 images in batches of 7: the sixth step of an epoch has one image, and not all a share."""
    return ['main', *birds, '--architecture=resnet34', '--pretrained=False', '--batch_size=7', '--epochs=2',
            '--attribution_method=CALM_EM', '--experiment_name=plain']


@pytest.fixture(scope='module')
def forks():
    with several.Forks() as started:
        yield started


@pytest.fixture(scope='module')
def by_number(few_birds, trained, forks, tmp_path_factory):
    """{number of processes: the folder in which a training and all evaluations ran}. Two by torchrun, with less to do."""
    root, birds = tmp_path_factory.mktemp('several'), few_birds
    flags = [*birds, '--batch_size=5', '--experiment_name=CALM_EM']
    photos = sorted((roots_of(birds)[0] / 'ToyBirds/images').rglob('*_test_*.jpg'))[:5]
    shown = without(birds, 'dataset', 'data_root', 'metadata_root', 'resize_size', 'crop_size')
    few = [training_flags(birds), ['main', *flags, '--is_train=False'], ['eval_cue_location', *flags]]
    tasks = [*few, ['eval_wsol', *flags, '--cam_curve_interval=0.02'], ['eval_pixel_perturb', *flags],
             ['inference', *map(str, photos), *shown, '--batch_size=2', '--load_checkpoint=CALM_EM', '--format=png,html',
              '--picture_size=64', '--check'], ['research.interventions', *flags, '--contrast_method=log-odds'],
             ['research.worth', 'save/CALM_EM', '--methods=random,object_mask', '--images=1', '--road=0', *birds]]
    folders = {count: root / str(count) for count in (1, 2, 3)}
    for folder in folders.values():
        shutil.copytree(trained / 'CALM_EM', folder / 'save/CALM_EM')
    two = several.torchrun(folders[2], few, 2)
    try:
        forks.start(folders[3], tasks, 3)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folders[1])
            patch.setitem(networks.ARCHITECTURES, 'resnet34', several.PLAIN['resnet34'])
            several.run(tasks)
        for code, _, err in forks.ended():
            assert code == 0, err
        _, err = two.communicate(timeout=several.LIMIT)
        assert two.returncode == 0, err
    finally:
        two.kill()
        two.communicate()
    return folders


@pytest.mark.parametrize('count', [2, 3])
def test_results_of_several_processes_are_those_of_one_to_the_byte(by_number, count):
    """18 images in batches of 5: neither the images nor the 4 batches can be shared out evenly."""
    one, many = ({f'{part}/{name}': content for part in ('save/CALM_EM', 'maps', 'worth')
                  for name, content in files_below(by_number[number] / part).items()} for number in (1, count))
    assert many.keys() == one.keys() if count == 3 else many.keys() < one.keys()
    assert [name for name in many if one[name] != many[name]] == []
    kinds = {name.split('/')[-1].split('_ToyBirds')[0] for name in many}
    assert kinds >= ({'accuracy', 'cue_location'} if count == 2 else
                     {'accuracy', 'wsol', 'cue_location', 'pixel_perturb', 'interventions', 'worth.csv'})
    assert count == 2 or len(json.loads(many['maps/manifest.json'])['images']) == 5


@pytest.mark.parametrize('count', [2, 3])
def test_several_processes_train_the_network_of_one(by_number, count):
    """To the rounding of float32: only the order differs in which the gradients of 12 updates are summed."""
    one, many = (torch.load(by_number[number] / 'save/plain' / weights.FILE, weights_only=True) for number in (1, count))
    assert one['epoch'] == many['epoch'] == 2
    for name, value in one['state_dict'].items():
        torch.testing.assert_close(many['state_dict'][name], value, rtol=1e-4, atol=1e-6, msg=name)
    for expected, line in zip(one['log'], many['log'], strict=True):
        assert all(line[name] == expected[name] for name in ('lr', 'train_accuracy', 'val_accuracy')) and line.keys() == expected.keys()
        assert line['train_loss'] == pytest.approx(expected['train_loss'], rel=1e-5)
    results = json.loads((by_number[count] / 'save/plain/results.json').read_text())
    assert results['processes'] == count


def test_rank_0_alone_writes_a_training(by_number):
    """Three processes leave what one leaves, and no more."""
    assert files_below(by_number[3] / 'save/plain').keys() == files_below(by_number[1] / 'save/plain').keys()


def test_a_signal_to_one_process_stops_both_at_one_step_and_both_go_on_from_it(few_birds, by_number, forks, tmp_path):
    """As two processes from the start to the end: to the bit, on a CPU."""
    forks.start(tmp_path, [training_flags(few_birds)], 2, fault='1,9,stop')
    first, second = forks.ended()
    assert first[0] == second[0] == 143 and second[1:] == ('', '')
    assert 'stopped by SIGTERM after 1 epochs and 3 steps, which are saved in save/plain' in first[2]
    assert len((tmp_path / 'save/plain/log.jsonl').read_text().splitlines()) == 1
    forks.start(tmp_path, [training_flags(few_birds)], 2)
    assert [code for code, *_ in forks.ended()] == [0, 0]
    straight, resumed = (torch.load(folder / 'save/plain' / weights.FILE, weights_only=True)
                         for folder in (by_number[2], tmp_path))
    for key in ('state_dict', 'optimizer'):
        assert same(straight[key], resumed[key]), key
    speed = 'train_images_per_second'
    assert [line | {speed: 0} for line in straight['log']] == [line | {speed: 0} for line in resumed['log']]


@pytest.mark.parametrize('kind, code', [('error', 2), ('kill', -9)])
def test_a_process_that_fails_ends_the_others_and_one_line_says_why(few_birds, forks, tmp_path, kind, code):
    forks.start(tmp_path, [training_flags(few_birds)], 2, fault=f'1,8,{kind}')
    first, second = forks.ended()
    errors = [line for line in (first[2] + second[2]).splitlines() if line.startswith('error: ')]
    assert second[0] == code and first[0] in (1, 2)
    assert errors == ['error: process 1 cannot go on' if kind == 'error' else
                      'error: another process of this run has ended; what was saved is kept']
    assert 'Traceback' not in first[2] + second[2]
    assert torch.load(tmp_path / 'save/plain' / weights.FILE, weights_only=True)['epoch'] == 1
    assert not list((tmp_path / 'save/plain').glob('.*'))  # neither a lock nor a temporary file
