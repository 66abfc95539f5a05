"""Remove-and-classify: does erasing the pixels a map ranks highest break the prediction?

Source: Kim et al., ICCV 2021, section 5. For k = 10, 30, 50, 70, 90 % the k % highest pixels of the
true class's map are set to zero (in normalised input space) and the image classified again; the
same with as many random pixels. R_k = correct after top-k / correct after random; lower is better.
Result: save/<experiment_name>/pixel_perturb_<method>_<process>_<norm>.json and .png.

    python eval_pixel_perturb.py --experiment_name=calm_em --score_map_process=jointll --norm_type=clipping
"""
import numpy as np
import torch

import config
import data_loaders
import evaluation
import figures
import util
from wsol import metrics


@torch.inference_mode()
def classify_erased(model, loader, maps_of, args, device):
    """Correct or not, image by image: (N,) intact, (N,5) after top-k and (N,5) after random erasure."""
    def correct(images, labels):
        with util.autocast(args, device):
            return (model(images).argmax(1) == labels).cpu().numpy()

    intact, top, random = [], [], []
    for images, labels, indices in util.progress(loader, 'remove-and-classify', 'batch'):
        images, labels = util.to_device(images, device), labels.to(device)
        intact.append(correct(images, labels))
        # ranks need no normalisation, and clipping would make ties: norm_type only names the results
        maps = maps_of(images, labels, indices)  # (B,h,w), or a list where sizes differ
        maps = torch.cat([metrics.resize(one[None], images.shape[2:]) for one in maps])  # (B,S,S)
        generators = [torch.Generator().manual_seed(seed) for seed in util.image_seeds(args.seed, indices).tolist()]
        for rank, results in zip(metrics.ranks(maps, generators), (top, random), strict=True):
            erased = [correct(metrics.erase(images, rank.to(device), ratio), labels) for ratio in metrics.ERASE_RATIOS]
            results.append(np.stack(erased, axis=1))
    return np.concatenate(intact), np.concatenate(top), np.concatenate(random)


def summarise(top, random, seed):
    """One record per k. R is None where no image survives the random erasure."""
    records = []
    for column, ratio in enumerate(metrics.ERASE_RATIOS):
        hits, base = top[:, column], random[:, column]
        low, high = metrics.bootstrap_ratio(hits, base, seed) if base.any() else (None, None)
        records.append({'erased_percent': round(100 * ratio), 'correct_top': int(hits.sum()),
                        'correct_random': int(base.sum()), 'R': float(hits.sum() / base.sum()) if base.any() else None,
                        'R_low': low, 'R_high': high})
    return records


def main():
    model, path, args, device = evaluation.open_evaluation(config.parse(__doc__))
    dataset = data_loaders.open_split(args, 'test')
    loader = data_loaders.make_loader(dataset, args, device)
    intact, top, random = classify_erased(model, loader, evaluation.map_source(args, model, dataset), args, device)
    records = summarise(top, random, args.seed)

    name = evaluation.results_name(args)
    target = evaluation.results_folder(args, path) / f'pixel_perturb_{name}.json'
    figures.ratio_curve(target.with_suffix('.png'), {name: records})
    util.write_json(target, {'metric': 'remove-and-classify', 'dataset': args.dataset, 'images': len(dataset),
                             'accuracy': 100 * float(intact.mean()), 'ratios': records,
                             'checkpoint': str(path), 'settings': evaluation.recorded_settings(args)})
    rows = [[f'{r["erased_percent"]} %', r['correct_top'], r['correct_random'],
             '-' if r['R'] is None else f'{r["R"]:.3f}',
             '-' if r['R'] is None else f'{r["R_low"]:.3f} .. {r["R_high"]:.3f}'] for r in records]
    print(f'\n{name}, on {len(dataset)} test images of '
          f'{args.dataset}; accuracy {100 * intact.mean():.1f} %. R_k: lower is better')
    print(util.table(['erased', 'correct, top', 'correct, random', 'R_k', '95 % of the images'], rows))
    print(f'{target}, {target.with_suffix(".png").name}')


if __name__ == '__main__':
    util.run(main)
