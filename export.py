"""Export a trained network: an image in, the class probabilities and all attribution maps out, in one forward.

CALM's maps p(y,z|x) are part of the classifier, and so are CAM's logits: an exported network needs no other code to
explain its predictions. Result: a file for ONNX (name.onnx) or for torch.export (name.pt2).
Input: images (B,3,S,S), RGB in 0..1, fitted to S x S, with any B; the network normalises them. Outputs: probabilities
(B,C) and maps (B,C,h,w), for CALM the joint p(y,z|x), for CAM the logits. The file also names the classes, the image
size, how photos are fitted to it (`preprocessing`) and the attribution method.

    python export.py --load_checkpoint=calm_em --output=calm.onnx
"""
import io
import json
import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P and -I leave it out

import config
from evaluation import session
from experiment import weights
from runtime import screen, whole_files
from wsol.errors import UserError
from wsol.heads import joint, log_conditional

SUFFIXES = ('.onnx', '.pt2')


class SelfExplaining(nn.Module):
    """images (B,3,S,S) in 0..1 -> probabilities (B,C), maps (B,C,h,w)."""

    def __init__(self, model, normalisation):
        super().__init__()
        self.model = model
        for name, values in zip(('mean', 'deviation'), normalisation, strict=True):
            self.register_buffer(name, torch.tensor(values)[:, None, None])

    def forward(self, images):
        activations = self.model.activations((images - self.mean) / self.deviation)
        probabilities = self.model.probabilities(self.model.class_scores(activations))
        _, logits, prior = activations
        return probabilities, logits if prior is None else joint(log_conditional(logits), prior)


def export(network, size, path, about):
    """Write the network to path. size: of the images. about: its metadata, {name: text}."""
    example = torch.rand(2, 3, size, size)
    batch = torch.export.Dim('batch')
    program = torch.export.export(network, (example,), dynamic_shapes=({0: batch},))
    if path.suffix == '.pt2':
        content = io.BytesIO()
        torch.export.save(program, content, extra_files=about)
        whole_files.write_bytes(path, content.getbuffer())
        return
    try:
        import onnxscript  # noqa: F401  torch's exporter is written with it
    except ImportError as error:
        raise UserError('exporting to ONNX needs two more packages: pip install onnx onnxscript') from error
    exported = torch.onnx.export(program, input_names=['images'], output_names=['probabilities', 'maps'], verbose=False)
    exported.model.metadata_props.update(about)
    whole_files.write_atomically(path, lambda file: exported.save(file))


def make_parser():
    """The parser of this script's flags."""
    return config.make_parser(__doc__, 'pretrained', 'scores', 'class_names', 'output')


def main():
    args = config.parse(make_parser())
    path = Path(args.output or f'{Path(args.load_checkpoint or args.experiment_name).name}.onnx')
    if path.suffix not in SUFFIXES:
        raise UserError(f'--output={path}: the file should end in {" or ".join(SUFFIXES)}')
    network = session.open_network(args, or_classifier=True)
    model, size = network.model.cpu().to(memory_format=torch.contiguous_format), network.args.crop_size
    count, checkpoint = model.conv_last.out_channels, network.checkpoint
    names = weights.class_names(network.args, checkpoint, model) or [f'class {label}' for label in range(count)]
    about = {'classes': json.dumps(names), 'scores': model.scores, 'image_size': str(size),
             'preprocessing': json.dumps(network.preprocessing), 'attribution_method': network.args.attribution_method,
             'maps': model.default_method, 'weights_sha256': checkpoint.sha256}
    export(SelfExplaining(model, checkpoint.normalisation).eval(), size, path, about)
    screen.say(f'{path}: images (B,3,{size},{size}), RGB in 0..1 -> probabilities (B,{count}) '
               f'and maps ({model.default_method})')


if __name__ == '__main__':
    screen.run(main)
