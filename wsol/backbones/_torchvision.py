"""Import torchvision even if its compiled operators do not load.

torchvision's wheel is built for CUDA's torch. With a CPU build of torch its operators are not registered, and
`import torchvision` fails with "operator torchvision::nms does not exist". It is enough to declare the two operators
that the import looks for: models, transforms and data sets use neither. (nms and torchvision.io's decoders do not work
then; nothing here uses them.) Where the plain import works, nothing else is done.
"""
import sys

import torch

OPERATORS = ('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor',
             'qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
DECLARED = []  # operators stay declared as long as their Library lives


class _Mend:
    """Declares the operators just before the part of torchvision that needs them is imported, by anyone."""
    @staticmethod
    def find_spec(name, *_):
        if name == 'torchvision._meta_registrations' and not hasattr(torch.ops.torchvision, 'nms'):
            DECLARED.append(torch.library.Library('torchvision', 'DEF'))
            for operator in OPERATORS:
                DECLARED[-1].define(operator)


sys.meta_path.insert(0, _Mend)
