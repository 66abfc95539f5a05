"""What the scripts make of a classifier's own preprocessing and of --fit."""
import json

import numpy as np
import pytest
import torch
import torchvision
from conftest import accepted, flags_of, refused, shared
from PIL import Image

import wsol
from dataset.image_folders import images_below
from evaluation import session
from experiment.result_files import key
from experiment.settings import adopt
from reports import rows
from reports.photos import Photos

LITE = 'tf_efficientnet_lite0'


def open_foreign(*flags, script='inference', **options):
    return session.open_network(flags_of(script, ['--workers=0', '--device=cpu', *flags]), or_classifier=True, **options)


@pytest.fixture(scope='module')
def foreign(tmp_path_factory):
    """A function (flags, script, whole) -> the Network of torchvision's ResNet-18 of three classes, as a user saves it."""
    path = tmp_path_factory.mktemp('foreign') / 'mine.pth'
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(num_classes=3).state_dict(), path)
    opened = open_foreign('--architecture=resnet18', f'--load_checkpoint={path}')

    def with_flags(*flags, script='inference', whole=False):
        args = adopt(flags_of(script, flags), path, opened.checkpoint.known, opened.checkpoint.network)
        session.settle_fit(args, opened.checkpoint, whole)
        return session.Network(args, opened.device, opened.checkpoint, opened.model)
    return with_flags


def compare_with_timm(paths):
    """(photos with another top-1, the largest difference of its probability) between timm's own pipeline and ours."""
    timm = pytest.importorskip('timm')
    file = shared('weights', f'{LITE}.pth')
    network = timm.create_model(LITE).eval()
    network.load_state_dict(torch.load(file, weights_only=True))
    theirs = timm.data.create_transform(**timm.data.resolve_model_data_config(network), is_training=False)
    ours = open_foreign(f'--architecture=timm/{LITE}', f'--pretrained={file}')
    differ, largest = 0, 0.0
    with torch.inference_mode():
        for start in range(0, len(paths), 16):
            some = paths[start:start + 16]
            expected = network(torch.stack([theirs(Image.open(path).convert('RGB')) for path in some])).softmax(1)
            images = Photos(some, ours.transform())
            actual = torch.cat([ours.model(batch).softmax(1) for batch, *_ in ours.loader(images)])
            differ += int((actual.argmax(1) != expected.argmax(1)).sum())
            largest = max(largest, float((actual.max(1).values - expected.max(1).values).abs().max()))
    return differ, largest


def test_real_photos_have_the_prediction_of_timms_own_pipeline(tmp_path, monkeypatch):
    """A seeded sample of CUB's photos, and two of other shapes. (All 543 agree: they take a minute.)"""
    root = shared('cub10', 'CUB', 'images')
    monkeypatch.chdir(tmp_path)
    paths = [root / name for name in images_below(root) if name.endswith('.jpg')]
    assert len(paths) == 543
    chosen = np.random.default_rng(0).choice(len(paths), 98, replace=False)
    differ, largest = compare_with_timm([paths[index] for index in chosen] + [shared('photo', f'{name}.png') for name in ('cat', 'cup')])
    assert differ == 0 and largest < 1e-3


@pytest.mark.parametrize('flags, fit, resize_size, crop_size', [
    ([], 'crop', 256, 224), (['--crop_size=112'], 'crop', 128, 112), (['--resize_size=300'], 'crop', 300, 224),
    (['--crop_size=112', '--resize_size=112'], 'crop', 112, 112), (['--fit=squash'], 'squash', 224, 224),
    (['--fit=squash', '--crop_size=96', '--resize_size=256'], 'squash', 96, 96), (['--fit=pad'], 'pad', 224, 224)])
def test_a_foreign_classifier_sees_photos_as_it_was_made_for(foreign, flags, fit, resize_size, crop_size):
    network = foreign(*flags)
    way, expected = network.preprocessing, wsol.preprocessing('resnet18', 'mine.pth')
    assert way == expected | {'fit': fit, 'resize_size': resize_size, 'input_size': crop_size}
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8))
    assert network.transform()(picture).shape == (3, crop_size, crop_size)
    assert network.transform().way == way


def test_annotations_of_whole_photos_take_whole_photos(foreign, capsys):
    assert foreign(whole=True).transform().way | {'fit': 'squash', 'resize_size': 224} == foreign(whole=True).transform().way
    assert 'boxes, masks, parts and score maps belong to whole photos' in capsys.readouterr().out
    for script, more in (('eval_wsol', []), ('eval_pixel_perturb', ['--scoremap_root=x']), ('eval_pixel_perturb', ['--score_map_process=object_mask'])):
        with pytest.raises(wsol.UserError, match='--fit=crop: boxes, masks, parts and score maps belong to whole photos'):
            foreign(*more, '--fit=crop', script=script, whole=not more)
        assert foreign(*more, '--fit=squash', script=script, whole=not more).args.fit == 'squash'
    with pytest.raises(wsol.UserError, match='--crop_size=224 is larger than --resize_size=200'):
        foreign('--resize_size=200')


def test_networks_of_this_project_squash_photos_as_published(tiny_birds, save):
    flags = [*tiny_birds, '--experiment_name=CAM']
    network = session.open_network(flags_of('eval_pixel_perturb', flags))
    plain = network.transform()
    assert plain.way is None and network.args.fit == 'squash' and json.loads(json.dumps(network.preprocessing))['fit'] == 'squash'
    cropped = session.open_network(flags_of('eval_pixel_perturb', [*flags, '--fit=crop']))
    assert cropped.transform().way == cropped.preprocessing | {'fit': 'crop', 'resize_size': 64} and cropped.transform().resize_size == plain.resize_size


def test_results_of_another_fit_have_another_name():
    about = {f'{part}_sha256': part for part in ('images', 'weights', 'truth', 'maps')}
    old, same, cropped, larger = (key(about | {'settings': settings}, resize_size=256) for settings in (
        {}, {'fit': 'squash'}, {'fit': 'crop', 'resize_size': 256}, {'fit': 'crop', 'resize_size': 300}))
    assert old == same and len({old, cropped, larger}) == 3


def test_the_manifest_says_which_part_the_maps_cover(script, foreign, tmp_path):
    """A photo on its side: the box is in pixels of the upright one."""
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)).save(tmp_path / 'turned.jpg', exif=turned)
    flags = ['turned.jpg', '--architecture=resnet18', f'--load_checkpoint={foreign().checkpoint.path}', '--workers=0', '--device=cpu']
    for fit, box in (('crop', [12.5, 62.5, 187.5, 237.5]), ('squash', [0, 0, 200, 300])):
        accepted(script('inference', *flags, f'--fit={fit}', '--format=png,html'), f'photos: fit {fit}')
        manifest = json.loads((tmp_path / 'maps/manifest.json').read_text())
        assert manifest['images'][0]['box'] == box and manifest['settings']['fit'] == manifest['preprocessing']['fit'] == fit
        assert np.load(tmp_path / 'maps/turned_vanilla.npy').shape == (7, 7)
        assert ('dimmed: not seen by the network' in (tmp_path / 'maps/gallery.html').read_text()) == (fit == 'crop')


def test_an_accuracy_stands_in_rows_of_its_fit_alone():
    about = {'dataset': 'mine', 'images_sha256': 'a', 'weights_sha256': 'b', 'images': 2}
    calibration = {'calibration': {'error': 1.0, 'low': 0.5, 'high': 2.0}}
    crop, squash = ({'metric': 'accuracy', 'test_accuracy': value, **calibration, **about, 'settings': {'fit': fit}}
                    for value, fit in ((90.0, 'crop'), (80.0, 'squash')))
    maps = {'metric': 'of maps', **about, 'settings': {'score_map_process': 'vanilla'}}
    of_crop, = (row for row in rows.make_rows([crop, squash], 'x') if row.about['fit'] == 'crop')
    assert of_crop.estimates['accuracy'].value == 90
    row, = rows.make_rows([squash, maps], 'x')
    assert row.about['fit'] == 'squash' and 'accuracy' in row.estimates
    assert len(rows.make_rows([crop, maps], 'x')) == 2


def test_a_training_refuses_another_fit(script):
    refused(script('main', '--fit=crop'), '--fit=crop is for evaluations')
