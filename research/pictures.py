"""The pictures of README.md and docs/: a photo explained, the page in a browser, painted birds, and how fast it is.

Painted birds need the networks of make demo. The photo and the page need the weights of timm's EfficientNet-Lite0
(--pretrained=FILE), and the page needs chromium. Without these two, the pictures of photo and page stay as they are.
Result: docs/why_cat.png, gallery.png, demo.png, joint.png, left_out.png, speed.png, and what research.findings makes.

    make demo
    python -m research.pictures --pretrained=tf_efficientnet_lite0.pth
"""
import shutil
import subprocess
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from reports import figures, pictures
from research import commands, demo, findings
from research.findings import DOCS, DPI, read
from runtime import command_line, screen
from wsol import attribution_maps
from wsol.heads import joint, log_conditional
from wsol.maps import normalise
from wsol.metrics import bin_edges, bin_scores

BIRD = demo.PICTURED[1:2]


def photo(folder, pretrained):
    """Explain two photos by CAM of a classifier, as a picture and as a page."""
    commands.run('save', 'inference', str(DOCS / 'cat.png'), str(DOCS / 'cup.jpg'),
                 '--architecture=timm/tf_efficientnet_lite0', '--fit=pad', '--contrast',
                 '--format=png,html', f'--output={folder}', f'--pretrained={pretrained}')
    shutil.copyfile(*(path for path in Path(folder).glob('cat_*.png')), DOCS / 'why_cat.png')
    browser = shutil.which('chromium') or shutil.which('google-chrome')
    if browser:
        subprocess.run([browser, '--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars',
                        '--window-size=984,830', '--force-device-scale-factor=1.5',
                        f'--screenshot={DOCS / "gallery.png"}', (Path(folder) / 'gallery.html').as_uri()],
                       check=True, capture_output=True)


def joint_of(model, bird, run):
    """A Figure: prior x conditional = joint, and what its cells sum to, for A and for B."""
    _, logits, prior = model.activations(bird.image)                         # (1,C,h,w), (1,h,w)
    conditional, product = log_conditional(logits).exp(), joint(log_conditional(logits), prior)
    rows = []
    for name, label in zip('AB', bird.labels, strict=True):
        total = product[0, label].sum()
        rows.append([pictures.Panel(bird.picture, title, values.numpy(), cue=bird.cue) for title, values in (
            ('prior p(z | x) of the cue', prior[0]), (f'× conditional p({name} | x, z)', conditional[0, label]),
            (f'= joint p({name}, z | x), in all {total:.4f} = p({name} | x)', product[0, label]))])
    return pictures.sheet(rows, f'CALM_EM, {bird.caption} (outlined). z is a cell of the map. {run}', 'AB', side=1.8)


def left_out(models, bird, run):
    """A Figure: why A and not B, and the pixels whose scores lie below the lowest threshold of the published count."""
    rows = []
    for name, norm, thresholds in (('CAM', 'minmax', 'even'), ('CALM_EM', 'clipping', 'log')):
        first, second = attribution_maps(models[name], bird.image, torch.tensor([bird.labels]))[0]
        scores = torch.as_tensor(pictures.enlarge(first - second, bird.picture.shape[:2]))
        dropped = bin_scores(normalise(scores[None], norm)[0], bin_edges(thresholds)).numpy() == 0
        share = [100 * dropped[part].mean() for part in (bird.cue, ~bird.cue)]
        picture = np.where(dropped[..., None], bird.picture // 8, bird.picture)
        rows.append([None if rows else pictures.Panel(bird.picture, 'photo, true cue', cue=bird.cue),
                     pictures.Panel(bird.picture, f'{name}: why A, not B', scores.numpy(), signed=True, cue=bird.cue),
                     pictures.Panel(picture, f'left out: {share[0]:.0f} % of the cue, {share[1]:.0f} % of the rest',
                                    cue=bird.cue)])
    return pictures.sheet(rows, f'What the published count leaves out. {bird.caption} (outlined). {run}', side=2.0)


def speed():
    """A Figure: times faster than the plain way on two processors, in float32 and bfloat16; and memory."""
    items = [row['item'] for row in read('performance', run='bench_cpu', figure='plain way, ms an image')]

    def points(**wanted):
        return {items.index(row['item']): row for row in read('performance', **wanted) if row['item'] in items}
    panels = {'times faster than the plain way': {
        precision: points(run=run, figure='times faster')
        for precision, run in (('AVX2, float32', 'bench_cpu'), ('AMX, bfloat16', 'bench_cpu_bfloat16'))},
        'peak memory, MiB': {'ours': points(run='bench_cpu', figure='peak memory, MiB'),
                             'plain way': points(run='bench_cpu', figure='plain way, peak memory, MiB')}}
    figure = Figure(figsize=(9, 5), layout='constrained')
    for axes, (label, series) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        figures.intervals(axes, ['\n'.join(textwrap.wrap(item, 44)) for item in items], series)
        axes.set(xscale='log', xlabel=label)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter('{x:.0f}')
        axes.legend(fontsize=8)
    figure.axes[0].axvline(1, color='0.6', linewidth=1)
    return figure


def make_parser():
    parser = command_line.plain_parser(__doc__)
    parser.add_argument('--pretrained', metavar='FILE', help="weights of the photo's network")
    return parser


@torch.inference_mode()
def main():
    args, folder = make_parser().parse_args(), Path('save/demo')
    if args.pretrained:
        with tempfile.TemporaryDirectory() as maps:
            photo(maps, args.pretrained)
    models, size, run = demo.open_networks(folder)
    bird, = demo.birds(size, BIRD)
    figures.save(demo.contact_sheet(folder, BIRD), DOCS / 'demo.png')
    figures.save(joint_of(models['CALM_EM'], bird, run), DOCS / 'joint.png')
    figures.save(left_out(models, bird, run), DOCS / 'left_out.png')
    figures.save(speed(), DOCS / 'speed.png', DPI)
    findings.make_all()


if __name__ == '__main__':
    screen.run(main)
