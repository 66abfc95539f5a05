"""torch.compile for a network's backbone, where that is asked for: long work on images of one size."""
import torch

from wsol.errors import UserError


def compile_backbone(model, backend='inductor'):
    """Have torch.compile run the network's stages, in place; the heads and the names of the weights stay as they are.

    model: of build_model. backend: torch.compile's. What is replaced before the first images is compiled, too. Features
    stay equal up to rounding. Raises UserError, at the latest with the first images, where torch cannot compile: that
    takes a C++ compiler, and Triton on a GPU.
    """
    from torch._dynamo.exc import TorchDynamoException  # it takes a second, which only those spend who compile

    def extract_features(images):
        try:
            return compiled(images)
        except TorchDynamoException as error:
            raise _cannot_compile(error) from error
    try:
        compiled = torch.compile(model.extract_features, backend=backend)
    except RuntimeError as error:  # a version of Python for which this torch has no compiler
        raise _cannot_compile(error) from error
    model.extract_features = extract_features


def _cannot_compile(error):
    reason = ' '.join(str(error).split('Set TORCHDYNAMO_VERBOSE')[0].split())[:200]  # advice to developers follows
    return UserError(f'--compile: torch cannot compile here ({reason}); that takes a C++ compiler such as g++, and '
                     'Triton on a GPU. Install what is missing, or leave --compile out')
