"""Each published network on a handful of CUB's real photos, by the scripts as users run them."""
import numpy as np
import pytest
from conftest import read_result, shared

from wsol.cub import CueAnnotations


@pytest.fixture
def photos(tmp_path):
    """Flags for a CUB of 4 training, 2 val and 4 test photos of classes that form a pair."""
    root = shared('cub10')
    wanted = {'train': 4, 'val': 2, 'test': 4}
    for split, count in wanted.items():
        lines = (root / 'metadata/CUB' / split / 'class_labels.txt').read_text().splitlines()
        by_class = [[line for line in lines if line.endswith(f',{label}')] for label in (3, 8)]  # the pair 4-9
        chosen = [line for group in by_class for line in group[:count // 2]]
        folder = tmp_path / 'meta/CUB' / split
        folder.mkdir(parents=True)
        (folder / 'class_labels.txt').write_text('\n'.join(chosen) + '\n')
        (folder / 'image_ids.txt').write_text('\n'.join(line.rsplit(',', 1)[0] for line in chosen) + '\n')
    return [f'--data_root={root}', f'--metadata_root={tmp_path / "meta"}', '--dataset=CUB', '--pretrained=False',
            '--epochs=1', '--batch_size=12', '--crop_size=80', '--resize_size=96', '--workers=0', '--device=cpu', '--seed=0']


@pytest.mark.parametrize('architecture, method, process', [
    ('resnet50', ['--attribution_method=CALM_EM', '--large_feature_map'], 'jointll'),
    ('vgg16', ['--attribution_method=CALM_ML'], 'gtcond'),
    ('vgg16', ['--attribution_method=CALM_EM', '--use_bn', '--large_feature_map'], 'jointll-superclass'),
    ('inception_v3', ['--attribution_method=CALM_EM', '--use_bn'], 'jointll'),
    ('inception_v3', ['--attribution_method=CAM', '--large_feature_map'], 'vanilla'),
    ('convnext_tiny', ['--attribution_method=CAM'], 'grad_cam'),
    ('resnet18', ['--attribution_method=CALM_ML'], 'backprop'),
])
def test_trains_a_step_and_evaluates(script, photos, tmp_path, architecture, method, process):
    train = [*photos, *method, f'--architecture={architecture}']
    code, out, err = script('main', *train)
    assert code == 0, err
    for evaluation in ('eval_cue_location', 'eval_pixel_perturb'):
        code, out, err = script(evaluation, *photos, f'--score_map_process={process}')
        assert code == 0, err
    cue, erased = (read_result(tmp_path / 'save/result', metric) for metric in ('cue_location', 'pixel_perturb'))
    assert [pair['classes'] for pair in cue['pairs']] == [[4, 9]] and cue['evaluations'] == 4
    for result in (cue, erased):
        assert result['settings']['architecture'] == architecture and result['settings']['score_map_process'] == process
        assert result['images'] == 4
    assert erased['accuracy'] in (0, 25, 50, 75, 100)
    by_protocol = cue['pxap']['parts']
    assert by_protocol['published'] == by_protocol['per_pair']  # there is one pair
    counted = by_protocol['per_pair']['counted']['2']
    if process == 'jointll-superclass':
        # all of CUB is one superclass: map_A - map_B is zero everywhere, and finds the cue as often as chance does
        assert counted == pytest.approx(share_of_the_cue(photos, cue['pairs'][0]), rel=1e-9)
    else:
        assert 0 < counted < 100


def share_of_the_cue(photos, pair):
    """The pixels of the test images that show a differing part, in percent."""
    root, lists = (next(flag.split('=')[1] for flag in photos if name in flag) for name in ('data_root', 'metadata_root'))
    annotations, cues = CueAnnotations(f'{root}/CUB'), []
    with open(f'{lists}/CUB/test/image_ids.txt') as file:
        for image_id in file.read().split():
            parts = next(found.parts for found in annotations.pairs if [found.first + 1, found.second + 1] == pair['classes'])
            cues.append(np.isin(annotations.partition(image_id, 80), parts) & annotations.object_mask(image_id, 80))
    return 100 * np.mean(cues)
