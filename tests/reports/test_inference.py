"""inference.py: maps of a user's photos, its page, and the files that it must not replace."""
import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, accepted, files_below, refused
from PIL import Image

import inference
from dataset import image_files
from dataset.image_files import open_upright
from dataset.transforms import eval_transform
from experiment import weights
from reports import gallery, photos
from wsol.attribution.contrast import contrast_maps
from wsol.errors import UserError


@pytest.fixture(scope='module')
def checkpoint(trained):
    """A folder with a CALM_EM checkpoint of a tiny ToyBirds."""
    return trained / 'CALM_EM'


@pytest.fixture
def infer(script, checkpoint):
    """Call inference.py on the checkpoint, with small pictures, into out/ -> (exit code, stdout, stderr)."""
    def call(*flags):
        return script('inference', f'--load_checkpoint={checkpoint}', '--workers=0', '--device=cpu', '--picture_size=64',
                      '--output=out', *flags)
    return call


@pytest.fixture
def explain(infer, tmp_path):
    """Likewise, and it must succeed -> (the manifest, stdout)."""
    def call(*flags):
        out = accepted(infer(*flags))
        return json.loads((tmp_path / 'out/manifest.json').read_text()), out
    return call


@pytest.fixture
def folder(tmp_path):
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


# --- photos -------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['a.jpg', 'a.png'])
def test_a_damaged_exif_block_is_no_damaged_photo(name, tmp_path):
    Image.new('RGB', (40, 20), 'red').save(tmp_path / name, exif=b'Exif\0\0no TIFF header at all', dpi=(72, 72))
    assert open_upright(tmp_path / name).size == image_files.upright_size(tmp_path / name) == (40, 20)


def test_names_that_some_file_systems_take_for_one_are_told_apart():
    names = photos.unique_names([('a', Path(name)) for name in ('Photo.png', 'photo.jpg', 'caf\u00e9.png', 'cafe\u0301.jpg')])
    assert names == ['Photo-png', 'photo-jpg', 'caf\u00e9-png', 'cafe\u0301-jpg']


def test_two_files_of_one_name_do_not_overwrite_each_other(tmp_path):
    for name in ('a', 'b'):
        (tmp_path / name).mkdir()
        Image.new('RGB', (4, 4)).save(tmp_path / name / 'x.png')
    given = [str(tmp_path / name) for name in ('a/x.png', 'b/x.png', 'a/x.png')]
    assert list(photos.find_images(given, 'maps')) == ['a-x', 'b-x']
    assert list(photos.find_images([str(tmp_path / 'a/x.png')], 'maps')) == ['x']
    assert photos.unique_names([('a', Path(f'b/{"x" * 240}{end}.png')) for end in (1, 2)]) == [
        f'a-b/{"x" * 100}-png-1', f'a-b/{"x" * 100}-png-2']  # a name with its method's must not be too long for a file
    assert photos.unique_names([(f'{"f" * 250}{end}', Path(f'x.{"s" * 200}')) for end in (1, 2)]) == [
        f'{"f" * 40}-x-{"s" * 10}-{end}' for end in (1, 2)]
    with pytest.raises(UserError, match=r'all images of .*b lie in .*: choose another --output'):
        photos.find_images([str(tmp_path / 'b')], tmp_path)


# --- classes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize('target, contrast, expected', [
    (None, None, [[2], [0]]), (None, 'runner-up', [[2, 1], [0, 2]]), (0, 'runner-up', [[0, 2], [0, 2]]),
    (2, 'runner-up', [[2, 1], [2, 0]]), (1, 0, [[1, 0], [1, 0]]), (None, 1, [[2, 1], [0, 1]])])
def test_classes_are_chosen_from_the_probabilities(target, contrast, expected):
    probs = torch.tensor([[.1, .3, .6], [.5, .2, .3]])
    assert inference.class_chooser(target, contrast)(probs).tolist() == expected


@pytest.mark.parametrize('text, names, expected', [
    ('3', (), 3), ('b', ['a', 'b'], 1), ('Laysan', ['001.Black', '002.Laysan_Albatross'], 1),
    ('2', ['1', '2', '3', '4'], 1), ('10', ['0', '1', '10', '2'], 2), ('class 2', ['0', '1', '10', '2'], 2),
    ('1', ['a1', 'b', 'c'], 1), ('01', ['a', '01', '1'], 1),         # a number before a part of a name
    ('Crow', ['Crow', 'Fish_Crow'], 0), ('fish', ['Crow', 'Fish_Crow'], 1)])  # exact before a part; case is ignored
def test_classes_are_found_by_exact_name_then_number_then_part(text, names, expected):
    assert inference.resolve_class(text, names, 4) == expected


@pytest.mark.parametrize('text, names, words', [
    ('crow', ['Fish_Crow', 'Hooded_Crow'], ['names 2 classes: Fish_Crow, Hooded_Crow', '0 to 3']),
    ('Crow', ['Crow', 'b', 'Crow'], ['names 2 classes: Crow, Crow']), ('2', ['2', '2', 'c'], ['names 2 classes: 2, 2', 'class N']),
    ('0', ['1', '2', '3'], ['names no class', 'a name such as 1']), ('02', ['1', '2', '3'], ['names no class']),
    ('02', ['a', 'b', 'c'], ['names no class']), ('class 4', ['1', '2'], ['class 4 is out of range']),
    ('owl', ['a', 'b'], ['names no class']), ('4', ['a', 'b'], ['class 4 is out of range', '0 to 3']),
    ('albatross', [], ['no class names'])])
def test_what_names_no_class_or_several_is_refused(text, names, words):
    with pytest.raises(UserError) as error:
        inference.resolve_class(text, names, 4)
    assert all(word in str(error.value) for word in words), error.value


def test_a_checkpoint_without_names_numbers_its_classes(tmp_path):
    assert inference.Album(tmp_path, [], ['jointll']).class_name(3) == 'class 3'
    assert inference.Album(tmp_path, ['a', ''], ['jointll']).class_name(1) == 'class 1'  # a class without images


# --- maps ---------------------------------------------------------------------------------------------


def test_every_image_gets_a_picture_a_map_and_an_entry(explain, folder, tmp_path, forwards):
    manifest, _ = explain(folder, '--score_map_process=jointll', '--contrast', '--batch_size=3')
    assert forwards == [3, 1, 2]  # a photo goes through the network once, then plain grey and noise
    assert [entry['image'].split('photos/')[1] for entry in manifest['images']] == [
        'below/grey.png', 'deep.tiff', 'wide.jpg', 'wide.png']
    assert manifest['methods'] == {'jointll': 'p(A, z | x) per cell'}
    assert manifest['versions']['torch'] == torch.__version__ and manifest['weights_sha256']
    for entry in manifest['images']:
        contrast_entry = entry['contrast']
        assert entry['class_name'].startswith('0') and entry['class'] == entry['predicted']
        assert contrast_entry['class'] != entry['class'] and contrast_entry['probability'] <= entry['probability']
        (name,), (other_name,) = entry['maps'].values(), contrast_entry['maps'].values()
        values, contrast = (np.load(tmp_path / 'out' / file) for file in (name, other_name))
        assert values.sum() == pytest.approx(entry['probability'], rel=1e-5)  # probability units
        assert contrast.sum() == pytest.approx(entry['probability'] - contrast_entry['probability'], rel=1e-4, abs=1e-6)
        with Image.open(tmp_path / 'out' / entry['picture']) as picture:
            assert picture.format == 'PNG' and min(picture.size) > 50
    assert set(manifest['files']) == files_below(tmp_path / 'out').keys()


def test_target_and_contrast_can_be_named(explain, folder):
    manifest, _ = explain(folder / 'wide.jpg', '--score_map_process=jointll', '--target=Toy_B3', '--contrast=4')
    entry, = manifest['images']
    assert (entry['class'], entry['class_name'], entry['contrast']['class']) == (6, '007.Toy_B3', 4)


def test_several_methods_stand_side_by_side(explain, folder, tmp_path):
    methods = ['jointll', 'saliency', 'grad_cam', 'smooth_grad', 'jointll-superclass', 'random', 'backprop', 'vanilla']
    explain(folder / 'wide.jpg', f'--score_map_process={",".join(methods)}', '--contrast=4', '--smooth_grad_nr_iter=2')
    names = files_below(tmp_path / 'out').keys()
    one_for_all = {'saliency', 'random'}
    expected = [f'wide_{name}.npy' for name in methods]
    expected += [f'wide_{name}_difference.npy' for name in methods if name not in one_for_all]
    assert names == {'manifest.json', f'wide_{"+".join(methods)}_contrast.png', *expected}
    assert all(np.isfinite(np.load(tmp_path / 'out' / name)).all() for name in expected)


@pytest.mark.parametrize('method', [None, 'evidence', 'backprop', 'backprop-difference'])
def test_a_contrast_method_is_the_librarys(explain, checkpoint, folder, tmp_path, method):
    """The one that is asked for; without one the head's, and the command says so."""
    manifest, out = explain(folder / 'wide.jpg', f'--contrast_method={method}' if method else '--contrast')
    assert ('the contrast is prior-log-odds' in out) == (method is None)
    assert manifest['settings']['contrast_method'] == (method or 'prior-log-odds')
    entry, = manifest['images']
    model, trained = weights.load_model(checkpoint)
    image = eval_transform(trained.known['crop_size'])(open_upright(folder / 'wide.jpg'))[None]
    classes = torch.tensor([entry['class']]), torch.tensor([entry['contrast']['class']])
    expected = contrast_maps(model, image, *classes, method or 'prior-log-odds')[0].detach().numpy()
    values = np.load(tmp_path / 'out' / entry['contrast']['maps'][f'{method or "prior-log-odds"}_contrast'])
    np.testing.assert_allclose(values, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    if method == 'evidence':
        odds = np.log(entry['probability'] / entry['contrast']['probability'])
        assert values.sum() == pytest.approx(odds, abs=1e-3)


def test_a_photo_of_a_hundred_megapixels_takes_less_than_a_gigabyte(checkpoint, tmp_path):
    """In a process, whose largest memory the system tells: the libraries alone take half of it."""
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


# --- mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize('flags, words', [
    (['nowhere.jpg'], ['nowhere.jpg', 'no such image']), (['empty'], ['empty holds no images']),
    (['photos/notes.txt'], ['notes.txt does not open']), (['photos/wide.jpg', '--target=99'], ['99', '0 to 17']),
    (['photos/wide.jpg', '--contrast=Toy'], ['"Toy" names 18 classes']),
    (['photos/wide.jpg', '--contrast=cat'], ['"cat" names no class']),
    (['photos/wide.jpg', '--target=runner-up'], ['"runner-up" names no class', '0 to 17']),
    (['photos/wide.jpg', '--score_map_process=object_mask'], ['for the evaluations']),
    (['photos/wide.jpg', '--score_map_process=jointl'], ['jointll']),
    (['photos/wide.jpg', '--score_map_method=backprop', '--score_map_process=jointll'], ['contradicts']),
    (['photos/wide.jpg', '--target=5', '--contrast=Toy_B2'], ['zero everywhere']),
    (['photos/wide.jpg', '--scoremap_root=x'], ['for the evaluations']),
    (['photos/wide.jpg', '--seed=1', 'b.jpg'], ['unexpected "b.jpg"'])])
def test_mistakes(infer, folder, tmp_path, flags, words):
    (tmp_path / 'empty').mkdir()
    refused(infer(*flags), *words)
    assert not (tmp_path / 'out' / 'manifest.json').exists()


def test_without_a_checkpoint_the_way_without_training_is_said(script, folder):
    refused(script('inference', 'photos/wide.jpg'), 'no checkpoint', '--architecture=resnet50')


def test_broken_photos_stop_or_are_left_out(infer, explain, folder):
    (folder / 'broken.jpg').write_bytes(b'x')
    refused(infer(folder, '--score_map_process=jointll'), 'broken.jpg does not open')
    code, _, err = infer(folder, '--score_map_process=jointll', '--skip_broken')
    assert code == 0 and '1 of 5 images of yours do not open and are left out' in err
    assert len(explain(folder, '--skip_broken')[0]['images']) == 4


def test_contrast_does_not_swallow_the_photo(explain, folder):
    """Behind --contrast a file is an image, and the contrast is the runner-up; the command says so."""
    manifest, out = explain(folder / 'wide.png', '--contrast', folder / 'wide.jpg')
    assert 'taken for images' in out and len(manifest['images']) == 2
    assert all(entry['contrast']['class'] != entry['class'] for entry in manifest['images'])


# --- what is not replaced -----------------------------------------------------------------------------


@pytest.mark.parametrize('name, content', [
    ('manifest.json', '{"name": "my app", "images": []}'), ('manifest.json', '[1]'), ('manifest.json', 'no JSON'),
    ('manifest.json', '{"methods": 1, "images": [1], "settings": 1, "versions": 1, "machine": 1}'),
    ('gallery.html', '<p>my holiday'), ('wide_jointll.png', 'mine'), ('wide_jointll.npy', 'mine')])
def test_a_users_file_is_never_replaced(infer, folder, tmp_path, name, content, forwards):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / name).write_text(content)
    before = files_below(tmp_path)
    refused(infer(folder / 'wide.jpg', '--score_map_process=jointll', '--format=png,html'),
            f'out/{name} was not written by inference.py', '--output')
    assert files_below(tmp_path) == before and not forwards


def test_a_run_replaces_what_earlier_runs_wrote(infer, explain, folder, tmp_path):
    """Whatever the methods of the runs between, and after an interruption."""
    flags = [folder / 'wide.jpg', '--format=png,html']
    explain(*flags, '--score_map_process=jointll')
    explain(*flags, '--score_map_process=saliency')
    manifest, _ = explain(*flags, '--score_map_process=jointll')
    assert set(manifest['files']) == files_below(tmp_path / 'out').keys()  # those of all three runs
    assert {'gallery.html', 'manifest.json', 'wide_saliency.npy', 'wide_jointll.png'} <= set(manifest['files'])
    (tmp_path / 'out/manifest.json').write_text(json.dumps(manifest | {'written_by': 'another program'}))
    refused(infer(*flags, '--score_map_process=saliency'), 'was not written by inference.py')


def test_what_an_interrupted_run_wrote_is_replaced(explain, infer, folder, tmp_path, monkeypatch):
    def end(*_, **__):
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(inference.Album, '_draw', end)
        assert infer(folder / 'wide.jpg', '--score_map_process=jointll')[0] == 130
    assert files_below(tmp_path / 'out').keys() == {'manifest.json', 'wide_jointll.npy'}
    manifest, _ = explain(folder / 'wide.jpg', '--score_map_process=jointll')
    assert set(manifest['files']) == {'manifest.json', 'wide_jointll.npy', 'wide_jointll.png'}


def test_pictures_in_the_output_folder_are_not_explained(infer, folder):
    for _ in range(2):
        assert infer(folder, '--score_map_process=jointll', f'--output={folder / "maps"}')[0] == 0
        assert len(json.loads((folder / 'maps/manifest.json').read_text())['images']) == 4


# --- the page -----------------------------------------------------------------------------------------


@pytest.fixture
def page(explain, folder, tmp_path):
    """The path of a page of four photos with two methods and their contrasts."""
    _, out = explain(folder, '--format=html', '--score_map_process=jointll,saliency,grad_cam', '--contrast', '--top_k=3')
    assert 'gallery.html: open it in a browser' in out
    assert not list((tmp_path / 'out').glob('*.png'))
    return tmp_path / 'out' / 'gallery.html'


def data_of(page):
    """What the page's script reads."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text())[1])


def test_the_page_shows_each_map_and_needs_nothing_from_elsewhere(page):
    text, data = page.read_text(), data_of(page)
    assert data['views'] == ['jointll', 'saliency', 'grad_cam', 'jointll: why A, not B', 'grad_cam: why A, not B']
    assert len(data['photos']) == 4 and len(data['bars']) == 2
    for photo in data['photos']:
        assert len(photo['classes']) == 3 and [len(maps) for maps in photo['maps']] == [3, 1, 3, 1, 1]
        for name, maps in zip(data['views'], photo['maps'], strict=True):
            assert all(name in shown['text'] and 2 <= len(shown['ticks']) <= 6 for shown in maps)
            assert all(0 <= share <= 1 for shown in maps for share, _ in shown['ticks'])
        assert 'p(A, z | x) − p(B, z | x) per cell' in photo['maps'][3][0]['text'] and photo['maps'][3][0]['signed']
    assert not re.search(r'(?:src|href)\s*=\s*["\'](?!data:|#)', text) and 'http-equiv="refresh"' not in text
    assert not re.search(r'url\((?!["\']?data:)|@import|fetch\(|XMLHttpRequest|import\(|innerHTML', text)


@pytest.mark.parametrize('flags, expected', [
    ([], [1]), (['--contrast_method=log-odds'], [2, 1]), (['--contrast_method=difference'], [2, 1])])
def test_every_class_that_the_page_offers_has_a_map(explain, folder, tmp_path, flags, expected):
    """With --top_k=1, too, where a contrast adds a second class."""
    explain(folder / 'wide.jpg', '--format=html', '--score_map_process=jointll', '--top_k=1', *flags)
    photo, = data_of(tmp_path / 'out/gallery.html')['photos']
    assert len(photo['classes']) == expected[0] and [len(maps) for maps in photo['maps']] == expected


def test_names_from_outside_cannot_become_markup():
    photo = gallery.shown('<img src=x onerror=alert(1)>', np.zeros((4, 4, 3), np.uint8), [('</script>', 0.5)], [], [], 'blend')
    text = gallery.page('</script><b>', ['jointll'], 'blend', [photo])
    assert text.count('</script>') == 2 and '<b>' not in text and '<img src=x' not in text


CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


@pytest.mark.skipif(CHROMIUM is None, reason='the page is tried in a browser: no chromium or google-chrome is installed')
def test_the_page_works_in_a_browser(page, tmp_path):
    """Loaded from a file without a network: the photos, methods and classes are there, each choice changes what is shown,
    the slider fades the map, and the script ends without an error."""
    probe = """
    <script>
    window.onerror = message => document.title = 'error: ' + message;
    addEventListener('load', () => setTimeout(() => {
      const shown = () => document.querySelector('#picture').src + document.querySelector('#name').textContent;
      const seen = [shown()];
      const choose = selector => { document.querySelectorAll(selector)[1].click(); seen.push(shown()); };
      choose('#class input');
      choose('#view input');
      const slider = document.querySelector('#strength');
      const opacities = ['1', '0.5', '0'].map(value => {
        Object.assign(slider, {value});
        slider.dispatchEvent(new Event('input'));
        return getComputedStyle(document.querySelector('#picture')).opacity;
      });
      const same = document.querySelector('#photo').getBoundingClientRect().width === document.querySelector('#picture').getBoundingClientRect().width;
      document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true}));
      seen.push(shown());
      const report = document.createElement('pre');
      report.id = 'report';
      report.textContent = JSON.stringify({opacities, same, title: document.title, different: new Set(seen).size, text: document.body.innerText});
      document.body.append(report);
    }, 500));
    </script></body>"""
    copy = tmp_path / 'probe.html'
    # the page's policy lets no other script in
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', '', page.read_text())
    copy.write_text(text.replace('</body>', probe))
    finished = subprocess.run([CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--virtual-time-budget=8000',
                               f'--user-data-dir={tmp_path / "profile"}', '--dump-dom', f'file://{copy}'],
                              capture_output=True, text=True, timeout=120, check=True)
    report = json.loads(html.unescape(re.search(r'<pre id="report">(.*?)</pre>', finished.stdout, re.S)[1]))
    assert report['title'] == 'Attribution maps' and report['different'] == 4, report
    assert report['opacities'] == ['1', '0.5', '0'] and report['same']  # the photo lies exactly under the map
    assert all(word in report['text'] for word in ('jointll', 'grad_cam', 'Toy_')), report


# --- the check by erasing --------------------------------------------------------------------------------------------


def test_the_check_is_that_of_a_naive_loop(explain, checkpoint, folder, tmp_path):
    """In the manifest, and the same in any batch; zeros by hand, and ROAD's fill by its own function."""
    manifest, out = explain(folder, '--check', '--score_map_process=jointll,saliency', '--format=png,html', '--seed=4')
    model, _ = weights.load_model(checkpoint)
    one_by_one, _ = explain(folder, '--check', '--score_map_process=jointll,saliency', '--batch_size=1', '--seed=4')
    lower = {(method, fill): 0 for method in ('jointll', 'saliency') for fill in ('zeros', 'road')}
    for entry, again in zip(manifest['images'], one_by_one['images'], strict=True):
        assert entry['check']['erased_percent'] == [10, 30, 50]
        image = eval_transform(manifest['preprocessing']['input_size'])(open_upright(entry['image']))[None]
        for fill in ('zeros', 'road'):
            p = entry['check'][fill]
            assert list(p) == ['jointll', 'saliency', 'random pixels', 'coarse noise']
            assert all(again['check'][fill][name] == pytest.approx(values, abs=1e-4) for name, values in p.items())
            for method in ('jointll', 'saliency'):
                lower[method, fill] += np.mean(p[method]) < np.mean(p['coarse noise'])
        scores = np.load(tmp_path / 'out' / entry['maps']['jointll'])[None]
        large = torch.nn.functional.interpolate(torch.from_numpy(scores)[None], image.shape[2:], mode='bilinear')[0, 0]
        order = large.flatten().argsort(descending=True)
        for share, value in zip((0.1, 0.3, 0.5), entry['check']['zeros']['jointll'], strict=True):
            erased = image.flatten(2).clone()
            erased[..., order[:int(share * large.numel())]] = 0
            with torch.no_grad():
                expected = model.probabilities(model(erased.view_as(image)))[0, entry['class']].item()
            assert value == pytest.approx(expected, abs=0.02)  # zeros of the map tie, and fall at random
    for (method, fill), count in lower.items():
        summary, line = manifest['check'][method][fill], f'lowers p more than coarse noise does on {count} of 4 photos'
        assert (summary['lower'], summary['photos']) == (count, 4) and 0 <= summary['low'] <= summary['high'] <= 1
        assert f'{method}, fill {fill}: erasing what the map marks {line}' in out
    page = (tmp_path / 'out/gallery.html').read_text()
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])
    for photo, entry in zip(data['photos'], manifest['images'], strict=True):
        for view in photo['maps']:
            assert view[0]['check'].startswith('data:image/png') and 'arXiv 2304.13836' in view[0]['checked']
            assert all('check' not in later for later in view[1:])
        assert f'{entry["check"]["road"]["jointll"][2]:.3f} after 50 %' in photo['maps'][0][0]['checked']
    assert 'arXiv 2304.13836' in data['title'] and 'arXiv 2304.13836' in manifest['notes'][-1] and 'arXiv 2304.13836' in out


def test_without_the_check_no_forward_and_no_word_more(explain, folder, forwards):
    manifest, out = explain(folder / 'wide.jpg', '--score_map_process=jointll')
    assert sum(forwards) == 1 + 2  # the photo, and the two blanks
    assert 'check' not in manifest and 'check' not in manifest['images'][0] and 'erasing' not in out
    forwards.clear()
    explain(folder / 'wide.jpg', '--score_map_process=jointll', '--check', '--contrast')
    assert sum(forwards) == 1 + 2 + 2 * 3 * 3  # two fills, the map and two controls, three shares


def test_a_photo_behind_the_flag_is_one_clear_error(infer, folder):
    refused(infer('--check', folder / 'wide.jpg'), '--check: ', 'wide.jpg" is neither True nor False; files stand before the flags')
