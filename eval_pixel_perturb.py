"""Remove-and-classify: does erasing the pixels a map ranks highest break the prediction?

Source: Kim et al., ICCV 2021, section 5. For k = 10, 30, 50, 70, 90 % the k % highest pixels of the true class's map
are set to zero (in normalised input space), and the image is classified again; the same is done with as many random
pixels. R_k = correct after top-k / correct after random; lower is better.
A control, R_k of coarse noise, stands beside it. So do the areas under p(true class) over the erased share (0, 10, 30,
50, 70, 90, 100 %, by the trapezoid): deletion (Petsiuk et al., BMVC 2018) erases from the map's highest pixels down
(lower is better), insertion from its lowest up (higher is better; it begins at the fill, not at a blurred image).
--fill=road replaces pixels by the means of their neighbours (Rong et al., ICML 2022).
Result: save/<experiment_name>/pixel_perturb_<data set>_<head>_<method>.<8 digits>.json and .png.

    python eval_pixel_perturb.py --experiment_name=calm_em
"""
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P and -I leave it out

import config
import util
from data_loaders import in_order
from evaluation import session
from evaluation.erasing import erased_scores, pixel_orders
from experiment import result_files
from reports import figures
from runtime import processes, screen
from wsol import metrics

ORDERS = ('top', 'random', 'coarse', 'low')  # by the map from the highest value down, ..., from the lowest up
AREAS = {'deletion': 'top', 'insertion': 'low', 'random pixels': 'random', 'coarse noise': 'coarse'}
AREA_DECIMALS = 3  # of an image's area


@torch.inference_mode()
def classify_erased(model, loader, source, device, seed, precision, at_a_time, fill='zeros', names=ORDERS):
    """Classify each image of the loader, intact and erased: whether the class is right, and p(true class), each as
    {'intact': (N,), order: (N,5) for each of names, 'blank': (N,), if 'low' is one of them}.

    source: a MapSource with the model's probabilities. seed: for what is random. at_a_time: erased images are
    classified in batches of this size, whatever their share.
    """
    more = 'low' in names  # the areas alone need a blank image
    columns, options = 1 + len(metrics.ERASE_RATIOS) * len(names) + more, (fill, precision, at_a_time)
    results = [np.empty((0, columns, 2), np.float32)]  # for no batch
    for images, labels, indices in screen.progress(loader, 'remove-and-classify', 'batch'):
        images, labels = util.to_device(images, device), util.to_device(labels, device)
        probs, maps = source(images, indices, labels[:, None])
        # ranks need no normalisation, and clipping would make ties: --norm_type is ignored
        seeds, size = util.image_seeds(seed, indices).tolist(), images.shape[2:]
        (top,), random, coarse = pixel_orders([maps], size, seeds, device)
        low = top.shape[1] - 1 - top
        orders = dict(zip(ORDERS, (top, random, coarse, low), strict=True))
        scores = erased_scores(model, images, [orders[name] for name in names], metrics.ERASE_RATIOS, seeds, *options)
        if more:  # all blank images are the same
            blank = erased_scores(model, images[:1], [top], [1], seeds, *options)
            scores = torch.cat([scores, blank.expand(len(images), -1)])
        right = torch.cat([probs.argmax(1), scores.argmax(1)]).view(columns, -1) == labels  # (columns,B)
        p = torch.cat([probs, model.probabilities(scores)]).view(columns, len(images), -1)
        p = p.gather(2, labels.expand(columns, -1)[..., None])[..., 0]
        results.append(torch.stack([right, p], 2).transpose(0, 1).float().cpu().numpy())  # (B,columns,2)
    parts = np.split(np.concatenate(results), range(1, columns, len(metrics.ERASE_RATIOS)), axis=1)
    by_name = {name: part if name in names else part[:, 0]
               for name, part in zip(['intact', *names, *['blank'] * more], parts, strict=True)}
    return {name: part[..., 0] > 0 for name, part in by_name.items()}, {
        name: part[..., 1] for name, part in by_name.items()}


def ratios(correct, order, seed):
    """One record per k: an order beside random erasure. R is None if no image is right after random erasure. correct:
    from classify_erased."""
    records = []
    for column, ratio in enumerate(metrics.ERASE_RATIOS):
        hits, base = correct[order][:, column], correct['random'][:, column]
        low, high = metrics.bootstrap_ratio(hits, base, seed)
        records.append({'erased_percent': round(100 * ratio), f'correct_{order}': int(hits.sum()),
                        'correct_random': int(base.sum()), 'R': float(hits.sum() / base.sum()) if base.any() else None,
                        'R_low': low, 'R_high': high})
    return records


def areas(p, seed):
    """({name: [mean area, low, high]}, {name: the areas of all images as text}) of AREAS. For the controls, insertion
    equals deletion up to chance. p: from classify_erased."""
    by_image = {name: metrics.area_over_erased(p['intact'], p[order], p['blank']).round(AREA_DECIMALS)
                for name, order in AREAS.items()}
    return ({name: metrics.bootstrap_mean(values, seed) for name, values in by_image.items()},
            {name: result_files.as_text(values, AREA_DECIMALS) for name, values in by_image.items()})


def report(title, top, coarse, summary):
    """Print the tables. top, coarse: from ratios. summary: from areas."""
    def cells(record):
        return ['-' if record['R'] is None else f'{record["R"]:.3f}',
                '-' if record['R'] is None else f'{record["R_low"]:.3f} .. {record["R_high"]:.3f}']
    rows = [[f'{one["erased_percent"]} %', one['correct_top'], one['correct_random'], *cells(one), *cells(noise)]
            for one, noise in zip(top, coarse, strict=True)]
    screen.say(f'\n{title}. R_k: lower is better')
    screen.say(screen.table(['erased', 'correct, top', 'correct, random', 'R_k', '95 % of the images',
                             'R_k of coarse noise', '95 % of the images'], rows))
    rows = [[name, f'{value:.3f}', f'{low:.3f} .. {high:.3f}'] for name, (value, low, high) in summary.items()]
    screen.say('\n' + screen.table(['area under p(true class)', 'mean', '95 % of the images'], rows))
    screen.say(metrics.CAVEAT)


def make_parser():
    """The parser of this script's flags."""
    return config.make_parser(__doc__, *config.EVALUATION, 'fill')


def main():
    network = session.open_network(config.parse(make_parser()))
    data = session.open_data(network)
    maps = session.choose_maps(network, data, 'pixel_perturb')
    screen.say(maps.describe())
    util.try_algorithms(network.device)
    images = network.open_split(data, 'test')
    source, loader, args = maps.source(images), network.loader(images), network.args
    result = maps.result_file(images, [source])
    measured = classify_erased(network.model, loader, source, network.device, args.seed, args.precision,
                               args.batch_size, args.fill)
    correct, p = ({name: in_order(loader.batch_sampler, part) for name, part in parts.items()} for parts in measured)
    source.say_constant()
    if not processes.is_first():
        return
    accuracy = 100 * float(correct['intact'].mean())
    top, coarse = (ratios(correct, order, args.seed) for order in ('top', 'coarse'))
    summary, by_image = areas(p, args.seed)
    report(f'{maps.name}, on {len(images)} test images of {data.name}; accuracy {accuracy:.1f} %; fill {args.fill}',
           top, coarse, summary)
    outcomes = {'intact': result_files.digits(correct['intact'])} | {  # of each image, for comparisons
        name: {str(one['erased_percent']): result_files.digits(right)
               for one, right in zip(top, correct[name].T, strict=True)} for name in ORDERS[:3]}
    result.write({'accuracy': accuracy, 'ratios': top, 'coarse': coarse, 'areas': summary, 'outcomes': outcomes,
                  'areas_by_image': by_image})
    figures.save(figures.ratio_curve(maps.title(), {maps.name: top, 'coarse noise': coarse}), result.figure())


if __name__ == '__main__':
    screen.run(main)
