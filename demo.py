"""The whole job on painted birds: train CAM and CALM_EM, measure and picture both.

Runs the project's own commands and prints them. All networks are alike: ResNet-18 up to layer2,
started from one CAM classifier, as the paper's networks start from an ImageNet classifier.
Result: save/demo/table.txt, the table printed at the end; save/demo/contact_sheet.png; and one
experiment folder each for `start`, `CAM` and `CALM_EM` below save/demo.

    make demo
"""
import json
import subprocess
import sys
from pathlib import Path

import torch

import config
import data_loaders
import figures
import util
from checkpoints.loading import load_model
from util import UserError
from wsol.attribution import attribution_maps
from wsol.cub import UNION_PARTS, CueAnnotations
from wsol.metrics import ERASE_RATIOS, resize

FOLDER = Path('save/demo')
DATA = ['--dataset=ToyBirds', '--crop_size=112', '--resize_size=128']
# twice as fast where the processor computes in bfloat16, several times slower where it only emulates it
FAST_BFLOAT16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
PRECISION = '--precision=bfloat16' if FAST_BFLOAT16 else '--precision=float32'
TRAIN = [*DATA, '--architecture=resnet18', '--pretrained=False', '--batch_size=32', '--lr_schedule=one_cycle',
         PRECISION]
FROM_RANDOM = ['--epochs=25', '--lr=0.02']
FINE_TUNE = ['--load_checkpoint=start', '--is_different_checkpoint', '--epochs=15', '--lr=0.001']
TRAININGS = {  # experiment -> flags
    'start': ['--attribution_method=CAM', *FROM_RANDOM],
    'CAM': ['--attribution_method=CAM', *FINE_TUNE],
    'CALM_EM': ['--attribution_method=CALM_EM', '--prior=softplus', *FINE_TUNE],
}
CAM_MAPS = ['--norm_type=minmax', '--threshold_type=even']
CALM_MAPS = ['--norm_type=clipping', '--threshold_type=log']
MEASURED = {  # row of the table -> experiment, process, how its maps are normalised and binned
    'CAM': ('CAM', 'vanilla', CAM_MAPS),
    'CALM_EM': ('CALM_EM', 'jointll', CALM_MAPS),
    'control: prior of CALM_EM': ('CALM_EM', 'saliency', CALM_MAPS),
    "control: the bird's mask": ('CAM', 'object_mask', CAM_MAPS),
    'control: random maps': ('CAM', 'random', CAM_MAPS),
}
PICTURED = (('007.Toy_B3', '005.Toy_B1'), ('002.Toy_A2', '004.Toy_A4'), ('011.Toy_C3', '009.Toy_C1'),
            ('017.Toy_D4', '014.Toy_D1'))  # class A, class B: 1, 1, 2 and 3 differing parts


def run(folder, script, *flags):
    """Run one of the project's scripts as a user would, and show how."""
    command = [script, *flags, f'--save_root={folder}']
    print('\n$ python ' + ' '.join(command), flush=True)
    code = subprocess.run([sys.executable, *command], check=False).returncode
    if code:
        raise UserError(f'{script} ended with exit code {code}; see above')


def result(folder, experiment, start, process, flags):
    """A result file of one evaluation."""
    norm, thresholds = (flag.split('=')[1] for flag in flags)
    parts = [start, experiment, process, norm] + ([thresholds] if start == 'cue_location' else [])
    return json.loads((folder / experiment / f'{"_".join(parts)}.json').read_text())


def table():
    """The figures of all runs, a row for each of MEASURED."""
    header = ['', 'accuracy', 'published 1', '2', '3', 'per pair 1', '2', '3', 'exact 1', '2', '3',
              *(f'R_{100 * ratio:.0f}' for ratio in ERASE_RATIOS)]
    rows = []
    for name, (experiment, process, flags) in MEASURED.items():
        cue, erased = (result(FOLDER, experiment, start, process, flags) for start in ('cue_location', 'pixel_perturb'))
        columns = (cue['pxap']['parts']['published']['dropped'], cue['pxap']['parts']['per_pair']['counted'],
                   cue['pxap']['exact']['per_pair']['counted'])
        accuracy = None if name.startswith('control') else erased['accuracy']
        rows.append([name, accuracy, *(column[key] for column in columns for key in '123'),
                     *('-' if record['R'] is None else f'{record["R"]:.2f}' for record in erased['ratios'])])
    return util.table(header, rows)


@torch.inference_mode()
def contact_sheet(path):
    """Photos, maps for a class A and a class B, and "why A and not B", with the true cue outlined."""
    device, rows = torch.device('cpu'), []
    loaded = {}
    for method in ('CAM', 'CALM_EM'):
        args = config.parse('', [f'--save_root={FOLDER}', f'--experiment_name={method}'])
        model, _, args = load_model(args, device)
        loaded[method] = model, MEASURED[method][1]
    test_set = data_loaders.open_split(args, 'test')
    annotations = CueAnnotations(data_loaders.cub_root(args))
    names = data_loaders.class_names(test_set, args)
    pairs = {frozenset(pair[:2]): pair.parts for pair in annotations.pairs}
    for first, second in PICTURED:
        labels = [names.index(first), names.index(second)]
        parts = pairs[frozenset(labels)]
        index = int((test_set.labels == labels[0]).nonzero()[0][1])
        image = test_set[index][0][None]
        cue = torch.isin(torch.from_numpy(annotations.true_parts(test_set.image_id(index), image.shape[-1])).long(),
                         torch.tensor(parts)).numpy()
        maps = []
        for model, process in loaded.values():
            probs = model(image).softmax(1)[0, labels].tolist()
            two = resize(attribution_maps(model, image, torch.tensor([labels]), process)[0], image.shape[2:]).numpy()
            maps.append((two[0], two[1], probs))
        caption = f'{first[4:]}, not {second[4:]}:\n{", ".join(UNION_PARTS[part] for part in parts)}'
        rows.append((data_loaders.to_picture(image[0]), cue, caption, maps))
    figures.contact_sheet(path, ('CAM, logits', 'CALM_EM, p(y,z|x)'), rows)


def main():
    for experiment, flags in TRAININGS.items():
        run(FOLDER, 'main.py', f'--experiment_name={experiment}', *TRAIN, '--last_stage=layer2', '--seed=0', *flags)
    for experiment, process, flags in MEASURED.values():
        for script in ('eval_cue_location.py', 'eval_pixel_perturb.py'):
            run(FOLDER, script, f'--experiment_name={experiment}', f'--score_map_process={process}', *flags,
                '--seed=0', PRECISION)
    contact_sheet(FOLDER / 'contact_sheet.png')
    text = table()
    util.write_atomically(FOLDER / 'table.txt', lambda file: file.write_text(text + '\n'))
    print('\nToyBirds, 360 test images. PxAP in %, by the number of differing parts (1, 2, 3), higher is better.\n'
          'published: nearest part point, running over the pairs, underflow dropped; per pair: underflow counted;\n'
          'exact: the same against the exact part masks. R_k: correct after erasing the top k % / after random\n'
          'erasure, lower is better.\n')
    print(text)
    print(f'\n{FOLDER / "table.txt"}, {FOLDER / "contact_sheet.png"}')


if __name__ == '__main__':
    util.run(main)
