"""inference.py: maps of own images, and of a loader."""
import html
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, open_birds, refused
from PIL import Image

import data_loaders
import inference
from dataset import image_files
from dataset.image_files import eval_transform, open_upright
from evaluation.map_sources import NetworkMaps
from experiment import weights
from wsol.attribution.contrast import contrast_maps
from wsol.attribution.maps import attribution_maps
from wsol.errors import UserError


@pytest.fixture(scope='module')
def checkpoint(trained):
    """A folder with a CALM_EM checkpoint of a tiny ToyBirds."""
    return trained / 'CALM_EM'


@pytest.fixture
def photos(tmp_path):
    """A folder of images of many sizes and modes."""
    rng = np.random.default_rng(0)
    folder = tmp_path / 'photos'
    (folder / 'below').mkdir(parents=True)
    Image.fromarray(rng.integers(0, 256, (30, 90, 3), dtype=np.uint8)).save(folder / 'wide.jpg')
    Image.fromarray(rng.integers(0, 256, (70, 20), dtype=np.uint8)).save(folder / 'below' / 'grey.png')
    Image.fromarray(rng.integers(0, 256, (8, 9, 4), dtype=np.uint8)).save(folder / 'wide.png')
    Image.fromarray(rng.integers(0, 65536, (40, 40), dtype=np.uint16)).save(folder / 'deep.tiff')
    (folder / 'notes.txt').write_text('not an image')
    return folder


def test_every_image_gets_an_overlay_a_map_and_an_entry(script, checkpoint, photos, tmp_path):
    code, out, err = script('inference', photos, f'--load_checkpoint={checkpoint}', '--workers=0', '--score_map_process=jointll',
                            '--contrast', '--output=out', '--device=cpu')
    assert code == 0, err
    manifest = json.loads((tmp_path / 'out/manifest.json').read_text())
    assert [entry['image'].split('photos/')[1] for entry in manifest['images']] == [
        'below/grey.png', 'deep.tiff', 'wide.jpg', 'wide.png']
    assert manifest['methods'] == {'jointll': 'p(A, z | x) per cell'}
    assert manifest['versions']['torch'] == torch.__version__ and manifest['weights_sha256']
    for entry in manifest['images']:
        other = entry['contrast']
        assert entry['class_name'].startswith('0') and entry['class'] == entry['predicted']
        assert other['class'] != entry['class'] and other['probability'] <= entry['probability']
        (name,), (other_name,) = entry['maps'].values(), other['maps'].values()
        values, contrast = (np.load(tmp_path / 'out' / own) for own in (name, other_name))
        assert values.sum() == pytest.approx(entry['probability'], rel=1e-5)  # probability units
        assert contrast.sum() == pytest.approx(entry['probability'] - other['probability'], rel=1e-4, abs=1e-6)
        with Image.open(tmp_path / 'out' / entry['picture']) as picture:
            assert picture.format == 'PNG' and min(picture.size) > 300


def test_target_and_contrast_can_be_named(script, checkpoint, photos, tmp_path):
    script('inference', photos / 'wide.jpg', f'--load_checkpoint={checkpoint}', '--workers=0', '--score_map_process=jointll',
           '--target=Toy_B3', '--contrast=4', '--output=out')
    entry, = json.loads((tmp_path / 'out/manifest.json').read_text())['images']
    assert (entry['class'], entry['class_name'], entry['contrast']['class']) == (6, '007.Toy_B3', 4)


@pytest.mark.parametrize('process', ['vanilla', 'backprop', 'smooth_grad', 'jointll-superclass', 'random'])
def test_other_methods_write_maps_too(script, checkpoint, photos, tmp_path, process):
    code, _, err = script('inference', photos / 'wide.jpg', f'--load_checkpoint={checkpoint}', '--workers=0', '--output=out',
                          '--seed=1', f'--score_map_process={process}', '--smooth_grad_nr_iter=2')
    assert code == 0, err
    assert np.isfinite(np.load(tmp_path / f'out/wide_{process}.npy')).all()
    assert (tmp_path / f'out/wide_{process}.png').is_file()


def test_exif_orientation_is_honoured(tmp_path):
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :10] = 250
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter clockwise
    Image.fromarray(pixels).save(tmp_path / 'a.png', exif=exif)
    upright = np.asarray(open_upright(tmp_path / 'a.png'))
    assert upright.shape == (40, 20, 3) and (upright[:10] > 200).all() and (upright[10:] < 50).all()


@pytest.mark.parametrize('name', ['a.jpg', 'a.png'])
def test_a_damaged_exif_block_is_no_damaged_photo(name, tmp_path):
    Image.new('RGB', (40, 20), 'red').save(tmp_path / name, exif=b'Exif\0\0no TIFF header at all', dpi=(72, 72))
    assert open_upright(tmp_path / name).size == image_files.upright_size(tmp_path / name) == (40, 20)


def test_transparency_is_white_and_16_bits_are_scaled(tmp_path):
    Image.new('RGBA', (5, 5), (200, 0, 0, 0)).save(tmp_path / 'clear.png')
    assert (np.asarray(open_upright(tmp_path / 'clear.png')) == 255).all()
    Image.fromarray(np.full((5, 5), 32768, np.uint16)).save(tmp_path / 'deep.png')
    assert (np.asarray(open_upright(tmp_path / 'deep.png')) == 127).all()


def test_a_batchs_probabilities_classes_and_maps_come_from_one_forward(checkpoint, tiny_birds, forwards):
    model, _ = weights.load_model(checkpoint)
    images, _ = open_birds(tiny_birds, 'val')
    source, choose = NetworkMaps(images, model, 'jointll'), inference.class_chooser(None, inference.RUNNER_UP)
    batches = [source(batch, indices, choose) for batch, _, indices in data_loaders.make_loader(images, 5, 0, torch.device('cpu'))]
    assert forwards == [5, 5, 5, 3]
    batch = torch.stack([images[index][0] for index in range(5)])
    with torch.no_grad():
        probs = model(batch).softmax(1)
        best = probs.topk(2, dim=1).indices
    torch.testing.assert_close(batches[0].probs, probs)
    assert torch.equal(batches[0].classes, best)
    torch.testing.assert_close(batches[0].maps, attribution_maps(model, batch, best, 'jointll'))


def test_a_photo_goes_through_the_network_once(script, checkpoint, photos, forwards):
    code, _, err = script('inference', photos, f'--load_checkpoint={checkpoint}', '--workers=0', '--contrast', '--batch_size=3', '--output=out')
    assert code == 0 and forwards == [3, 1], err


@pytest.mark.parametrize('target, contrast, expected', [
    (None, None, [[2], [0]]), (None, 'runner-up', [[2, 1], [0, 2]]), (0, 'runner-up', [[0, 2], [0, 2]]),
    (2, 'runner-up', [[2, 1], [2, 0]]), (1, 0, [[1, 0], [1, 0]]), (None, 1, [[2, 1], [0, 1]])])
def test_classes_are_chosen_from_the_probabilities(target, contrast, expected):
    probs = torch.tensor([[.1, .3, .6], [.5, .2, .3]])
    assert inference.class_chooser(target, contrast)(probs).tolist() == expected


@pytest.mark.parametrize('text, names, expected', [
    ('3', (), 3), ('b', ['a', 'b'], 1), ('Laysan', ['001.Black', '002.Laysan_Albatross'], 1),
    ('2', ['1', '2', '3', '4'], 1), ('0', ['1', '2', '3'], 0),       # an exact name, then a number
    ('1', ['a1', 'b', 'c'], 1), ('01', ['a', '01', '1'], 1),         # a number before a part of a name
    ('Crow', ['Crow', 'Fish_Crow'], 0), ('fish', ['Crow', 'Fish_Crow'], 1)])  # exact before a part, whatever its case
def test_classes_are_found_by_exact_name_then_number_then_part(text, names, expected):
    assert inference.resolve_class(text, names, 4) == expected


@pytest.mark.parametrize('text, names, words', [
    ('crow', ['Fish_Crow', 'Hooded_Crow'], ['names 2 classes: Fish_Crow, Hooded_Crow', '0 to 3']),
    ('Crow', ['Crow', 'b', 'Crow'], ['names 2 classes: Crow, Crow']), ('2', ['2', '2', 'c'], ['names 2 classes: 2, 2']),
    ('owl', ['a', 'b'], ['names no class']), ('4', ['a', 'b'], ['class 4 is out of range', '0 to 3'])])
def test_what_names_no_class_or_several_is_refused(text, names, words):
    with pytest.raises(UserError) as error:
        inference.resolve_class(text, names, 4)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize('flags, words', [
    (['nowhere.jpg'], ['nowhere.jpg', 'no such image']), (['empty'], ['empty holds no images']),
    (['photos/notes.txt'], ['notes.txt does not open']), (['photos/wide.jpg', '--target=99'], ['99', '0 to 17']),
    (['photos/wide.jpg', '--contrast=Toy'], ['"Toy" names 18 classes']),
    (['photos/wide.jpg', '--contrast=cat'], ['"cat" names no class']),
    (['photos/wide.jpg', '--target=runner-up'], ['"runner-up" names no class', '0 to 17']),
    (['photos/wide.jpg', '--score_map_process=object_mask'], ['object_mask']),
    (['photos/wide.jpg', '--score_map_process=jointl'], ['jointll']),
    (['photos/wide.jpg', '--score_map_method=backprop', '--score_map_process=jointll'], ['contradicts']),
])
def test_mistakes(script, checkpoint, photos, tmp_path, flags, words):
    (tmp_path / 'empty').mkdir()
    code, _, err = script('inference', *flags, f'--load_checkpoint={checkpoint}', '--workers=0')
    assert code == 2 and 'Traceback' not in err
    assert all(word in err for word in words), err
    assert not (tmp_path / 'maps' / 'manifest.json').exists()


def test_without_a_checkpoint_the_way_without_training_is_said(script, photos, tmp_path):
    refused(script('inference', 'photos/wide.jpg'), 'no checkpoint', '--architecture=resnet50')


def test_two_files_of_one_name_do_not_overwrite_each_other(tmp_path):
    from reports import photos
    for folder in ('a', 'b'):
        (tmp_path / folder).mkdir()
        Image.new('RGB', (4, 4)).save(tmp_path / folder / 'x.png')
    given = [str(tmp_path / name) for name in ('a/x.png', 'b/x.png', 'a/x.png')]
    assert list(photos.find_images(given, 'maps')) == ['a-x', 'b-x']
    with pytest.raises(UserError, match=r'all images of .*b lie in .*: choose another --output'):
        photos.find_images([str(tmp_path / 'b')], tmp_path)


def test_a_checkpoint_without_names_numbers_its_classes(tmp_path):
    assert inference.Album(tmp_path, [], ['jointll']).class_name(3) == 'class 3'
    assert inference.Album(tmp_path, ['a', ''], ['jointll']).class_name(1) == 'class 1'  # a class without images
    with pytest.raises(UserError, match='no class names'):
        inference.resolve_class('albatross', [], 5)


def test_broken_photos_stop_or_are_left_out(script, checkpoint, photos, tmp_path):
    (photos / 'broken.jpg').write_bytes(b'x')
    flags = [photos, f'--load_checkpoint={checkpoint}', '--workers=0', '--score_map_process=jointll', '--output=out']
    code, _, err = script('inference', *flags)
    assert code == 2 and 'broken.jpg does not open' in err
    code, _, err = script('inference', *flags, '--skip_broken')
    assert code == 0 and '1 of 5 images of yours do not open and are left out' in err
    assert len(json.loads((tmp_path / 'out/manifest.json').read_text())['images']) == 4


def test_its_own_pictures_are_not_explained(script, checkpoint, photos):
    flags = [photos, f'--load_checkpoint={checkpoint}', '--workers=0', '--score_map_process=jointll', f'--output={photos / "maps"}']
    for _ in range(2):
        assert script('inference', *flags)[0] == 0
        assert len(json.loads((photos / 'maps/manifest.json').read_text())['images']) == 4


@pytest.mark.parametrize('flags, words', [
    (['--target=5', '--contrast=Toy_B2'], ['zero everywhere']), (['--scoremap_root=x'], ['for the evaluations']),
    (['--score_map_process=object_mask'], ['for the evaluations']), (['--seed=1', 'b.jpg'], ['"b.jpg" belongs to no flag'])])
def test_flags_that_would_be_ignored_are_refused(script, checkpoint, photos, flags, words):
    code, _, err = script('inference', photos / 'wide.jpg', f'--load_checkpoint={checkpoint}', '--workers=0', *flags)
    assert code == 2 and all(word in err for word in words), err


def test_contrast_does_not_swallow_the_photo(script, checkpoint, photos, tmp_path):
    """Behind --contrast a file is an image, and the contrast is the runner-up; the command says so."""
    code, out, err = script('inference', photos / 'wide.png', f'--load_checkpoint={checkpoint}', '--workers=0', '--output=out',
                            '--contrast', photos / 'wide.jpg')
    assert code == 0 and 'taken for images' in out, err
    entries = json.loads((tmp_path / 'out/manifest.json').read_text())['images']
    assert len(entries) == 2 and all(entry['contrast']['class'] != entry['class'] for entry in entries)


def test_several_methods_stand_side_by_side(script, checkpoint, photos, tmp_path):
    code, _, err = script('inference', photos / 'wide.jpg', f'--load_checkpoint={checkpoint}', '--workers=0', '--output=out',
                          '--score_map_process=jointll,saliency,grad_cam', '--contrast=4')
    assert code == 0, err
    names = {path.name for path in (tmp_path / 'out').iterdir()}
    assert names == {'manifest.json', 'wide_jointll+saliency+grad_cam_contrast.png', 'wide_jointll.npy', 'wide_saliency.npy',
                     'wide_grad_cam.npy', 'wide_jointll_difference.npy', 'wide_grad_cam_difference.npy'}


@pytest.mark.parametrize('method', [None, 'evidence', 'log-odds', 'backprop', 'backprop-difference'])
def test_a_contrast_method_is_the_librarys(script, checkpoint, photos, tmp_path, method):
    """The one that is asked for, and where none is, the head's own, which the command says."""
    code, out, err = script('inference', photos / 'wide.jpg', f'--load_checkpoint={checkpoint}', '--workers=0', '--output=out',
                            f'--contrast_method={method}' if method else '--contrast', '--device=cpu')
    assert code == 0, err
    assert ('the contrast is prior-log-odds' in out) == (method is None)
    manifest = json.loads((tmp_path / 'out/manifest.json').read_text())
    assert manifest['settings']['contrast_method'] == (method or 'prior-log-odds')
    entry, = manifest['images']
    model, found = weights.load_model(checkpoint)
    image = eval_transform(found.known['crop_size'])(open_upright(photos / 'wide.jpg'))[None]
    classes = torch.tensor([entry['class']]), torch.tensor([entry['contrast']['class']])
    expected = contrast_maps(model, image, *classes, method)[0].detach().numpy()
    own = np.load(tmp_path / 'out' / entry['contrast']['maps'][f'{method or "prior-log-odds"}_contrast'])
    np.testing.assert_allclose(own, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    if method == 'evidence':
        odds = np.log(entry['probability'] / entry['contrast']['probability'])
        assert own.sum() == pytest.approx(odds, abs=1e-3)


def test_a_photo_of_a_hundred_megapixels_takes_less_than_a_gigabyte(checkpoint, tmp_path):
    """The script in a process of its own, whose largest memory the system tells: the libraries alone take half of it."""
    Image.new('RGB', (12000, 9000), 'tan').save(tmp_path / 'large.jpg')
    command = [sys.executable, 'inference.py', tmp_path / 'large.jpg', f'--load_checkpoint={checkpoint}', '--workers=0',
               '--device=cpu', f'--output={tmp_path / "out"}', '--picture_size=4000', '--contrast']
    tell = 'import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); ' \
           'print("took", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)'
    finished = subprocess.run([sys.executable, '-c', tell, *map(str, command)], cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    unit = 1 if sys.platform == 'darwin' else 1024
    assert int(finished.stdout.split('took')[1]) * unit < 1e9
    assert len(list((tmp_path / 'out').glob('*.png'))) == 1


# --- the page ---------------------------------------------------------------------------------------------


@pytest.fixture
def page(script, checkpoint, photos, tmp_path):
    """The path of a page of four photos with two methods."""
    code, out, err = script('inference', photos, f'--load_checkpoint={checkpoint}', '--workers=0', '--output=out', '--format=html',
                            '--score_map_process=jointll,grad_cam', '--contrast', '--top_k=3')
    assert code == 0 and 'gallery.html' in out, err
    assert not list((tmp_path / 'out').glob('*.png'))
    return tmp_path / 'out' / 'gallery.html'


def test_every_class_that_the_page_offers_has_a_map(script, checkpoint, photos, monkeypatch):
    """With --top_k=1, too, where a contrast adds a second class."""
    from reports import gallery
    shown, add = [], gallery.Gallery.add

    def keep(self, name, picture, classes, maps):
        shown.append((len(classes), [len(own) for own in maps]))
        return add(self, name, picture, classes, maps)
    monkeypatch.setattr(gallery.Gallery, 'add', keep)
    for flags, expected in (([], (1, [1])), (['--contrast_method=log-odds'], (2, [2, 1])), (['--contrast_method=difference'], (2, [2]))):
        code, _, err = script('inference', photos / 'wide.jpg', f'--load_checkpoint={checkpoint}', '--workers=0', '--output=out',
                              '--format=html', '--score_map_process=jointll', '--top_k=1', *flags)
        assert code == 0 and shown.pop() == expected, err


def test_the_page_needs_nothing_from_elsewhere(page):
    text = page.read_text()
    assert not re.search(r'(?:src|href)\s*=\s*["\'](?!data:|#)', text) and 'http-equiv="refresh"' not in text
    assert not re.search(r'url\((?!["\']?data:)|@import|fetch\(|XMLHttpRequest|import\(', text)


CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


@pytest.mark.skipif(CHROMIUM is None, reason='the page is tried in a browser: no chromium or google-chrome is installed')
def test_the_page_works_in_a_browser(page, tmp_path):
    """Loaded from a file without a network: the photos, methods and classes are there, keys change what is shown, and the
    script ends without an error."""
    probe = """
    <script>
    window.onerror = (message) => document.title = 'error: ' + message;
    addEventListener('load', () => setTimeout(() => {
      const texts = () => document.body.innerText;
      const before = texts();
      for (const key of ['ArrowRight', 'ArrowDown'])
        document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: key, bubbles: true}));
      const report = document.createElement('pre');
      report.id = 'report';
      report.textContent = JSON.stringify({title: document.title, changed: before !== texts(), text: before,
        sliders: document.querySelectorAll('input[type=range]').length,
        canvases: document.querySelectorAll('canvas').length});
      document.body.append(report);
    }, 500));
    </script></body>"""
    copy = tmp_path / 'probe.html'
    # the page's own policy lets no other script in
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', '', page.read_text())
    copy.write_text(text.replace('</body>', probe))
    finished = subprocess.run([CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--virtual-time-budget=8000',
                               f'--user-data-dir={tmp_path / "profile"}', '--dump-dom', f'file://{copy}'],
                              capture_output=True, text=True, timeout=120, check=True)
    report = json.loads(html.unescape(re.search(r'<pre id="report">(.*?)</pre>', finished.stdout, re.S)[1]))
    assert not report['title'].startswith('error'), report
    assert report['sliders'] >= 1 and report['canvases'] >= 1
    assert all(word in report['text'] for word in ('jointll', 'grad_cam', 'Toy_')), report
    assert report['changed'], report
