"""Maps: resized, normalised, ranked."""
import torch
import torch.nn.functional as F


def resize(maps, size):
    """(N,h,w) -> (N,*size), bilinear with pixel centres aligned at half pixels, no anti-aliasing."""
    return F.interpolate(maps[:, None], size=size, mode='bilinear', align_corners=False)[:, 0]


def _by_max(maps, low, high):
    return maps / high


def _by_range(maps, low, high):
    return (maps - low) / (high - low)


def _as_is(maps, low, high):
    return maps


def _by_rank(maps, low, high):
    flat = maps.flatten(-2).contiguous()
    ordered = flat.sort(-1).values
    below, up_to = (torch.searchsorted(ordered, flat, right=right) for right in (False, True))
    return ((below + up_to) / (2 * flat.shape[-1])).to(maps).view_as(maps)


NORM_TYPES = {'max': _by_max, 'minmax': _by_range, 'clipping': _as_is, 'rank': _by_rank}


def normalise(maps, norm_type):
    """Each map (...,H,W) on its own to [0,1]; a constant map or one with a NaN becomes zeros.

    norm_type: 'max' m / max, 'minmax' (m - min) / (max - min), 'clipping' m; then clamped to [0,1]. 'rank' is the share
    of the map's pixels that are lower, of equal ones the half: nothing but the order of the pixels is left.
    """
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    usable = low < high  # False for constant maps, and for NaN, which amin and amax hand on
    scaled = NORM_TYPES[norm_type](maps, low, high).nan_to_num(0).clamp(0, 1)  # 0 / 0: a maximum of 0
    return torch.where(usable, scaled, torch.zeros_like(scaled))


def ranks(maps, generators):
    """Each pixel's place in the order from the highest value down; ties fall at random.

    maps: (N,H,W); generators: N torch.Generator, one per image. CUDA's own draw where the maps are, and draw another
    order than the CPU's of the same seed. Returns two (N,H*W) int64 tensors where the maps are: the ranks by value, and
    those of a random order.
    (A ReLU prior makes many exact ties; in reading order they would erase the picture from its top.)
    """
    flat = maps.flatten(1)
    random = torch.stack([torch.randperm(flat.shape[1], generator=g, device=g.device) for g in generators])
    random = random.to(maps.device)  # (N,P)
    order = flat.gather(1, random).argsort(dim=1, descending=True, stable=True)
    order = random.gather(1, order)  # the pixels from the highest value down
    place = torch.arange(flat.shape[1], device=maps.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, place), random
