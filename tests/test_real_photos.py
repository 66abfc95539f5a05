"""Each published network on a handful of CUB's real photos, by the scripts as users run them."""
import json

import pytest
from conftest import shared


@pytest.fixture
def photos(tmp_path):
    """Flags for a CUB of 12 training, 4 val and 10 test photos of classes that form pairs."""
    root = shared('cub10')
    wanted = {'train': 12, 'val': 4, 'test': 10}
    for split, count in wanted.items():
        lines = (root / 'metadata/CUB' / split / 'class_labels.txt').read_text().splitlines()
        by_class = [[line for line in lines if line.endswith(f',{label}')] for label in (3, 8)]  # the pair 4-9
        chosen = [line for group in by_class for line in group[:count // 2]]
        folder = tmp_path / 'meta/CUB' / split
        folder.mkdir(parents=True)
        (folder / 'class_labels.txt').write_text('\n'.join(chosen) + '\n')
        (folder / 'image_ids.txt').write_text('\n'.join(line.rsplit(',', 1)[0] for line in chosen) + '\n')
    return [f'--data_root={root}', f'--metadata_root={tmp_path / "meta"}', '--dataset=CUB', '--pretrained=False',
            '--epochs=1', '--batch_size=12', '--crop_size=112', '--resize_size=128', '--workers=0', '--device=cpu']


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
    result, = (json.loads(path.read_text()) for path in (tmp_path / 'save/result').glob('cue_location_*.json'))
    assert [pair['classes'] for pair in result['pairs']] == [[4, 9]] and result['evaluations'] == 10
    assert 0 <= result['pxap']['parts']['published']['dropped']['2'] <= 100
