"""Import torchvision even if its compiled operators do not load.

torchvision's wheel is built for CUDA's torch. With a CPU build of torch its operators are not registered, and
`import torchvision` fails with "operator torchvision::nms does not exist". It is enough to declare the two operators
that the import looks for: models, transforms and data sets use neither. (nms and torchvision.io's decoders do not work
then; nothing here uses them.) Where the plain import works, nothing else is done.
"""
import sys
from functools import cache

import torch


@cache
def import_torchvision():
    """The package torchvision. Call this before any other import of it or of its modules."""
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
        torchvision.named_operators = operators  # they are declared as long as this object lives
    return torchvision
