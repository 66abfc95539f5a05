"""Remove-and-classify: does erasing the pixels a map ranks highest break the prediction?

Source: Kim et al., ICCV 2021, section 5. For k = 10, 30, 50, 70, 90 % the k % highest pixels of the true class's map
are set to zero (in normalised input space), and the image is classified again; the same is done with as many random
pixels. R_k = correct after top-k / correct after random; lower is better.
Result: save/<experiment_name>/pixel_perturb_<data set>_<head>_<method>.<8 digits>.json and .png.

    python eval_pixel_perturb.py --experiment_name=calm_em
"""
import itertools
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P and -I leave it out

import config
import util
from data_loaders import in_order
from evaluation import session
from experiment import result_files
from reports import figures
from runtime import processes, screen
from wsol import metrics
from wsol.maps import ranks, resize


@torch.inference_mode()
def classify_erased(model, loader, source, device, seed, precision, at_a_time):
    """Whether each image of the loader is classified correctly: (N,) intact, (N,5) after top-k and (N,5) after random
    erasure.

    source: a MapSource with the model's probabilities. seed: for the random pixels and the order among ties.
    at_a_time: erased images are classified in batches of this size, whatever their k.
    """
    results = [np.empty((0, 1 + 2 * len(metrics.ERASE_RATIOS)), bool)]  # a process may have no batch
    for images, labels, indices in screen.progress(loader, 'remove-and-classify', 'batch'):
        images, labels = util.to_device(images, device), util.to_device(labels, device)
        probs, maps = source(images, indices, labels[:, None])
        # ranks need no normalisation, and clipping would make ties: --norm_type is ignored
        maps = torch.cat([resize(one, images.shape[2:]) for one in maps])  # B of (1,h,w) -> (B,S,S)
        drawn_on = device if device.type == 'cuda' else 'cpu'  # on CUDA itself, so that no random order is copied to it
        generators = [torch.Generator(drawn_on).manual_seed(of_image)
                      for of_image in util.image_seeds(seed, indices).tolist()]
        orders = ranks(maps, generators)
        copies = list(itertools.product(orders, metrics.ERASE_RATIOS, range(len(images))))
        correct = [probs.argmax(1) == labels]
        for start in range(0, len(copies), at_a_time):
            orders, ratios, rows = zip(*copies[start:start + at_a_time], strict=True)
            rank = torch.stack([order[row] for order, row in zip(orders, rows, strict=True)])
            rows = list(rows)
            with util.autocast(precision, device):
                scores = model(metrics.erase(images[rows], rank, ratios))
            correct.append(scores.argmax(1) == labels[rows])
        results.append(torch.cat(correct).view(-1, len(images)).T.cpu().numpy())  # (B,11)
    intact, top, random = np.split(np.concatenate(results), [1, 1 + len(metrics.ERASE_RATIOS)], axis=1)
    return intact[:, 0], top, random


def summarise(top, random, seed):
    """One record per k. R is None where no image survives the random erasure."""
    records = []
    for column, ratio in enumerate(metrics.ERASE_RATIOS):
        hits, base = top[:, column], random[:, column]
        low, high = metrics.bootstrap_ratio(hits, base, seed)
        records.append({'erased_percent': round(100 * ratio), 'correct_top': int(hits.sum()),
                        'correct_random': int(base.sum()), 'R': float(hits.sum() / base.sum()) if base.any() else None,
                        'R_low': low, 'R_high': high})
    return records


def outcomes_by_image(intact, top, random):
    """Which images are classified correctly, as digits: what a comparison with another network needs."""
    percents = [str(round(100 * ratio)) for ratio in metrics.ERASE_RATIOS]
    return {'intact': result_files.digits(intact), **{
        name: dict(zip(percents, map(result_files.digits, after.T), strict=True))
        for name, after in (('top', top), ('random', random))}}


def make_parser():
    """The parser of this script's flags."""
    return config.make_parser(__doc__, *config.EVALUATION)


def main():
    network = session.open_network(config.parse(make_parser()))
    data = session.open_data(network)
    maps = session.choose_maps(network, data, 'pixel_perturb')
    screen.say(maps.describe())
    network.speed_up(maps)
    images = network.open_split(data, 'test')
    source, loader, args = maps.source(images), network.loader(images), network.args
    result = maps.result_file(images, [source])
    measured = classify_erased(network.model, loader, source, network.device, args.seed, args.precision,
                               args.batch_size)
    intact, top, random = (in_order(loader, part) for part in measured)
    if not processes.is_first():
        return
    accuracy, records = 100 * float(intact.mean()), summarise(top, random, args.seed)
    rows = [[f'{r["erased_percent"]} %', r['correct_top'], r['correct_random'],
             '-' if r['R'] is None else f'{r["R"]:.3f}',
             '-' if r['R'] is None else f'{r["R_low"]:.3f} .. {r["R_high"]:.3f}'] for r in records]
    screen.say(f'\n{maps.name}, on {len(images)} test images of {data.name}; accuracy {accuracy:.1f} %. R_k: lower is '
               'better')
    screen.say(screen.table(['erased', 'correct, top', 'correct, random', 'R_k', '95 % of the images'], rows))
    result.write({'accuracy': accuracy, 'ratios': records, 'outcomes': outcomes_by_image(intact, top, random)})
    figures.save(figures.ratio_curve(maps.title(), {maps.name: records}), result.figure())


if __name__ == '__main__':
    screen.run(main)
