"""torchvision, imported when a network is built, also where its compiled operators do not load.

torchvision's wheel is built against CUDA's torch. Beside a CPU build of torch its operators stay unregistered, and
`import torchvision` stops with "operator torchvision::nms does not exist". It is enough to name the two operators that
the import looks for: models, transforms and data sets need none of them. (nms and torchvision.io's decoders stay
unusable; they are unused here.) Where the plain import works, nothing else is done.
"""
import sys
from functools import cache

import torch


@cache
def import_torchvision():
    """The package torchvision. Other imports of it or of its modules come after this call."""
    try:
        import torchvision
    except RuntimeError as error:
        if 'torchvision::nms' not in str(error):
            raise
        for name in [name for name in sys.modules if name.split('.')[0] == 'torchvision']:
            del sys.modules[name]  # the half-imported pieces
        operators = torch.library.Library('torchvision', 'DEF')
        operators.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
        operators.define('qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
        import torchvision
        torchvision.named_operators = operators  # which are defined as long as this object lives
    return torchvision
