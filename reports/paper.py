"""The published figures that the code compares ours with. README.md and docs/protocols.md repeat some of them.

Source: Kim, Choe, Akata, Oh, *Keep CALM and Improve Visual Feature Attribution*, ICCV 2021 (arXiv 2106.07861): table 2,
cue localization on CUB with ResNet-50; the accuracies are those of the published code's weights, ResNet-50 with 28x28
maps. The paper draws remove-and-classify as curves, without numbers.
"""
from evaluation.pxap import KEYS  # noqa: F401  the columns of PXAP

_CUE_LOCALIZATION = {  # (head, attribution method) -> its name; PxAP on CUB in percent, in the order of KEYS
    ('CAM', 'backprop'): ('vanilla gradient', 10.0, 13.7, 15.3, 13.9),
    ('CAM', 'integrated_grad'): ('integrated gradient', 12.0, 15.1, 17.3, 15.7),
    ('CAM', 'smooth_grad'): ('SmoothGrad', 11.8, 15.5, 18.6, 16.5),
    ('CAM', 'var_grad'): ('VarGrad', 16.7, 21.1, 23.1, 21.4),
    ('CAM', 'vanilla'): ('CAM', 24.1, 28.3, 32.2, 29.6),
    ('CALM_ML', 'jointll'): ('CALM_ML', 23.6, 26.7, 28.8, 27.3),
    ('CALM_EM', 'jointll'): ('CALM_EM', 30.4, 33.3, 36.3, 34.3),
}
METHODS = {method: name for method, (name, *_) in _CUE_LOCALIZATION.items()}
PXAP = {method: tuple(figures) for method, (_, *figures) in _CUE_LOCALIZATION.items()}
PXAP['CAM', 'input_grad'] = PXAP['CAM', 'backprop']  # two names of one method
ACCURACY = {  # (head, data set) -> top-1 in percent on the test split
    ('CALM_EM', 'CUB'): 71.8, ('CALM_EM', 'OpenImages'): 70.1, ('CALM_EM', 'ILSVRC'): 70.4,
    ('CALM_ML', 'CUB'): 59.6, ('CALM_ML', 'OpenImages'): 70.9, ('CALM_ML', 'ILSVRC'): 70.6,
}


def name_of(*method):
    """The paper's name of (head, attribution method), else the two of them."""
    return METHODS.get(method, ', '.join(filter(None, method)))
