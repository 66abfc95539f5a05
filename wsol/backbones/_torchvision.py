"""Import torchvision where its compiled operators do not load.

torchvision's wheel is built against CUDA's torch. Beside a CPU build of torch its operators stay
unregistered and a plain `import torchvision` stops with "operator torchvision::nms does not
exist". Naming the two operators that the import looks for is enough: models, transforms and
data sets need none of them (nms and torchvision.io's decoders stay unusable, and unused here).
Where the plain import works, nothing is done. Import torchvision after this module.
"""
import sys

import torch

try:
    import torchvision
except RuntimeError as error:
    if 'torchvision::nms' not in str(error):
        raise
    for name in [name for name in sys.modules if name.split('.')[0] == 'torchvision']:
        del sys.modules[name]  # the half-imported pieces
    _operators = torch.library.Library('torchvision', 'DEF')  # its definitions live as long as it does
    _operators.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    _operators.define('qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    import torchvision

__all__ = ['torchvision']
