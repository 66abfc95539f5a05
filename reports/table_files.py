"""Tables of figures with their intervals, as text, Markdown, LaTeX and CSV."""
import csv
import html
import io
from functools import partial
from typing import NamedTuple

import numpy as np

from runtime import screen


def mean_and_deviation(values, decimals=1):
    """'92.0 ± 1.4': mean and standard deviation over networks; of one network its value; '-' where one has none.
    values: (N,)."""
    values = np.asarray(values, float)
    if not np.isfinite(values).all():
        return '-'
    deviation = f' ± {values.std(ddof=1):.{decimals}f}' if len(values) > 1 else ''
    return f'{values.mean():.{decimals}f}{deviation}'


class Cell(NamedTuple):
    """A figure of a table, with its interval where it has one."""
    value: float | None
    low: float | None = None
    high: float | None = None
    decimals: int = 1
    sign: str = ''  # '+' for a difference

    def __str__(self):
        if self.value is None or not np.isfinite(self.value):
            return '-'
        value, low, high = (None if number is None else f'{number:{self.sign}.{self.decimals}f}' for number in self[:3])
        return value if low is None else f'{value} [{low}, {high}]'


class Table(NamedTuple):
    """A table: header (K+1,), rows of a name and K cells, each a Cell, text, number or None."""
    title: str
    header: list
    rows: list

    def without_empty_columns(self):
        kept = [index for index in range(len(self.header)) if any(row[index] is not None for row in self.rows)]
        header, *rows = ([line[index] for index in kept] for line in [self.header, *self.rows])
        return Table(self.title, header, rows)


def as_text(tables, title='{}', style='simple'):
    """The tables below their titles. title: with {} for the title. style: tabulate's."""
    return '\n\n'.join(f'{title.format(table.title)}\n\n{screen.table(table.header, table.rows, style)}'
                       for table in tables) + '\n'


def as_markdown(tables):
    """The tables as Markdown. Names in them can neither end a cell nor become HTML."""
    def escaped(cell):
        return cell if cell is None else html.escape(str(cell), quote=False).replace('|', '\\|')
    return as_text([Table(screen.shown(escaped(table.title)), [*map(escaped, table.header)],
                          [[*map(escaped, row)] for row in table.rows]) for table in tables], '## {}', 'pipe')


as_latex = partial(as_text, title='% {}', style='latex_booktabs')  # a tabular for each table, for booktabs


def as_csv(tables):
    """The tables as CSV: a line for each cell, with unrounded numbers; mean ± deviation is text. A name that a
    spreadsheet would take for a formula gets an apostrophe before it."""
    def name_of(text):
        return f"'{screen.shown(text)}" if str(text).startswith(('=', '+', '-', '@')) else screen.shown(text)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(['table', 'row', 'column', 'value', 'low', 'high'])
    for table in tables:
        for name, *cells in table.rows:
            for column, cell in zip(table.header[1:], cells, strict=True):
                if cell is not None:
                    numbers = cell[:3] if isinstance(cell, Cell) else (cell, None, None)
                    writer.writerow([*map(name_of, (table.title, name, column)), *numbers])
    return file.getvalue()


FORMATS = {'markdown': ('.md', as_markdown), 'csv': ('.csv', as_csv), 'latex': ('.tex', as_latex)}
