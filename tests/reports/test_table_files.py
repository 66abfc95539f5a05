"""Tables in every format hold the same cells."""
import csv
import re

from reports import table_files
from reports.table_files import Cell, Table

TABLES = [Table('A & B', ['', 'R_10', 'x'], [['a_1: 50 %', Cell(0.251, 0.1, 0.4, 2), 'words'],
                                             ['b|c', Cell(-1.26, None, None, 1, '+'), None]])]


def test_tables_keep_their_cells_in_every_format():
    text = table_files.as_latex(TABLES)
    body = re.search(r'\\begin\{tabular\}\{lrr\}(.*)\\end\{tabular\}', text, re.S)[1]
    latex = [[re.sub(r'\\([&%$#_{}])', r'\1', cell.strip()) for cell in re.split(r' &', line.removesuffix(r'\\'))]
             for line in body.split('\n') if line.endswith(r'\\')]
    assert latex == [['', 'R_10', 'x'], ['a_1: 50 %', '0.25 [0.10, 0.40]', 'words'], ['b|c', '-1.3', '-']]
    assert not re.search(r'(?<!\\)[%#_]', body)
    lines = table_files.as_markdown(TABLES).splitlines()
    cells = [[cell.strip().replace('\\|', '|') for cell in re.split(r'(?<!\\)\|', line)[1:-1]] for line in lines[2:]]
    assert [line_cells for line_cells in cells if not set(line_cells[0]) & {'-'}] == latex
    csv_rows = list(csv.DictReader(table_files.as_csv(TABLES).splitlines()))
    assert [(line['row'], line['column'], line['value'], line['low']) for line in csv_rows] == [
        ('a_1: 50 %', 'R_10', '0.251', '0.1'), ('a_1: 50 %', 'x', 'words', ''), ('b|c', 'R_10', '-1.26', '')]
