"""Names from outside reach the screen and the tables as one harmless line."""
import os

import pytest

from reports import table_files
from reports.table_files import Cell, Table
from runtime import screen

HOSTILE = {'\x1b[2Jgone': r'\x1b[2Jgone', 'two\nlines': r'two\nlines', 'back\r\x08': r'back\r\x08',
           '\u202egnp.exe': r'\u202egnp.exe', os.fsdecode(b'caf\xe9'): r'caf\xe9', '\u2028x\x85\x9b': r'\u2028x\x85\x9b'}
PLAIN = ('Laysan_Albatross', 'Möwe', '海鳥 🐦', 'نورس', 'a b')


@pytest.mark.parametrize('name, expected', [*HOSTILE.items(), *zip(PLAIN, PLAIN, strict=True)])
def test_a_name_is_shown_as_one_line_that_a_terminal_does_not_obey(name, expected, capsys):
    assert screen.shown(name) == expected and screen.shown(expected) == expected
    assert expected in screen.table(['', name], [[name, 1.0]]).splitlines()[2]
    screen.warn(f'{name} does not open')
    assert capsys.readouterr().err == f'warning: {expected} does not open\n'
    screen.say(f'first line\n{screen.shown(name)}')
    assert capsys.readouterr().out == f'first line\n{expected}\n'


@pytest.mark.parametrize('name', [*HOSTILE, '<img src=x onerror=alert(1)>', '<!--', 'a|b', '=1+1', '@SUM(A1)', '+1', '-1'])
def test_a_name_stays_one_cell_of_every_table(name):
    lines = [[name, Cell(-1.5, -2.0, -1.0)], ['last', Cell(2.0)]]
    markdown = table_files.as_markdown([Table(name, ['', name], lines)])
    assert len(markdown.splitlines()) == 6 and '<' not in markdown
    header, first, second = table_files.as_csv([Table('title', ['', 'column'], lines)]).splitlines()
    assert first.split(',')[1][0] not in '=+-@' and first.endswith(',column,-1.5,-2.0,-1.0')  # numbers stay numbers
