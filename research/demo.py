"""The whole job on painted birds: train CAM and CALM_EM, measure and picture both.

Runs the project's own commands and prints them; what is done already is not run again, and what was trained with other
settings is refused. All networks are alike: ResNet-18 up to layer2, started from one CAM classifier, as the paper's
networks start from an ImageNet classifier.
Result: save/demo/table.txt, the table printed at the end; save/demo/contact_sheet.png; and one
experiment folder each for `start`, `CAM` and `CALM_EM` below save/demo.

    make demo
"""
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dataset import open_dataset
from dataset.image_files import eval_transform, to_picture
from experiment import weights
from reports import figures, pictures
from research.commands import CROP_SIZE, FINE_TUNE, FROM_RANDOM, PRECISION, TRAIN, measure, result, train
from runtime import command_line, screen, whole_files
from wsol import attribution_maps
from wsol.annotations.cub import UNION_PARTS
from wsol.metrics import ERASE_RATIOS

FOLDER = Path('save/demo')
SHOWN = 2 * CROP_SIZE  # pixels of a photo in the contact sheet
FROM_START = ['--load_checkpoint=start', *FINE_TUNE]
TRAININGS = {  # experiment -> flags
    'start': ['--attribution_method=CAM', *FROM_RANDOM],
    'CAM': ['--attribution_method=CAM', *FROM_START],
    'CALM_EM': ['--attribution_method=CALM_EM', '--prior=softplus', *FROM_START],
}
MEASURED = {  # row of the table -> experiment, process
    'CAM': ('CAM', 'vanilla'),
    'CALM_EM': ('CALM_EM', 'jointll'),
    'control: prior of CALM_EM': ('CALM_EM', 'saliency'),
    "control: the bird's mask": ('CAM', 'object_mask'),
    'control: random maps': ('CAM', 'random'),
}
PICTURED = (('007.Toy_B3', '005.Toy_B1'), ('002.Toy_A2', '004.Toy_A4'), ('011.Toy_C3', '009.Toy_C1'),
            ('017.Toy_D4', '014.Toy_D1'))  # class A, class B: 1, 1, 2 and 3 differing parts


def table():
    """The figures of all runs, a row for each of MEASURED."""
    header = ['', 'accuracy', 'published 1', '2', '3', 'dropped', 'per pair 1', '2', '3', 'exact 1', '2', '3',
              *(f'R_{100 * ratio:.0f}' for ratio in ERASE_RATIOS)]
    rows = []
    for name, (experiment, process) in MEASURED.items():
        cue, erased = (result(FOLDER / experiment, metric, process, PRECISION)
                       for metric in ('cue_location', 'pixel_perturb'))
        published, *counted = (cue['pxap'][truth][count] for truth, count in (
            ('parts', 'published'), ('parts', 'per pair, all pixels'), ('exact', 'per pair, all pixels')))
        accuracy = None if name.startswith('control') else erased['accuracy']
        rows.append([name, accuracy, *(published[key] for key in '123'), cue['dropped']['parts']['all'],
                     *(column[key] for column in counted for key in '123'),
                     *('-' if record['R'] is None else f'{record["R"]:.2f}' for record in erased['ratios'])])
    return screen.table(header, rows)


@torch.inference_mode()
def contact_sheet():
    """Photos, maps for a class A and a class B, and "why A and not B", with the true cue outlined.

    Each map is on a scale of its own: on one scale what A has would hide what B has.
    """
    models = {name: weights.load_model(name, save_root=FOLDER)[0] for name in ('CAM', 'CALM_EM')}
    data, rows, captions = open_dataset('ToyBirds'), [], []
    images, annotations = data.open_split('test', eval_transform(CROP_SIZE)), data.annotations()
    pairs = {frozenset(pair[:2]): pair.parts for pair in annotations.pairs}
    for names in PICTURED:
        labels = [images.class_names.index(name) for name in names]
        parts = pairs[frozenset(labels)]
        index = int((images.labels == labels[0]).nonzero()[0][1])
        picture = np.asarray(Image.fromarray(np.uint8(255 * to_picture(images[index][0]))).resize([SHOWN] * 2))
        cue = np.isin(annotations.true_parts(images.image_id(index), CROP_SIZE), parts)
        cue = cue.repeat(SHOWN // CROP_SIZE, 0).repeat(SHOWN // CROP_SIZE, 1)
        row = [pictures.Panel(picture, 'photo, true cue', cue=cue)]
        for name, model in models.items():
            row += method_panels(name, model, images[index][0][None], labels, picture, cue)
        rows.append(row)
        captions.append(f'A = {names[0][4:]}, B = {names[1][4:]}: {", ".join(UNION_PARTS[part] for part in parts)}')
    header = ('Class A and a class B that differs from it in the outlined parts. CAM: the logits of the class; '
              'CALM_EM: p(class, z | x); both per cell. Every map has a scale of its own.')
    return pictures.sheet(rows, header, captions, side=1.6)


def method_panels(name, model, image, labels, picture, cue):
    """The panels of one network for one image: A, B, and A - B."""
    first, second = attribution_maps(model, image, torch.tensor([labels]))[0].numpy()
    probs = model(image).softmax(1)[0, labels].tolist()
    return [*(pictures.Panel(picture, f'{name}: {letter}, p = {probability:.2f}', values, cue=cue)
              for letter, probability, values in zip('AB', probs, (first, second), strict=True)),
            pictures.Panel(picture, f'{name}: why A, not B', first - second, signed=True, cue=cue)]


def make_parser():
    return command_line.plain_parser(__doc__)


def main():
    make_parser().parse_args()
    for experiment, flags in TRAININGS.items():
        train(FOLDER, experiment, *TRAIN, '--last_stage=layer2', '--seed=0', *flags)
    for experiment, process in MEASURED.values():
        for metric in ('cue_location', 'pixel_perturb'):
            measure(FOLDER, experiment, metric, process, PRECISION)
    figures.save(contact_sheet(), FOLDER / 'contact_sheet.png')
    text = table()
    whole_files.write_lines(FOLDER / 'table.txt', [text])
    screen.say('\nToyBirds, 360 test images. PxAP in %, by the number of differing parts (1, 2, 3), higher is better.\n'
             'published: the published protocol, lowest pixels dropped; per pair: each alone, all pixels counted;\n'
             'exact: the same against the exact part masks. R_k: correct after erasing the top k % / after random\n'
             'erasure, lower is better.\n')
    screen.say(text)
    screen.say(f'\n{FOLDER / "table.txt"}, {FOLDER / "contact_sheet.png"}')


if __name__ == '__main__':
    screen.run(main)
