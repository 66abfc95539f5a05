"""One table with all results of several experiments, and the differences from the first of them.

Reads the JSON files that the evaluations leave in an experiment's folder. Intervals are 95 % bootstraps over the test
images (accuracy, R_k) or the class pairs (PxAP). Differences are paired, and given where both rows were measured on the
same images and compared with the same truth, by SHA-256 of their content. docs/comparing.md explains every column.
Result: <output>/table.md, table.csv, table.tex, and the curves ratios.png and precision_recall.png.

    python compare.py save/demo/CAM save/demo/CALM_EM
    python compare.py save/demo/CALM_EM --reference=saliency
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P and -I leave it out

from reports import comparison, table_files
from reports.rows import paper_rows, read_experiments
from runtime import command_line, screen


def make_parser():
    parser = command_line.plain_parser(__doc__)
    parser.add_argument('folders', nargs='+', metavar='FOLDER', help="an experiment's folder, such as save/calm_em; "
                        'the others are compared with the first')
    parser.add_argument('--reference', metavar='METHOD', help='compare with this row of the first folder, such as '
                        'saliency or log-odds (default: its first row)')
    parser.add_argument('--paper', action='store_true', help="add the paper's rows (CUB, ResNet-50)")
    parser.add_argument('--output', default='comparison', metavar='FOLDER',
                        help='the folder of the tables (default: comparison)')
    parser.add_argument('--format', default=tuple(table_files.FORMATS), metavar='NAME,...',
                        type=command_line.several(command_line.choice(tuple(table_files.FORMATS))),
                        help=f'{", ".join(table_files.FORMATS)}; several, separated by commas (default: all)')
    return parser


def main():
    args = make_parser().parse_args()
    rows = read_experiments(args.folders, args.reference)
    tables = comparison.make_tables(rows, paper_rows() if args.paper else [])
    comparison.publish(rows, tables, Path(args.output) / 'table', args.format)


if __name__ == '__main__':
    screen.run(main)
