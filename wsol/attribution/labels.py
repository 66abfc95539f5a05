"""What the values of a map are, in words: the labels of colour bars.

A is the class that is explained, B the class it is contrasted with, x the image, z a cell of the map.
"""
# method -> (what is measured of a class {c}, per what); without {c} the map is the same for every class
LABELS = {
    'vanilla': ('logit of {c}', 'per cell'),
    'vanilla-saliency': ('sum over all classes of their logits, each scaled to 0..1', 'per cell'),
    'vanilla-superclass': ('logits scaled to 0..1, summed over the superclass of {c}', 'per cell'),
    'jointll': ('p({c}, z | x)', 'per cell'),
    'jointll-superclass': ('p(superclass of {c}, z | x)', 'per cell'),
    'jointll-superclass-mean': ('mean of p(y, z | x) over the superclass of {c}', 'per cell'),
    'gtcond': ('p(z | x, {c})', 'per cell'),
    'gtcond-superclass': ('sum of p(z | x, y) over the superclass of {c}', 'per cell'),
    'gtcond-superclass-mean': ('mean of p(z | x, y) over the superclass of {c}', 'per cell'),
    'saliency': ('p(z | x)', 'per cell'),
    'random': ('uniform noise', ''),
    'backprop': ('gradient of the score of {c}', 'largest over colours'),
    'input_grad': ('gradient of the score of {c}', 'largest over colours'),
    'integrated_grad': ('gradients of the score of {c}, from zero to the image', 'summed'),
    'smooth_grad': ('gradient of the score of {c}', 'mean over noisy copies'),
    'smooth_grad_square': ('squared gradient of the score of {c}', 'mean over noisy copies'),
    'var_grad': ('gradient of the score of {c}', 'variance over noisy copies'),
    'input_x_gradient': ('image × gradient of the score of {c}', 'per pixel'),
    'integrated_gradients': ('contribution to the score of {c}', 'per pixel'),
    'grad_cam': ('gradient-weighted features for {c}', 'per cell'),
    'grad_cam_pp': ('gradient-weighted features for {c}', 'per cell'),
    'layer_cam': ('gradient × features for {c}', 'per cell'),
    'score_cam': ('score-weighted features for {c}', 'per cell'),
    'occlusion': ('score of {c} lost when hidden', 'per pixel'),
}
SIGNED = {'input_x_gradient', 'integrated_gradients', 'occlusion'}  # speak for the class or against it
DIFFERENCE = '-difference'  # of an attribution method's maps of two classes: a contrast method too
CONTRAST_LABELS = {
    'joint-difference': 'p(A, z | x) − p(B, z | x) per cell',
    'posterior-difference': 'p(z | x, A) − p(z | x, B) per cell',
    'log-odds': 'log p(A | x, z) / p(B | x, z), nats',
    'prior-log-odds': 'p(z | x) log p(A | x, z) / p(B | x, z), nats',
    'evidence': 'part of log p(A | x) / p(B | x), nats per cell',
}


def _joined(what, per):
    return f'{what} {per}'.strip()


def map_label(process):
    """Of the map of class A."""
    what, per = LABELS[process]
    return _joined(what.format(c='A'), per)


def difference_label(process):
    """Of the map of A minus the map of B."""
    what, per = LABELS[process]
    short = len(what) < len('p(superclass of {c}, z | x) ')
    return _joined(f'{what.format(c="A")} − {what.format(c="B") if short else "the same of B"}', per)


def contrast_label(name):
    """Of a contrast method: one of its own, or an attribution method that explains log p(A|x) / p(B|x)."""
    if name in CONTRAST_LABELS:
        return CONTRAST_LABELS[name]
    if name.endswith(DIFFERENCE):
        return difference_label(name.removesuffix(DIFFERENCE))
    what, per = LABELS[name]
    return _joined(what.replace('the score of {c}', 'log p(A | x) / p(B | x)').replace(
        'score of {c}', 'log p(A | x) / p(B | x)').replace('{c}', 'A rather than B'), per)


def is_signed_contrast(name):
    """Whether a contrast method's map speaks for A or for B: magnitudes, and what ReLU leaves, only say where."""
    return name in CONTRAST_LABELS or name in SIGNED or name.endswith(DIFFERENCE)
