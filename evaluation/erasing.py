"""Images of which pixels are erased: in which order the pixels go, and what the network says of the rest."""
import torch

import util
from wsol import metrics
from wsol.maps import ranks, resize


def pixel_orders(maps, size, seeds, device):
    """Three orders of the pixels, each (B,H*W) places from 0: by the maps from the highest value down, at random, and
    by coarse noise, the control. maps: B of (1,h,w). size: (H,W). seeds: (B,), of the images."""
    maps = torch.cat([resize(one, size) for one in maps])  # (B,H,W)
    drawn_on = device if device.type == 'cuda' else 'cpu'  # on CUDA itself, so that no random order is copied to it
    top, random = ranks(maps, _generators(seeds, drawn_on))
    drawn = _generators([util.seed_of(seed, 1) for seed in seeds], 'cpu')  # another seed than that of the random pixels
    coarse, _ = ranks(metrics.coarse_noise(size, drawn), drawn)
    return top, random, coarse.to(device)


def _generators(seeds, device):
    return [torch.Generator(device).manual_seed(int(seed)) for seed in seeds]


@torch.inference_mode()
def erased_scores(model, images, copies, seeds, fill='zeros', precision='float32', at_a_time=64):
    """Class scores (N,C) of N erased copies of images (B,3,H,W).

    copies: [(order (B,H*W), share that is erased, row of the image)]. seeds: (B,), of ROAD's noise. at_a_time: copies
    in a forward.
    """
    scores = []
    for start in range(0, len(copies), at_a_time):
        orders, ratios, rows = zip(*copies[start:start + at_a_time], strict=True)
        rank = torch.stack([order[row] for order, row in zip(orders, rows, strict=True)])
        noise = None if fill == 'zeros' else _generators([seeds[row] for row in rows], 'cpu')
        erased = metrics.erase(images[list(rows)], rank, ratios, fill, noise)
        with util.autocast(precision, images.device):
            scores.append(model(erased))
    return torch.cat(scores)
