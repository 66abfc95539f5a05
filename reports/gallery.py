"""One HTML page to look through photos and their maps in any browser: no server, no network, one file.

All pictures on it are drawn here, by pictures.py, and stand in the page as JPEG; its script only chooses what is shown.
Names of files and classes come from outside: they go into one block of JSON, and from there into text nodes, never into
markup. The page's own policy allows no other script and no request.

The page's markup, style and script are in page/.
"""
import base64
import hashlib
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from reports import figures
from reports.pictures import Scale, colour_bar, shade
from wsol.metrics import CAVEAT

PARTS = Path(__file__).with_name('page')
QUALITY = 85  # of the JPEGs
SIZE = 480    # pixels: the longer side of the page's pictures


def shown(name, photo, classes, panels, charts, overlay):
    """A photo and its maps, drawn for the page, as `page` takes it.

    photo: (H,W,3) uint8. classes: [(name, probability)], class A first. panels: for each view its Panels, one a class,
    or one alone where classes cannot be chosen; their titles are the captions. charts: (shares, curves) of
    figures.erasure_chart, for each of the first views; shown with class A. overlay: a key of config.OVERLAYS.
    """
    maps = [[_map(panel, overlay) for panel in view] for view in panels]
    for of_view, chart in zip(maps, charts, strict=False):
        of_view[0] |= _chart(*chart)
    return {'name': name, 'photo': _image(photo, 'JPEG', quality=QUALITY),
            'width': photo.shape[1], 'height': photo.shape[0],
            'classes': [{'name': text, 'p': p, 'text': f'{p:.3f}'} for text, p in classes], 'maps': maps}


def _map(panel, overlay):
    """The picture of a map and what stands beside its colour bar: texts, and where each tick is (0 to 1)."""
    scale = Scale.of(panel.values, panel.signed)
    picture = _image(shade(panel.picture, panel.values, scale, overlay, panel.box), 'JPEG', quality=QUALITY)
    ticks = [[scale.share(value), text] for value, text in zip(*scale.ticks(), strict=True)]
    return {'picture': picture, 'text': f'{panel.title}. Colours: {scale.label(panel.label)}',
            'signed': panel.signed, 'ticks': ticks}


def page(title, views, overlay, photos):
    """The HTML. title: what is explained. views: the names of the methods and contrasts, in order. photos: of `shown`,
    with the same overlay."""
    bars = [_image(colour_bar(Scale(-1 if signed else 0, 1, signed), overlay)[::-1], 'PNG') for signed in (False, True)]
    data = {'title': title, 'views': views, 'bars': bars, 'photos': photos}
    # inside a script element only "<" could end it or begin another
    text = json.dumps(data, ensure_ascii=False, allow_nan=False).replace('<', '\\u003c')
    html, css, js = ((PARTS / f'gallery.{kind}').read_text(encoding='utf-8') for kind in ('html', 'css', 'js'))
    policy = (f"default-src 'none'; img-src data:; style-src '{_digest(css)}'; script-src '{_digest(js)}'; "
              "base-uri 'none'; form-action 'none'")
    html = html.replace('{{policy}}', policy).replace('{{gallery.css}}', css).replace('{{gallery.js}}', js)
    return html.replace('{{data}}', text)  # last: nothing in it is replaced


def _chart(shares, curves):
    """The chart of a check, and its alternative text."""
    words = [f'{name}, fill {fill}: ' + ', '.join(f'{p:.3f} after {share:.0f} %' for share, p in zip(
        shares, values, strict=True)) for (name, fill), values in curves.items()]
    return {'check': _image(figures.erasure_chart(shares, curves, (270, 360)), 'PNG'),
            'checked': f'p(A | x) when pixels are erased. {"; ".join(words)}. {CAVEAT}'}


def _image(pixels, kind, **options):
    """(H,W,3) uint8 -> a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, kind, **options)
    return f'data:image/{kind.lower()};base64,' + base64.b64encode(buffer.getvalue()).decode()


def _digest(text):
    """The hash by which the page's policy allows its own style and script."""
    return 'sha256-' + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
