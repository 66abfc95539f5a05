"""Each kind of network on a handful of CUB's real photos, by the scripts as users run them."""
import pytest
from conftest import accepted, read_result, refused, shared


@pytest.fixture
def photos(tmp_path):
    """Flags for a CUB of two photos a split, of two classes that form a pair."""
    root = shared('cub10')
    for split in ('train', 'val', 'test'):
        lines = (root / 'metadata/CUB' / split / 'class_labels.txt').read_text().splitlines()
        chosen = [next(line for line in lines if line.endswith(f',{label}')) for label in (3, 8)]  # the pair 4-9
        folder = tmp_path / 'meta/CUB' / split
        folder.mkdir(parents=True)
        (folder / 'class_labels.txt').write_text('\n'.join(chosen) + '\n')
        (folder / 'image_ids.txt').write_text('\n'.join(line.rsplit(',', 1)[0] for line in chosen) + '\n')
    return [f'--data_root={root}', f'--metadata_root={tmp_path / "meta"}', '--dataset=CUB', '--pretrained=False',
            '--epochs=1', '--batch_size=12', '--crop_size=80', '--resize_size=96', '--workers=0', '--device=cpu', '--seed=0']


@pytest.mark.parametrize('architecture, method, process', [
    ('resnet50', ['--attribution_method=CALM_EM', '--large_feature_map'], 'jointll'),
    ('vgg16', ['--attribution_method=CALM_ML', '--use_bn', '--large_feature_map'], 'jointll-superclass'),
    ('inception_v3', ['--attribution_method=CALM_EM', '--use_bn'], 'backprop'),
    ('convnext_tiny', ['--attribution_method=CAM'], 'grad_cam'),
])
def test_trains_a_step_and_evaluates(script, photos, tmp_path, architecture, method, process):
    accepted(script('main', *photos, *method, f'--architecture={architecture}'))
    cue, erased = (script(name, *photos, f'--score_map_process={process}') for name in ('eval_cue_location', 'eval_pixel_perturb'))
    assert erased[0] == 0, erased
    result = read_result(tmp_path / 'save/result', 'pixel_perturb')
    assert (result['settings']['architecture'], result['settings']['score_map_process']) == (architecture, process)
    assert result['images'] == 2 and result['accuracy'] in (0, 50, 100)
    if 'superclass' in process:  # all of CUB is one superclass, in which A - B is zero everywhere
        refused(cue, 'one superclass')
        return
    assert cue[0] == 0, cue
    result = read_result(tmp_path / 'save/result', 'cue_location')
    pxap = result['pxap']['parts']
    assert [pair['classes'] for pair in result['pairs']] == [[4, 9]] and result['images'] == result['evaluations'] == 2
    assert pxap['published'] == pxap['per pair']  # there is one pair
    assert 0 < pxap['per pair, all pixels']['2'] < 100
