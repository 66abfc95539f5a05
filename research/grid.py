"""Grid pointing game: does the map of a class fall on the photo that shows it? Any data set, without annotations.

Four test photos of four classes, all classified correctly, stand in a 2x2 grid, which the network sees as one image.
For each class, the figure is the share of the positive part of its map that lies on its photo: chance is 25 %, higher
is better. The photos are the most confidently classified ones of each class; each stands in one grid. Networks that
take one size of images get the grid resized to it. A map that is the same for all classes has exactly 25 %.
Source: Böhle et al., CVPR 2021 (CoDA Networks; with 3x3 grids).
Result, for each method: save/<experiment_name>/grid_<data set>_<head>_<method>.<8 digits>.json.

    python -m research.grid --experiment_name=calm_em --score_map_process=jointll,saliency,grad_cam
"""
import numpy as np
import torch
import torch.nn.functional as F

import config
import util
from data_loaders import batches_in_order, in_order
from dataset.fingerprints import combined
from evaluation import session
from experiment.result_files import as_text
from experiment.training import classify
from runtime import processes, screen
from wsol import metrics
from wsol.errors import UserError
from wsol.maps import resize
from wsol.networks import check_image_size

CELLS = 4    # photos of a grid
MOST = 500   # grids
DECIMALS = 2  # of a grid's percentage


def make_grids(p, labels, seed):
    """The images of each grid, (G,4), of four classes each: the most confident image of every class, four at a time in
    a random order; then every class's second one, and so on. p: (N,), p(true class), 0 for images that are not
    classified correctly. Raises UserError if there is no grid.
    """
    by_class = {}
    for index in np.argsort(-p, kind='stable'):
        if p[index] > 0:
            by_class.setdefault(labels[index], []).append(index)
    if len(by_class) < CELLS:
        raise UserError(f'a grid needs correctly classified test images of {CELLS} classes; this network classifies '
                        f'some of {len(by_class)} classes correctly')
    rng, grids = np.random.default_rng(seed), []
    for place in range(max(map(len, by_class.values()))):
        row = rng.permutation([images[place] for images in by_class.values() if len(images) > place])
        grids += [row[start:start + CELLS] for start in range(0, len(row) - CELLS + 1, CELLS)]
    return np.array(grids[:MOST])


def cell_shares(maps, size):
    """The share of the positive part of each map that lies on its photo: maps (4,h,w) of a grid of photos of this size
    -> (4,), NaN where nothing is positive."""
    cells = torch.eye(CELLS, dtype=torch.bool, device=maps.device).view(CELLS, 2, 1, 2, 1)
    cells = cells.expand(-1, -1, size, -1, size).reshape(CELLS, -1)  # (4,2S*2S)
    return metrics.mass_inside(resize(maps, (2 * size, 2 * size)).flatten(1), cells)


def measure(network, images, grids, sources):
    """The mean share of each grid in percent, for each of sources: [(G,)], NaN where no map of the grid is positive
    anywhere; before it, whether grids are resized, since the network takes no images of twice the size. Several
    processes share the grids."""
    from torchvision.utils import make_grid  # torchvision takes seconds
    size, results, is_resized = network.args.crop_size, [[] for _ in sources], False
    try:
        check_image_size(network.model, 2 * size)
    except UserError:
        is_resized = True
    batches = batches_in_order(len(grids), max(1, network.args.batch_size // CELLS))
    for rows in screen.progress(batches, 'grid pointing game', 'batch'):
        chosen = grids[list(rows)]  # (B,4)
        batch = torch.stack([make_grid([images[index][0] for index in grid], nrow=2, padding=0)
                             for grid in chosen.tolist()])  # (B,3,2S,2S)
        if is_resized:
            batch = F.interpolate(batch, (size, size), mode='bilinear', antialias=True)
        batch = util.to_device(batch, network.device)
        classes = torch.from_numpy(images.labels[chosen]).to(network.device)
        activations = sources[0].forward(batch)
        for source, result in zip(sources, results, strict=True):
            for maps in source(batch, torch.from_numpy(chosen[:, 0]), classes, activations).maps:
                result.append(100 * float(cell_shares(maps.float(), size).nanmean()))
    return is_resized, [in_order(batches, np.array(result)).round(DECIMALS) for result in results]


def make_parser():
    """The parser of this script's flags."""
    return config.make_parser(__doc__, *config.MAPS, 'cache', 'control', listed=('score_map_process',))


def main():
    network = session.open_network(config.parse(make_parser()))
    args, data = network.args, session.open_data(network)
    methods = args.score_map_process or (None,)
    if config.OBJECT_MASK in methods:
        raise UserError(f'--score_map_process={config.OBJECT_MASK}: a grid has no segmentation; name methods of the '
                        'network')
    chosen = [session.choose_maps(network, data, 'grid', score_map_process=method) for method in methods]
    images = network.open_split(data, 'test')
    sources = [maps.source(images) for maps in chosen]
    results = [maps.result_file(images, [source]) for maps, source in zip(chosen, sources, strict=True)]
    confidence, correct = classify(network.model, network.loader(images), network.device, args.precision, 'test')
    p = np.where(correct, confidence, 0)
    grids = make_grids(p, images.labels, args.seed)
    is_resized, shares = measure(network, images, grids, sources)
    if not processes.is_first():
        return
    rows, lowest = [], float(p[grids].min())
    for maps, result, of_grids in zip(chosen, results, shares, strict=True):
        mean, low, high = share = metrics.bootstrap_mean(of_grids, args.seed)
        rows.append([maps.name, mean, None if low is None else f'{low:.1f} .. {high:.1f}', np.isfinite(of_grids).sum()])
        result.write({'grids': len(grids), 'lowest_confidence': lowest, 'is_resized': is_resized, 'share': share,
                      'grids_sha256': combined(grids), 'share_by_grid': as_text(of_grids, DECIMALS)})
    resized = f', resized to {args.crop_size} pixels, since the network takes no larger ones' * is_resized
    screen.say(f'\n{len(grids)} grids of {CELLS} test images of {data.name}{resized}, p(true class) at least '
               f'{lowest:.2f}; chance is {100 / CELLS:.0f} %')
    screen.say(screen.table(['mass on its photo, %', 'mean', '95 % of the grids', 'grids'], rows))


if __name__ == '__main__':
    screen.run(main)
