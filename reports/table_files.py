"""Tables of figures with their intervals, as text, Markdown, LaTeX and CSV."""
import csv
import io
from typing import NamedTuple

import numpy as np

from runtime import screen, whole_files


def mean_and_deviation(values, decimals=1, sign=''):
    """'92.0 ± 1.4': the mean and the standard deviation over networks; of one network its value alone; '-' where one
    of them has none. values: (N,). sign: '+' of a difference."""
    values = np.asarray(values, float)
    if not np.isfinite(values).all():
        return '-'
    deviation = f' ± {values.std(ddof=1):.{decimals}f}' if len(values) > 1 else ''
    return f'{values.mean():{sign}.{decimals}f}{deviation}'


class Cell(NamedTuple):
    """A figure of a table, with its interval where it has one."""
    value: float | None
    low: float | None = None
    high: float | None = None
    decimals: int = 1
    sign: str = ''  # '+' of a difference

    def __str__(self):
        if self.value is None or not np.isfinite(self.value):
            return '-'
        value, low, high = (None if number is None else f'{number:{self.sign}.{self.decimals}f}' for number in self[:3])
        return value if low is None else f'{value} [{low}, {high}]'


class Table(NamedTuple):
    """A table: header (K+1,), rows of a name and K cells, each a Cell, text or None."""
    title: str
    header: list
    rows: list

    def texts(self):
        return [['-' if cell is None else str(cell) for cell in row] for row in [self.header, *self.rows]]


def as_text(tables):
    return '\n\n'.join(f'{table.title}\n\n{screen.table(*_split(table.texts()))}' for table in tables) + '\n'


def _split(lines):
    return lines[0], lines[1:]


def as_markdown(tables):
    def line(cells):
        return '| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |'
    parts = []
    for table in tables:
        header, rows = _split(table.texts())
        parts.append('\n'.join([f'## {table.title}\n', line(header), '|---' + '|---:' * (len(header) - 1) + '|',
                                *map(line, rows)]))
    return '\n\n'.join(parts) + '\n'


def as_latex(tables):
    """A tabular for each table, for the package booktabs."""
    special = {'\\': r'\textbackslash{}', '−': '$-$', '±': r'$\pm$', '<': '$<$', '>': '$>$', '~': r'\textasciitilde{}',
               '^': r'\textasciicircum{}', **{sign: '\\' + sign for sign in '&%$#_{}'}}

    def line(cells):
        return ' & '.join(''.join(special.get(sign, sign) for sign in cell) for cell in cells) + r' \\'
    parts = []
    for table in tables:
        header, rows = _split(table.texts())
        parts.append('\n'.join([f'% {table.title}', rf'\begin{{tabular}}{{l{"r" * (len(header) - 1)}}}', r'\toprule',
                                line(header), r'\midrule', *map(line, rows), r'\bottomrule', r'\end{tabular}']))
    return '\n\n'.join(parts) + '\n'


def as_csv(tables):
    """A line for each cell, its numbers unrounded; mean ± deviation is text."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(['table', 'row', 'column', 'value', 'low', 'high'])
    for table in tables:
        for name, *cells in table.rows:
            for column, cell in zip(table.header[1:], cells, strict=True):
                numbers = cell[:3] if isinstance(cell, Cell) else (cell, None, None)
                if cell is not None:
                    writer.writerow([table.title, name, column, *numbers])
    return file.getvalue()


FORMATS = {'markdown': ('.md', as_markdown), 'csv': ('.csv', as_csv), 'latex': ('.tex', as_latex)}


def write_tables(path, tables, formats):
    """Write tables under a path without its suffix, in several of FORMATS. Returns the files' paths."""
    written = []
    for name in formats:
        suffix, make = FORMATS[name]
        written.append(path.with_suffix(suffix))
        whole_files.write_lines(written[-1], [make(tables).rstrip('\n')])
    return written
