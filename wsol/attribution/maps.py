"""The one call that gives the maps of any attribution method: attribution_maps.

Letters: B images, K asked classes, C classes, h x w the grid.
"""
import torch

from wsol.attribution.registry import Query, SamplingSettings, find_method
from wsol.contexts import evaluating, unwrapped
from wsol.errors import UserError
from wsol.heads import CAM


def check_classes(model, images, labels, contrast):
    """Raise UserError unless labels and contrast are valid classes for this batch."""
    if contrast is not None and labels is None:
        raise UserError('contrast= asks "why this class and not that one": say which one in labels=')
    batch, num_classes = len(images), model.conv_last.out_channels
    for name, chosen in (('labels', labels), ('contrast', contrast)):
        if chosen is None:
            continue
        if not isinstance(chosen, torch.Tensor) or chosen.dtype != torch.int64:
            kind = getattr(chosen, 'dtype', type(chosen).__name__)
            raise UserError(f'{name}= should be an int64 tensor, it is {kind}')
        if chosen.ndim not in (1, 2) or len(chosen) != batch or chosen.shape != labels.shape:
            raise UserError(f'{name}= has the shape {tuple(chosen.shape)}: it should be ({batch},) or ({batch},K), and '
                            'contrast= should have the shape of labels=')
        low, high = torch.stack(chosen.aminmax()).tolist() if chosen.numel() else (0, 0)  # the host waits once
        if not 0 <= low <= high < num_classes:
            raise UserError(f'{name}= goes from {low} to {high}, classes are 0 to {num_classes - 1}')


def pose(model, images, labels, contrast, seeds, superclasses, settings, activations):
    """The Query of these arguments, which are those of attribution_maps. Raises UserError.

    Its model is the CAM or CALM inside DataParallel and the like.
    """
    model = unwrapped(model)
    if not isinstance(model, CAM):
        raise UserError(f'a {type(model).__name__} has no maps: only CAM and CALM have, which build_model, from_module '
                        'and from_classifier make')
    check_classes(model, images, labels, contrast)
    if labels is None:
        labels = torch.arange(model.conv_last.out_channels).expand(len(images), -1)
    labels, contrast = (None if chosen is None else chosen.to(images.device)[:, None].flatten(1)
                        for chosen in (labels, contrast))  # (B,K)
    seeds = list(range(len(images))) if seeds is None else seeds.tolist()
    return Query(model, images, labels, seeds, superclasses, settings or SamplingSettings(), contrast, activations)


def attribution_maps(model, images, labels=None, method=None, contrast=None, seeds=None, superclasses=None,
                     settings=None, activations=None):
    """Attribution maps of a batch, in the method's own units: nothing is normalised.

    model: from build_model, also inside DataParallel or torch.compile; it explains in eval mode and is left in the mode
    it came in.
    images: (B,3,H,W), normalised as the network expects them.
    labels: (B,) int64 -> maps (B,h,w); (B,K) -> (B,K,h,w); None: all classes, (B,C,h,w).
    method: a key of METHODS; the default is the head's own, logits for CAM and p(y,z|x) for CALM.
    contrast: classes in the shape of labels; the result is map(label) − map(contrast), signed: why this class and not
    that one. For jointll it sums to p(label|x) − p(contrast|x).
    seeds: (B,) int64, for the methods that draw at random; the default is 0..B-1.
    superclasses: (C,C) bool, row c the classes of c's superclass (wsol.annotations.superclasses).
    settings: the SamplingSettings of the gradient methods.
    activations: model.activations(images) of the network in eval mode, where the caller has them: it saves the forward.
    Maps have the grid's size, or the image's for gradients by pixels and for occlusion. Methods that are not per_class
    give one map, repeated. Raises UserError for a method that the head does not define, and for wrong labels.
    """
    query = pose(model, images, labels, contrast, seeds, superclasses, settings, activations)
    method = find_method(method or query.model.default_method, type(query.model))
    with evaluating(query.model):
        maps = method.maps(query) if contrast is None else method.difference_of_maps(query)  # (B,K,h,w)
    return maps[:, 0] if labels is not None and labels.ndim == 1 else maps
