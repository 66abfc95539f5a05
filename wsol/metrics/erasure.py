"""Remove-and-classify: the first pixels of an order are erased, and something else is put in their place.

Sources: Kim et al., ICCV 2021, section 5 (zeros); ROAD, Rong et al., ICML 2022 (noisy linear imputation); Petsiuk et
al., BMVC 2018 (deletion and insertion).
"""
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from wsol.maps import resize

ERASE_RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)
FILLS = ('zeros', 'road')
DEVIATION = 0.01  # of ROAD's noise, in normalised images
CAVEAT = ('Smoothness alone moves figures of erasure, whatever a map means (arXiv 2304.13836): read them beside those '
          'of coarse noise')
COARSE = 7        # cells on a side of coarse noise


def erase(images, rank, ratio, fill='zeros', generators=()):
    """Erase the int(ratio*H*W) first-ranked pixels. images: (N,3,H,W); rank: (N,H*W); ratio: one or N.

    fill: in FILLS: zeros, or ROAD's noisy linear imputation. generators: N torch.Generator of the CPU, for its noise.
    """
    limits = [int(one * rank.shape[1]) for one in np.atleast_1d(ratio)]
    kept = rank >= torch.tensor(limits, device=rank.device)[:, None]
    kept = kept.view(len(images), 1, *images.shape[2:])
    if fill == 'zeros':
        return images * kept.to(images)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        filled = list(pool.map(impute, images.double().cpu().numpy(), kept[:, 0].cpu().numpy()))
    noise = torch.stack([DEVIATION * torch.randn(images.shape[1:], generator=one) for one in generators]).to(images)
    return torch.where(kept, images, torch.from_numpy(np.stack(filled)).to(images) + noise)


def impute(image, kept):
    """An image whose erased pixels are each the weighted mean of their eight neighbours, erased ones too (ROAD, without
    its noise): those beside it weigh twice as much as those across. image: (C,H,W) float64; kept: (H,W) bool. Zeros
    where nothing is kept. At the border the mean is that of the neighbours within the image.

    One sparse linear system, of the erased pixels x: sum_j w_ij (x_i - x_j) = 0 for each erased pixel i.
    """
    from scipy import sparse  # takes a while: only this fill needs it
    from scipy.sparse.linalg import splu
    if kept.all() or not kept.any():
        return image * kept
    down, right = (sparse.diags([1.0, 1.0], [-1, 1], (side, side)) for side in kept.shape)  # a step either way
    beside = sparse.kron(sparse.eye(kept.shape[0]), right) + sparse.kron(down, sparse.eye(kept.shape[1]))
    erased = ~kept.ravel()
    weights = (beside / 6 + sparse.kron(down, right) / 12).tocsr()[erased]  # (erased pixels, all pixels)
    system = sparse.diags(weights @ np.ones(kept.size)) - weights[:, erased]  # symmetric and positive definite
    solve = splu(system.tocsc(), 'MMD_AT_PLUS_A', diag_pivot_thresh=0, options={'SymmetricMode': True}).solve
    filled = image.copy()
    filled[:, ~kept] = solve(weights[:, ~erased] @ image[:, kept].T).T
    return filled


def coarse_noise(size, generators):
    """Uniform noise on COARSE x COARSE cells, enlarged: a control as smooth as a map. generators: N torch.Generators of
    the CPU. Returns (N,*size)."""
    return resize(torch.stack([torch.rand(COARSE, COARSE, generator=one) for one in generators]), size)


def area_over_erased(intact, erased, blank):
    """The area under a curve over the erased share 0..1, by the trapezoid: deletion (Petsiuk et al.) where the highest
    pixels go first, insertion where the lowest do. intact: (N,); erased: (N,R) at ERASE_RATIOS; blank: (N,). Returns
    (N,)."""
    values = np.concatenate([intact[:, None], erased, blank[:, None]], axis=1)  # (N,R+2)
    return (np.diff([0, *ERASE_RATIOS, 1]) * (values[:, 1:] + values[:, :-1]) / 2).sum(1)
