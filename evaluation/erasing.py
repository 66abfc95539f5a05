"""Images with erased pixels: the order in which pixels are erased, and the class scores of the rest."""
import itertools

import numpy as np
import torch

import util
from wsol import metrics
from wsol.maps import ranks, resize

CHECKED = metrics.ERASE_RATIOS[:3]  # the shares that a check of a user's photos erases
CONTROLS = ('random pixels', 'coarse noise')


def pixel_orders(maps, size, seeds, device):
    """Orders of the pixels, each (B,H*W) places from 0: a list by the maps of each method from the highest value down,
    one at random, and one by coarse noise, the control. maps: for each method B of (1,h,w). size: (H,W). seeds: (B,),
    one for each image."""
    drawn_on = device if device.type == 'cuda' else 'cpu'  # on CUDA itself, so that no random order is copied to it
    tops = []
    for of_method in maps:
        resized = torch.cat([resize(one, size) for one in of_method])  # (B,H,W)
        top, random = ranks(resized, _generators(seeds, drawn_on))  # each method gets the same random order
        tops.append(top)
    drawn = _generators([util.seed_of(seed, 1) for seed in seeds], 'cpu')  # another seed than that of the random pixels
    coarse, _ = ranks(metrics.coarse_noise(size, drawn), drawn)
    return tops, random, coarse.to(device)


def _generators(seeds, device):
    return [torch.Generator(device).manual_seed(int(seed)) for seed in seeds]


@torch.inference_mode()
def erased_scores(model, images, orders, ratios, seeds, fill='zeros', precision='float32', at_a_time=64):
    """Class scores (O*R*B,C) of images (B,3,H,W), erased in O orders, each (B,H*W), to R shares.

    seeds: (B,), of ROAD's noise. at_a_time: erased images in a forward, whatever their order and share.
    """
    copies, scores = list(itertools.product(orders, ratios, range(len(images)))), []
    for start in range(0, len(copies), at_a_time):
        ranks_of, shares, rows = zip(*copies[start:start + at_a_time], strict=True)
        rank = torch.stack([of_images[row] for of_images, row in zip(ranks_of, rows, strict=True)])
        noise = _generators([seeds[row] for row in rows], 'cpu')
        erased = metrics.erase(images[list(rows)], rank, shares, fill, noise)
        with util.autocast(precision, images.device):
            scores.append(model(erased))
    return torch.cat(scores)


@torch.inference_mode()
def check_maps(model, images, classes, maps, seeds, **options):
    """Check maps by erasing: for each image {fill: {name: p(class) for each of CHECKED}}, by methods and CONTROLS.

    classes: (B,). maps: {method: (B,1,h,w)}. seeds: (B,). options: passed to erased_scores.
    """
    tops, *controls = pixel_orders(maps.values(), images.shape[2:], seeds, images.device)
    orders = dict(zip([*maps, *CONTROLS], [*tops, *controls], strict=True))
    checks = [{} for _ in images]
    for fill in metrics.FILLS:
        p = model.probabilities(erased_scores(model, images, orders.values(), CHECKED, seeds, fill, **options))
        p = p.gather(1, classes.repeat(len(orders) * len(CHECKED))[:, None]).view(len(orders), len(CHECKED), -1)
        for row, of_image in enumerate(p.permute(2, 0, 1).tolist()):
            checks[row][fill] = dict(zip(orders, of_image, strict=True))
    return checks


def compare_with_noise(checks, seed=0):
    """{method: {fill: record}}: on how many photos, and on how many of all, erasing by the map lowers the mean p over
    CHECKED more than erasing by coarse noise; low, high: the interval of this share. checks: from check_maps."""
    summary = {}
    for fill in metrics.FILLS:
        means = {name: np.array([np.mean(check[fill][name]) for check in checks]) for name in checks[0][fill]}
        for method in (name for name in means if name not in CONTROLS):
            wins = means[method] < means['coarse noise']
            _, low, high = metrics.bootstrap_mean(wins.astype(float), seed)
            summary.setdefault(method, {})[fill] = {'lower': int(wins.sum()), 'photos': len(wins), 'low': low,
                                                    'high': high}
    return summary
