"""The whole method on painted birds: train CAM and CALM_EM, measure both, and picture their maps.

Runs the project's own commands and prints them. What is done is not run again; a network that was trained with other
settings is refused. Both networks are a ResNet-18 up to layer2 and start from one CAM classifier, as the paper's
networks start from an ImageNet classifier. --full trains as long as the findings do.
Result: table.txt, which is printed at the end, contact_sheet.png, and the experiments start, CAM and CALM_EM, in
save/demo, with --full in save/demo_full. Another seed than 0 has a folder of its own: save/demo_seed1.

    make demo
    make demo FULL=1
    python -m research.demo --seed=1
"""
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from dataset import open_dataset
from dataset.transforms import eval_transform, to_picture
from experiment import result_files, weights
from reports import figures, pictures
from research import commands
from research.commands import FINE_TUNE, FROM_RANDOM, PRECISION, SIZES, TRAIN
from runtime import command_line, screen, whole_files
from wsol import attribution_maps
from wsol.annotations.cub import UNION_PARTS
from wsol.metrics import ERASE_RATIOS

RECIPES = {  # experiments' folder -> flags of all trainings, of the start, and of the two that start from it
    'demo': (['--crop_size=112', '--resize_size=128', '--batch_size=16'], ['--epochs=16', '--lr=0.02'],
                  ['--is_different_checkpoint', '--epochs=12', '--lr=0.01']),
    'demo_full': (SIZES, FROM_RANDOM, FINE_TUNE)}
EVALUATE = ('--cache', '--workers=1', '--batch_size=32')  # larger batches leave the processor's cache
METHODS = {  # experiment -> {attribution method: its row of the table}
    'CAM': {'vanilla': 'CAM', 'object_mask': "control: the bird's mask", 'random': 'control: random maps'},
    'CALM_EM': {'jointll': 'CALM_EM', 'saliency': 'control: prior of CALM_EM'}}
COUNTS = (('parts', 'published'), ('parts', 'per pair, all pixels'), ('exact', 'per pair, all pixels'))
PICTURED = (('007.Toy_B3', '005.Toy_B1'), ('002.Toy_A2', '004.Toy_A4'), ('011.Toy_C3', '009.Toy_C1'),
            ('017.Toy_D4', '014.Toy_D1'))  # class A, class B: 1, 1, 2 and 3 differing parts
LEGEND = """
ToyBirds, 360 test images. PxAP in %, by the number of differing parts (1, 2, 3), higher is better.
published: the published protocol; dropped: the % of the pixels that it leaves out; per pair, all pixels: each class
pair alone, all pixels counted; exact: the same against the exact part masks. R_k: correct after erasing the top k % /
after random erasure, lower is better.
"""


def train_all(folder, seed, common, start, fine_tune):
    """Train the start, CAM and CALM_EM below folder. common, start, fine_tune: flags of main.py."""
    common = [*TRAIN, *common, '--last_stage=layer2', f'--seed={seed}', '--cache', '--workers=1']
    commands.train(folder, 'start', *common, '--attribution_method=CAM', *start)
    fine_tune = [*common, '--load_checkpoint=start', *fine_tune]
    commands.train(folder, 'CAM', *fine_tune, '--attribution_method=CAM')
    commands.train(folder, 'CALM_EM', *fine_tune, '--attribution_method=CALM_EM', '--prior=softplus')


def table(folder):
    """The table of all methods as text. Methods that have no results yet are measured now."""
    rows, seen = [], []
    for experiment, methods in METHODS.items():
        cues, erased = (commands.evaluate(folder, experiment, metric, methods, PRECISION, *EVALUATE, seen=seen)
                        for metric in ('cue_location', 'pixel_perturb'))
        for name, cue, erasure in zip(methods.values(), cues, erased, strict=True):
            pxap = [[cue['pxap'][truth][count][key] for key in '123'] for truth, count in COUNTS]
            rows.append([name, None if name.startswith('control') else erasure['accuracy'], *pxap[0],
                         cue['dropped']['parts']['all'], *pxap[1], *pxap[2],
                         *('-' if record['R'] is None else f'{record["R"]:.2f}' for record in erasure['ratios'])])
    header = ['', 'accuracy', 'published 1', '2', '3', 'dropped', 'per pair, all pixels 1', '2', '3',
              'exact 1', '2', '3', *(f'R_{100 * ratio:.0f}' for ratio in ERASE_RATIOS)]
    return screen.table(header, sorted(rows, key=lambda row: row[0].startswith('control')))


class Bird(NamedTuple):
    """A test image of a class A, and a class B that differs from it."""
    image: torch.Tensor   # (1,3,S,S)
    picture: np.ndarray   # (K,K,3) uint8: the image, enlarged
    cue: np.ndarray       # (K,K) bool: the parts in which A and B differ
    labels: list          # of A and B
    caption: str


def birds(size, pictured=PICTURED):
    """The Birds of pairs of class names, at the networks' size."""
    data, scale = open_dataset('ToyBirds'), 360 // size
    images, annotations = data.open_split('test', eval_transform(size)), data.annotations()
    pairs = {frozenset(pair[:2]): pair.parts for pair in annotations.pairs}
    for names in pictured:
        labels = [images.class_names.index(name) for name in names]
        parts = pairs[frozenset(labels)]
        index = int((images.labels == labels[0]).nonzero()[0][1])
        picture = np.asarray(Image.fromarray(np.uint8(255 * to_picture(images[index][0]))).resize([scale * size] * 2))
        cue = np.isin(annotations.true_parts(images.image_id(index), size), parts).repeat(scale, 0).repeat(scale, 1)
        yield Bird(images[index][0][None], picture, cue, labels,
                   f'A = {names[0][4:]}, B = {names[1][4:]}: {", ".join(UNION_PARTS[part] for part in parts)}')


def open_networks(folder):
    """({experiment: its network}, the size of their images, a line that names them)."""
    loaded = {name: weights.load_model(name, save_root=folder) for name in METHODS}
    accuracies = (f'{name} {result_files.read_result(folder / name / "results.json")["test_accuracy"]:.1f} %'
                  for name in METHODS)
    args = next(iter(loaded.values()))[1].content['args']
    return ({name: model for name, (model, _) in loaded.items()}, args['crop_size'],
            f'{folder}, seed {args["seed"]}; accuracy: {", ".join(accuracies)}.')


@torch.inference_mode()
def contact_sheet(folder, pictured=PICTURED):
    """Photos, maps for a class A and a class B, and "why A and not B", with the true cue outlined: CAM above CALM_EM.

    Each map has its own colour scale: on a common one, the map of A would hide that of B.
    """
    (models, size, run), rows, captions = open_networks(folder), [], []
    for bird in birds(size, pictured):
        photo = pictures.Panel(bird.picture, 'photo, true cue', cue=bird.cue)
        rows += [[first, *method_panels(name, model, bird)]
                 for first, (name, model) in zip((photo, None), models.items(), strict=True)]
        captions += [bird.caption, '']
    header = ('Class A and a class B that differs from it in the outlined parts. CAM: logits of the class; CALM_EM: '
              f'p(class, z | x); both per cell. Every map has its own colour scale. {run}')
    return pictures.sheet(rows, header, captions, side=1.6)


def method_panels(name, model, bird):
    """The panels of one network for one bird: A, B, and A - B."""
    first, second = attribution_maps(model, bird.image, torch.tensor([bird.labels]))[0].numpy()
    probs = model.probabilities(model(bird.image))[0, bird.labels].tolist()
    return [*(pictures.Panel(bird.picture, f'{name}: {letter}, p = {probability:.2f}', values, cue=bird.cue)
              for letter, probability, values in zip('AB', probs, (first, second), strict=True)),
            pictures.Panel(bird.picture, f'{name}: why A, not B', first - second, signed=True, cue=bird.cue)]


def make_parser():
    parser = command_line.plain_parser(__doc__)
    parser.add_argument('--full', action='store_true', help='train as long as the findings do')
    parser.add_argument('--seed', type=command_line.SEED, default=0, metavar='INTEGER',
                        help='seed of the trainings (default: 0)')
    return parser


def main():
    args = make_parser().parse_args()
    recipe = 'demo_full' if args.full else 'demo'
    folder = Path('save') / (f'{recipe}_seed{args.seed}' if args.seed else recipe)
    train_all(folder, args.seed, *RECIPES[recipe])
    text = table(folder)
    figures.save(contact_sheet(folder), folder / 'contact_sheet.png')
    whole_files.write_lines(folder / 'table.txt', [text])
    screen.say(f'{LEGEND}\n{text}\n\n{folder / "table.txt"}, {folder / "contact_sheet.png"}')


if __name__ == '__main__':
    screen.run(main)
