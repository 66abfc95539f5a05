"""One HTML page of photos and their maps, to be looked through in any browser: no server, no network, one file.

The page holds the photos as JPEG and the maps as they are, a number for each cell; the browser enlarges, colours and
subtracts them. What comes from outside, as names of files and classes, goes into one block of JSON and from there into
text nodes alone, never into markup; the page's own policy forbids it scripts other than its own and any request.

The page's markup, style and script are in page/.
"""
import base64
import hashlib
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from reports import pictures
from runtime import whole_files

PARTS = Path(__file__).with_name('page')
QUALITY = 85  # of the JPEGs


def encode_map(values):
    """A map (h,w) as 16-bit numbers between its extremes."""
    low, high = float(values.min()), float(values.max())
    numbers = np.rint((values.astype(np.float64) - low) / ((high - low) or 1) * 65535).astype('<u2')
    return {'h': values.shape[0], 'w': values.shape[1], 'low': low, 'high': high, 'data': _base64(numbers.tobytes())}


def _base64(content):
    return base64.b64encode(content).decode()


def _digest(text):
    """What the page's policy knows its own style and script by."""
    return 'sha256-' + _base64(hashlib.sha256(text.encode()).digest())


def _jpeg(picture):
    """(H,W,3) uint8 -> the address of an image that is in the page itself."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, 'JPEG', quality=QUALITY)
    return 'data:image/jpeg;base64,' + _base64(buffer.getvalue())


class Gallery:
    """A page in the making.

    title: what is explained. methods: [{'name', 'label', 'difference', 'signed', 'per_class', 'pair'}], in the order of
    the maps: `difference` is the label of A minus B; a method that is not per_class has one map for all classes; a
    `pair` is a contrast method, with one map for the first class against the second. contrast: whether that difference
    is shown at first.
    """

    def __init__(self, title, methods, contrast=False):
        self.title, self.methods, self.contrast, self.images = title, methods, contrast, []

    def add(self, name, picture, classes, maps):
        """A photo. classes: [(name, probability)], the explained one first. maps: for each method its maps (K,h,w)."""
        height, width = picture.shape[:2]
        self.images.append({
            'name': name, 'photo': _jpeg(picture), 'width': width, 'height': height,
            'classes': [{'name': text, 'p': probability} for text, probability in classes],
            'maps': [[encode_map(values) for values in own] for own in maps]})

    def page(self):
        """The HTML."""
        palettes = {'sequential': pictures.hues('map', False), 'signed': pictures.hues('map', True),
                    'ends': pictures.hues('blend', True)}
        data = {'title': self.title, 'methods': self.methods, 'contrast': self.contrast, 'images': self.images,
                'palettes': {name: np.rint(255 * colours).reshape(-1).astype(int).tolist()
                             for name, colours in palettes.items()},
                'strength': pictures.STRENGTH, 'darkest': pictures.DARKEST, 'fine': pictures.FINE,
                'percentile': pictures.PERCENTILE}
        # in a script element only "<" could end it or begin another
        text = json.dumps(data, ensure_ascii=False, allow_nan=False).replace('<', '\\u003c')
        html, css, js = ((PARTS / f'gallery.{kind}').read_text(encoding='utf-8') for kind in ('html', 'css', 'js'))
        policy = (f"default-src 'none'; img-src data:; style-src '{_digest(css)}'; script-src '{_digest(js)}'; "
                  "base-uri 'none'; form-action 'none'")
        html = html.replace('{{policy}}', policy).replace('{{gallery.css}}', css).replace('{{gallery.js}}', js)
        return html.replace('{{data}}', text)  # last: nothing in it is replaced

    def write(self, path):
        """Write the page, whole or not at all. Returns its size in bytes."""
        content = self.page().encode('utf-8', 'replace')  # names of files may hold bytes that are no text
        whole_files.write_atomically(path, lambda file: file.write_bytes(content))
        return len(content)
