"""Each published network on a handful of CUB's real photos, by the scripts as users run them."""
import pytest
from conftest import read_result, refused, shared


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
    if process == 'jointll-superclass':  # all of CUB is one superclass, in which A - B is zero everywhere
        refused(script('eval_cue_location', *photos, f'--score_map_process={process}'), 'one superclass')
    else:
        code, out, err = script('eval_cue_location', *photos, f'--score_map_process={process}')
        assert code == 0, err
        check_cue_location(read_result(tmp_path / 'save/result', 'cue_location'), architecture, process)
    code, out, err = script('eval_pixel_perturb', *photos, f'--score_map_process={process}')
    assert code == 0, err
    erased = read_result(tmp_path / 'save/result', 'pixel_perturb')
    check_settings(erased, architecture, process)
    assert erased['accuracy'] in (0, 25, 50, 75, 100)


def check_settings(result, architecture, process):
    assert result['settings']['architecture'] == architecture and result['settings']['score_map_process'] == process
    assert result['images'] == 4


def check_cue_location(cue, architecture, process):
    check_settings(cue, architecture, process)
    assert [pair['classes'] for pair in cue['pairs']] == [[4, 9]] and cue['evaluations'] == 4
    by_count = cue['pxap']['parts']
    assert by_count['published'] == by_count['per pair']  # there is one pair
    assert 0 < by_count['per pair, all pixels']['2'] < 100
