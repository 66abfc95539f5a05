"""pictures.py: pixels are read back from the drawn figures and compared with the map, the photo and the colour bar."""
import itertools
import warnings

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import rgb_to_hsv
from PIL import Image

import config
from reports import figures, pictures
from reports.pictures import Panel, Scale
from wsol.maps import resize

HEIGHT, WIDTH = 280, 400


@pytest.fixture(scope='module')
def picture():
    """A colourful photo."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (7, 10, 3), dtype=np.uint8))
    return np.asarray(small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))


def a_map(signed, size=(14, 14)):
    values = np.random.default_rng(1).random(size).astype(np.float32)
    return values - 0.4 if signed else values * 0.03


def pixels_of(figure):
    """(H,W,3) uint8 as a file would hold them."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def inside(drawn, axes, border=0):
    """The pixels that an axes covers, but for its frame."""
    figure = axes.figure
    x0, y0, x1, y1 = np.rint(axes.get_position().extents * np.tile(figure.get_size_inches() * figure.dpi, 2)).astype(int)
    height = len(drawn)
    return drawn[height - y1 + border:height - y0 - border, x0 + border:x1 - border]


def draw(picture, values, overlay, signed):
    """(the photo's pixels, the map's, the colour bar's without its frame)."""
    figure = pictures.sheet([[Panel(picture, 'photo'), Panel(picture, 'a map', values, 'its label', signed)]], overlay=overlay)
    drawn = pixels_of(figure)
    photo, shown, bar = (figure.axes[place] for place in (0, 1, 2))
    assert bar.get_position().height == pytest.approx(shown.get_position().height, abs=1e-9)  # as tall as the picture
    return inside(drawn, photo), inside(drawn, shown), inside(drawn, bar, border=2)


def expected_levels(values, signed):
    """The level of each pixel, from the definition: the map as the evaluations enlarge it, rounded on its own scale."""
    large = resize(torch.from_numpy(values)[None], (HEIGHT, WIDTH))[0].numpy()
    low, high = (-np.abs(values).max(), np.abs(values).max()) if signed else (min(0, values.min()), values.max())
    return np.rint((large - low) / (high - low) * 255).astype(int)


@pytest.mark.parametrize('signed', [False, True])
def test_a_map_alone_is_the_enlarged_map_in_the_palette(picture, signed):
    values = a_map(signed)
    photo, shown, bar = draw(picture, values, 'map', signed)
    assert np.array_equal(photo, picture)  # a pixel of the photo is a pixel
    palette = np.rint(255 * (pictures.DIVERGING if signed else pictures.SEQUENTIAL)(np.arange(256))[:, :3]).astype(np.uint8)
    assert np.array_equal(shown, palette[expected_levels(values, signed)])
    # the bar holds the picture's colours, each in its place
    assert (bar == bar[:, :1]).all()
    rows = palette[np.rint((len(bar) - 1 - np.arange(len(bar)) + 2) / (HEIGHT - 1) * 255).astype(int).clip(0, 255)]
    assert np.abs(bar[:, 0].astype(int) - rows).max() <= 6  # a row of the bar is a level or two


@pytest.mark.parametrize('overlay', ['blend', 'mask'])
@pytest.mark.parametrize('signed', [False, True])
def test_every_colour_of_an_overlay_is_in_its_bar(picture, overlay, signed):
    """Of the grey photo for a blend; a mask multiplies the photo's own colours by the bar's grey."""
    values = a_map(signed)
    _, shown, bar = draw(picture, values, overlay, signed)
    levels = expected_levels(values, signed)
    rng = np.random.default_rng(0)
    for y, x in zip(rng.integers(0, HEIGHT, 300), rng.integers(0, WIDTH, 300), strict=True):
        row = len(bar) + 1 - round(levels[y, x] / 255 * (HEIGHT - 1))
        near = bar[max(0, row - 2):row + 3].astype(int)
        if overlay == 'blend':
            distance = np.abs(near - shown[y, x]).max(-1).min()
            assert distance <= 12, (shown[y, x], levels[y, x])  # the bar's width has a step for every twelve greys
        else:
            kept = near[:, -1].mean() / bar[0].max()  # the share of the photo's brightness; the bar's top keeps it whole
            assert np.abs(shown[y, x] - picture[y, x] * kept).max() <= 6


@pytest.mark.parametrize('signed', [False, True])
def test_blending_shifts_no_hue(picture, signed):
    values = a_map(signed)
    _, shown, _ = draw(picture, values, 'blend', signed)
    levels = expected_levels(values, signed)
    share = np.abs(2 * levels / 255 - 1) if signed else levels / 255
    strong = share > 0.4
    hues = rgb_to_hsv(pictures.hues('blend', signed))[levels[strong], 0]
    difference = np.abs(rgb_to_hsv(shown[strong] / 255)[:, 0] - hues)
    assert np.minimum(difference, 1 - difference).max() < 0.02 and strong.mean() > 0.2


def test_where_a_map_is_zero_a_blend_is_grey_and_a_mask_dark_and_where_it_is_highest_a_mask_is_the_photo(picture):
    values = np.array([[0, 1], [0, 1]], np.float32)
    masked, blended = (pictures.shade(picture, values, Scale(0, 1), overlay) for overlay in ('mask', 'blend'))
    assert np.array_equal(masked[:, -90:], picture[:, -90:])
    assert np.abs(masked[:, :90] - pictures.DARKEST * picture[:, :90]).max() <= 0.51
    grey = np.asarray(Image.fromarray(picture).convert('L'), int)[:, :90, None]
    assert np.abs(blended[:, :90] - grey).max() <= 1


# --- palettes for all eyes ----------------------------------------------------------------------------

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB
DEFICIENCIES = {
    'none': np.eye(3),
    'protanopia': [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    'deuteranopia': [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    'tritanopia': [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def as_seen(colours, deficiency):
    """CIE Lab (N,3) of colours in 0..1 as an eye with this deficiency sees them."""
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    linear = (linear @ np.array(DEFICIENCIES[deficiency]).T).clip(0, 1)
    xyz = linear @ np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]).T / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


@pytest.mark.parametrize('deficiency', DEFICIENCIES)
def test_palettes_are_read_by_eyes_with_a_colour_deficiency(deficiency):
    sequential = as_seen(pictures.hues('map', False), deficiency)[:, 0]
    assert (np.diff(sequential) > -0.05).all() and sequential[-1] - sequential[0] > 55  # lightness rises all along
    diverging = as_seen(pictures.hues('map', True), deficiency)
    both = np.linalg.norm(diverging[:128] - diverging[:127:-1], axis=1)  # plus and minus of one size
    assert (both[:96] > 10).all() and both[0] > 40  # from a quarter of the scale on they are told apart
    for side in (diverging[:128, 0], diverging[:127:-1, 0]):
        assert (np.diff(side) > -0.05).all()  # lighter towards zero


# --- scales and texts -----------------------------------------------------------------------------------

@settings(max_examples=200, deadline=None)
@given(st.floats(1e-30, 1e30), st.booleans(), st.floats(-1, 0.9))
def test_ticks_are_short_numbers_in_place_and_their_power_of_ten_is_said(high, signed, low):
    scale = Scale(-high if signed else min(0.0, low * high), high, signed)
    (where, texts), factor = scale.ticks(), scale.label('')
    power = int(factor.removeprefix(' × 10').translate(str.maketrans('⁻⁰¹²³⁴⁵⁶⁷⁸⁹', '-0123456789'))) if factor else 0
    assert 2 <= len(where) <= 6
    for value, text in zip(where, texts, strict=True):
        assert len(text) <= 7 and 'e' not in text and scale.low <= value <= scale.high
        assert float(text.replace('−', '-')) * 10.0 ** power == pytest.approx(value, rel=1e-3, abs=1e-3 * high)


def test_a_fine_maps_scale_ends_at_a_percentile_and_says_so(picture):
    values = np.random.default_rng(0).random((224, 224)).astype(np.float32)
    values[0, 0] = 1000
    assert Scale.of(values).high < 1 and Scale.of(values).cut
    assert Scale.of(values[:14, :14]).high == 1000 and not Scale.of(values[:14, :14]).cut
    figure = pictures.sheet([[Panel(picture, '', values, 'gradient')]])
    assert '99.5th percentile' in figure.axes[1].get_ylabel()


@pytest.mark.parametrize('overlay', config.OVERLAYS)
def test_odd_photos_and_flat_maps_are_drawn(overlay):
    flat = [np.zeros((2, 2)), np.full((14, 14), -3.0), np.full((1, 1), 5.0), np.array([[1e-38, 0]])]
    for size, signed, values in itertools.product([(40, 40), (3, 700), (700, 3), (1, 30)], [False, True], flat):
        photo = np.full((*size, 3), 128, np.uint8)
        shaded = pictures.shade(photo, values, Scale.of(values, signed), overlay)
        assert shaded.shape == photo.shape and shaded.dtype == np.uint8
    figure = pictures.sheet([[Panel(photo, 'photo'), Panel(photo, 'map', values, 'label', signed)]], 'header', overlay=overlay)
    assert np.array_equal(inside(pixels_of(figure), figure.axes[0]), photo)


def test_names_are_drawn_as_they_are_written(picture):
    """No dollar begins a formula, no letter that the font lacks raises a warning (which is an error here)."""
    for text in ('$x_{$', r'\frac{', '100 $ and 5 $', '\u6d77\u9ce5 \U0001f426', 'two\nlines\tand a tab', 'x' * 400):
        figure = pictures.sheet([[Panel(picture, text, a_map(False), text)]], text, [text])
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            pixels_of(figure)


@pytest.mark.parametrize('name', ['\u6d77\u9ce5', 'caf\udce9', '\x1b[31mred', '$x_{$', 'two\nlines'])
def test_a_curve_of_any_name_is_written(name, tmp_path):
    '''The names of experiments and folders stand in titles and legends: no warning, and no error, costs a result.'''
    log = [{'epoch': 1, 'train_loss': 1.0, 'train_accuracy': 1.0, 'val_accuracy': 1.0, 'lr': 1.0}]
    record = {'erased_percent': 10, 'R': 0.5, 'R_low': 0.4, 'R_high': 0.6}
    for figure in (figures.training_curves(name, log), figures.precision_curves(name, {name: 4 * [[0, 50]]}),
                   figures.ratio_curve(name, {name: [record]}), figures.abstention_curves(name, {name: 3 * [[0, 50]]})):
        figures.save(figure, tmp_path / 'curve.png')


def test_one_thing_has_one_colour_in_every_plot():
    """The prior is not the contrast that multiplies by it, and CAM's sum of all logits is no prior."""
    same = [('CAM', 'cam: CAM', 'CAM, grad_cam', 'CAM_vanilla', 'CAM, vanilla-saliency'), ('CALM_ML, softplus', 'CALM_ML'),
            ('CALM_EM', 'CALM_EM_jointll', 'CALM_EM, prior-log-odds', 'CALM_EM, resnet50, CUB'),
            ('prior', 'CALM_EM, saliency', 'control: prior of CALM_EM'), ("control: the bird's mask", 'object_mask'),
            ('control: random maps', 'random pixels'), ('coarse noise',), ('SmoothGrad', 'train')]
    colours = [{colour for name in names for colour, _ in figures.styles([name])} for names in same]
    assert [len(of_thing) for of_thing in colours] == [1] * 8 and len(set.union(*colours)) == 8


@given(st.lists(st.sampled_from(['CAM', 'CALM_EM', 'CALM_ML', 'prior', 'mine', 'coarse noise']), max_size=24))
def test_no_two_curves_look_alike(names):
    assert len(set(figures.styles(names))) == len(names)


@pytest.mark.parametrize('maps, contrasts', [(1, 0), (1, 1), (3, 0), (3, 3), (6, 1), (4, 2)])
@pytest.mark.parametrize('size', [(30, 40), (40, 30), (10, 90)])
def test_a_sheet_holds_every_panel_once_and_contrasts_below_their_maps(maps, contrasts, size):
    photo, *others = (Panel(np.zeros((*size, 3), np.uint8), str(number)) for number in range(1 + maps + contrasts))
    rows = pictures.arrange(photo, others[:maps], others[maps:])
    assert rows[0][0] is photo
    assert sorted(int(panel.title) for row in rows for panel in row if panel) == list(range(1 + maps + contrasts))
    if maps == contrasts > 1:
        place = {panel.title: (y, x) for y, row in enumerate(rows) for x, panel in enumerate(row) if panel}
        for number in range(1, 1 + maps):
            (y, x), (below, right) = place[str(number)], place[str(number + maps)]
            assert (below - y, right - x) == (1, 0)


def test_a_cue_is_outlined(picture):
    cue = np.zeros((HEIGHT, WIDTH), bool)
    cue[100:150, 100:200] = True
    grey = np.full_like(picture, 128)
    figure = pictures.sheet([[Panel(grey, cue=cue), Panel(grey, cue=np.zeros_like(cue))]])
    drawn = pixels_of(figure)
    outlined, plain = (inside(drawn, axes) for axes in figure.axes)
    assert (outlined[100:150, 99:102] != 128).any() and (outlined[120:130, 120:180] == 128).all()
    assert (plain == 128).all()


def test_a_saved_figure_is_the_drawn_one(picture, tmp_path):
    figure = pictures.sheet([[Panel(picture), Panel(picture, '', a_map(True), '', True)]], 'header')
    figures.save(figure, tmp_path / 'a.png')
    with Image.open(tmp_path / 'a.png') as saved:
        assert np.array_equal(np.asarray(saved)[..., :3], pixels_of(figure))


def test_nobody_chooses_a_backend():
    for path in [*ROOT.glob('*.py'), *ROOT.glob('wsol/*.py')]:
        text = path.read_text()
        assert 'pyplot' not in text and 'matplotlib.use' not in text, path.name


# --- a map on a part of its photo --------------------------------------------------------------------------------------


@pytest.mark.parametrize('overlay', config.OVERLAYS)
@pytest.mark.parametrize('signed', [False, True])
def test_a_map_lies_on_the_part_that_the_network_saw(overlay, signed):
    """There the picture is that of the part alone; the rest is dark and grey."""
    photo = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    values = a_map(signed)
    box = (15 / 90, 0, 75 / 90, 1)
    shaded, scale = pictures.shade(photo, values, Scale.of(values, signed), overlay, box), Scale.of(values, signed)
    alone = pictures.shade(photo[:, 15:75], values, scale, overlay)
    assert (shaded[:, 15:75] == alone).all()
    rest = np.concatenate([shaded[:, :15], shaded[:, 75:]], 1)
    assert (rest == rest[..., :1]).all() and rest.max() <= 0.35 * 255 + 1
    whole = pictures.shade(photo, values, scale, overlay, (0, 0, 1, 1))
    assert (whole == pictures.shade(photo, values, scale, overlay)).all()


@pytest.mark.parametrize('box', [(-0.5, 0, 1.5, 1), (0, -1, 1, 2), (0.25, 0.25, 0.75, 0.75), (-0.1, 0.2, 1.1, 0.8), (0.501, 0, 0.502, 1)])
def test_a_map_larger_than_its_photo_is_cut_as_the_photo_is(box):
    """Each pixel of the part has the map's value at its own place."""
    height, width, cells = 80, 120, 200
    ramp = np.tile((np.arange(cells) + 0.5) / cells, (cells, 1))
    (rows, columns), across = pictures.within(ramp, box, (height, width))
    down = pictures.within(ramp.T, box, (height, width))[1]
    assert across.shape == (rows.stop - rows.start, columns.stop - columns.start) == down.shape
    places = ((np.arange(length) + 0.5) / length for length in (width, height))
    for values, place, seen, low, high, axis in zip((across, down), places, (columns, rows), box[:2], box[2:], (0, 1), strict=True):
        if high - low > 0.1:
            expected = (place[seen] - low) / (high - low)
            assert np.abs(values.mean(axis) - expected).max() < 0.02
