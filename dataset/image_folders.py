"""Which files of a folder are images, and which of these open."""
import os
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np

from dataset.image_files import ADVICE, REMEDY, is_image, is_of_the_system, open_image, open_upright
from runtime import processes
from runtime.screen import progress, warn
from util import usable_cores
from wsol.errors import UserError

# files with these suffixes are taken for images without a look inside
SUFFIXES = ('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.bmp', '.gif', '.tif', '.tiff', '.webp', '.ppm', '.pgm', '.tga',
            '.xbm')


def is_hidden(name):
    """Whether file managers or notebooks left it: .DS_Store, ._photo.jpg, .ipynb_checkpoints, __MACOSX."""
    return name.startswith('.') or name == '__MACOSX'


def images_below(root, besides=None):
    """The sorted ids of the image files below a folder, linked folders included: their paths relative to it.

    Files with other suffixes count if PIL recognises them; a warning counts the rest. besides: a resolved folder that
    is not looked into. Raises UserError for a folder that cannot be read.
    """
    def refuse(error):
        if not isinstance(error, FileNotFoundError) or error.filename != str(root):
            raise UserError(f'the folder {error.filename} cannot be read ({error.strerror}): its images would be left '
                            'out') from error
    ids, unknown, hidden = [], [], 0
    for folder, folders, files in os.walk(str(root), onerror=refuse, followlinks=True):
        hidden += sum(map(is_hidden, (*folders, *files)))
        folders[:] = [name for name in folders if not is_hidden(name) and not _leads_back(Path(folder, name))
                      and (besides is None or Path(folder, name).resolve() != besides)]
        inside = f'{Path(folder).relative_to(root)}/'.removeprefix('./')  # to make a Path of each file would be slow
        for name in files:
            if not is_hidden(name):
                (ids if name.lower().endswith(SUFFIXES) else unknown).append(inside + name)
    images = {image_id for image_id in progress(unknown, 'looking into files', 'file', leave=False, delay=3)
              if is_image(Path(root, image_id))}
    kinds = Counter(Path(name).suffix.lower() or 'without a suffix' for name in unknown if name not in images)
    kinds += Counter(hidden=hidden)
    if kinds:
        warn(f'left out of {root}: ' + ', '.join(f'{count} {kind}' + f' ({ADVICE.get(kind)})' * (kind in ADVICE)
                                                 for kind, count in kinds.most_common()))
    ids = sorted([*ids, *images])
    odd = next((image_id for image_id in ids if image_id != image_id.encode(errors='replace').decode()), None)
    if odd is not None:
        coding = sys.getfilesystemencoding()
        remedy = 'rename it' if coding == 'utf-8' else 'set PYTHONUTF8=1 if it is UTF-8'
        raise UserError(f'{str(Path(root, odd))!r}: the name of this file is not {coding.upper()}; {remedy}')
    return ids


def _leads_back(path):
    """Whether a path is a link to a folder that holds the link, so that following it would have no end."""
    return path.is_symlink() and any(above.resolve().is_relative_to(path.resolve()) for above in path.parents)


def in_threads(function, items, description, **options):
    """Yield function(item) for each item of a sequence, in order, computed by threads. options: of the progress bar."""
    with ThreadPoolExecutor(usable_cores()) as pool:
        # the pool queues everything that it is given: chunks keep the memory small
        chunks = (items[start:start + 256] for start in range(0, len(items), 256))
        results = chain.from_iterable(pool.map(function, chunk) for chunk in chunks)
        yield from progress(results, description, 'image', total=len(items), **options)


def problems_of(paths, read=open_image, remedy=REMEDY):
    """Decode every image of a list. Returns for each of them why it does not open, or None if it does: [str or None].

    read: open_image or open_upright. remedy: passed on to it.
    """
    def problem(path):
        try:
            read(path, remedy=remedy)
        except UserError as error:
            if is_of_the_system(error.__cause__):
                raise
            return str(error)
        return None
    return list(in_threads(problem, paths, 'opening images'))


def opening_images(paths, name, read=open_upright):
    """The indices of the image files that open; warns of the others. Raises UserError if none opens.

    name: what the warning calls the images. read: as in problems_of. Several processes share the work.
    """
    problems = processes.share(paths, lambda part: problems_of(part, read, 'replace it'))
    broken = list(filter(None, problems))
    if broken and len(broken) == len(paths):
        raise UserError(f'none of the {len(paths)} images of {name} opens; the first: {broken[0]}')
    if broken:
        warn(f'{len(broken)} of {len(paths)} images of {name} do not open and are left out; the first: {broken[0]}')
    return np.flatnonzero([problem is None for problem in problems])
