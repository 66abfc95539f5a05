"""Remove-and-classify: the highest pixels of an image are set to zero.

Source: Kim et al., ICCV 2021, section 5.
"""
import numpy as np
import torch

ERASE_RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)


def erase(images, rank, ratio):
    """Set the int(ratio*H*W) first-ranked pixels to zero. images: (N,3,H,W); rank: (N,H*W); ratio: one, or one each."""
    limits = [int(one * rank.shape[1]) for one in np.atleast_1d(ratio)]
    kept = rank >= torch.tensor(limits, device=rank.device)[:, None]
    return images * kept.view(len(images), 1, *images.shape[2:]).to(images)
