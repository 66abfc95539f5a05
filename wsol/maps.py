"""Maps: resized, normalised, ranked."""
import numpy as np
import torch
import torch.nn.functional as F


def resize(maps, size):
    """(N,h,w) -> (N,*size), bilinear with pixel centres aligned at half pixels, no anti-aliasing."""
    if maps.shape[1:] == tuple(size):
        return maps
    return F.interpolate(maps[:, None], size=size, mode='bilinear', align_corners=False)[:, 0]


def blurred(maps, width=1 / 8):
    """Maps (...,h,w) blurred by a Gaussian whose deviation is this share of each side; their means stay as they are."""
    from scipy.ndimage import gaussian_filter1d  # takes a while: only this control needs it
    down, right = (torch.from_numpy(gaussian_filter1d(np.eye(side), width * side, axis=0)).to(maps)
                   for side in maps.shape[-2:])  # mirrored at the border: rows and columns sum to 1
    return down @ maps @ right.mT


ROUNDING = 1e-5  # relative to a map's largest value: the error of float32 sums over thousands of features


def is_constant(maps):
    """(...,h,w) -> (...) bool: whether a map has one value everywhere, except for rounding."""
    return maps.amax((-2, -1)) - maps.amin((-2, -1)) <= ROUNDING * maps.abs().amax((-2, -1))


def _by_rank(maps, low, high):
    """The share of a map's pixels that are lower, and half of those that are equal."""
    flat = maps.flatten(-2).contiguous()
    ordered = flat.sort(-1).values
    below, up_to = (torch.searchsorted(ordered, flat, right=right) for right in (False, True))
    return ((below + up_to) / (2 * flat.shape[-1])).to(maps).view_as(maps)


NORM_TYPES = {  # functions of maps (...,H,W), their lowest and their highest values (...,1,1)
    'max': lambda maps, low, high: maps / high,
    'minmax': lambda maps, low, high: (maps - low) / (high - low),
    'clipping': lambda maps, low, high: maps,
    'rank': _by_rank,
}


def normalise(maps, norm_type):
    """Scale each map (...,H,W) to [0,1] by itself; a constant map, or one with a NaN, becomes zeros.

    norm_type: a key of NORM_TYPES; what exceeds [0,1] is cut. 'rank' keeps nothing but the order of the pixels.
    """
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    usable = low < high  # not so for constant maps, nor for NaN, which amin and amax hand on
    scaled = NORM_TYPES[norm_type](maps, low, high).nan_to_num(0).clamp(0, 1)  # 0 / 0: a maximum of 0
    return torch.where(usable, scaled, torch.zeros_like(scaled))


def ranks(maps, generators):
    """Each pixel's place in the order from the highest value down, and in a random order; ties fall at random.

    maps: (N,H,W). generators: N torch.Generator, one per image; those of CUDA draw another order than those of the CPU
    from the same seed. Returns two (N,H*W) int64 tensors on the maps' device.
    A ReLU prior makes many exact ties: taken from the top down, they would erase the picture from its top.
    """
    flat = maps.flatten(1)
    random = torch.stack([torch.randperm(flat.shape[1], generator=g, device=g.device) for g in generators])
    random = random.to(maps.device)  # (N,P)
    order = flat.gather(1, random).argsort(dim=1, descending=True, stable=True)
    order = random.gather(1, order)  # the pixels from the highest value down
    place = torch.arange(flat.shape[1], device=maps.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, place), random
