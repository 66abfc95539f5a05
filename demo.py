"""The whole job on painted birds: train CAM and CALM_EM, measure and picture both.

Runs the project's own commands and prints them. All networks are alike: ResNet-18 up to layer2,
started from one CAM classifier, as the paper's networks start from an ImageNet classifier.
Result: save/demo/table.txt, the table printed at the end; save/demo/contact_sheet.png; and one
experiment folder each for `start`, `CAM` and `CALM_EM` below save/demo.

    make demo
"""
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import config
import evaluation
import figures
import pictures
import processes
import util
import weights
from dataset import open_dataset
from image_files import eval_transform, to_picture
from util import UserError
from wsol import attribution_maps
from wsol.cub import UNION_PARTS
from wsol.metrics import ERASE_RATIOS

FOLDER = Path('save/demo')
CROP_SIZE = 112
SHOWN = 2 * CROP_SIZE  # pixels of a photo in the contact sheet
DATA = ['--dataset=ToyBirds', f'--crop_size={CROP_SIZE}', '--resize_size=128']
PRECISION = '--precision=' + ('bfloat16' if util.computes_in_bfloat16(torch.device('cpu')) else 'float32')
TRAIN = [*DATA, '--architecture=resnet18', '--pretrained=False', '--batch_size=32', '--lr_schedule=one_cycle',
         PRECISION]
FROM_RANDOM = ['--epochs=25', '--lr=0.02']
FINE_TUNE = ['--load_checkpoint=start', '--is_different_checkpoint', '--epochs=15', '--lr=0.001']
TRAININGS = {  # experiment -> flags
    'start': ['--attribution_method=CAM', *FROM_RANDOM],
    'CAM': ['--attribution_method=CAM', *FINE_TUNE],
    'CALM_EM': ['--attribution_method=CALM_EM', '--prior=softplus', *FINE_TUNE],
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


def run(folder, script, *flags):
    """Run one of the project's scripts as a user would, and show how."""
    command = [script, *flags, f'--save_root={folder}']
    util.say('\n$ python ' + ' '.join(command))
    code = processes.call(command)
    if code:
        raise UserError(f'{script} ended with exit code {code}; see above')


def result(folder, metric, process):
    """What an evaluation measured of the network that an experiment has trained."""
    trained = evaluation.read_result(folder / 'results.json')
    return evaluation.find_result(folder, metric, process, trained['weights_sha256'])


def table():
    """The figures of all runs, a row for each of MEASURED."""
    header = ['', 'accuracy', 'published 1', '2', '3', 'per pair 1', '2', '3', 'exact 1', '2', '3',
              *(f'R_{100 * ratio:.0f}' for ratio in ERASE_RATIOS)]
    rows = []
    for name, (experiment, process) in MEASURED.items():
        cue, erased = (result(FOLDER / experiment, metric, process) for metric in ('cue_location', 'pixel_perturb'))
        columns = (cue['pxap']['parts']['published']['dropped'], cue['pxap']['parts']['per_pair']['counted'],
                   cue['pxap']['exact']['per_pair']['counted'])
        accuracy = None if name.startswith('control') else erased['accuracy']
        rows.append([name, accuracy, *(column[key] for column in columns for key in '123'),
                     *('-' if record['R'] is None else f'{record["R"]:.2f}' for record in erased['ratios'])])
    return util.table(header, rows)


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


def main():
    config.plain_parser(__doc__).parse_args()
    for experiment, flags in TRAININGS.items():
        run(FOLDER, 'main.py', f'--experiment_name={experiment}', *TRAIN, '--last_stage=layer2', '--seed=0', *flags)
    for experiment, process in MEASURED.values():
        for script in ('eval_cue_location.py', 'eval_pixel_perturb.py'):
            run(FOLDER, script, f'--experiment_name={experiment}', f'--score_map_process={process}', PRECISION)
    figures.save(contact_sheet(), FOLDER / 'contact_sheet.png')
    text = table()
    util.write_lines(FOLDER / 'table.txt', [text])
    util.say('\nToyBirds, 360 test images. PxAP in %, by the number of differing parts (1, 2, 3), higher is better.\n'
             'published: nearest part point, running over the pairs, underflow dropped; per pair: underflow counted;\n'
             'exact: the same against the exact part masks. R_k: correct after erasing the top k % / after random\n'
             'erasure, lower is better.\n')
    util.say(text)
    util.say(f'\n{FOLDER / "table.txt"}, {FOLDER / "contact_sheet.png"}')


if __name__ == '__main__':
    util.run(main)
