"""The parser of a command line, and the parsers of one value: each refuses a mistake in one clear line.

A parser of a value is a function text -> value that raises UserError; its `metavar` is the type that --help shows.
"""
import argparse
import difflib
import math
import os
import re
import sys
from pathlib import Path

from runtime import screen
from wsol.errors import UserError

BOOLEANS = dict.fromkeys(('true', 't', 'yes', 'y', '1'), True) | dict.fromkeys(('false', 'f', 'no', 'n', '0'), False)


def shown_as(metavar):
    """Mark a parser with the type that --help shows."""
    def mark(parse):
        parse.metavar = metavar
        return parse
    return mark


@shown_as('True|False')
def boolean(text):
    """True/False/t/f/yes/no/y/n/1/0."""
    if text.lower() not in BOOLEANS:
        hint = '; files stand before the flags' * os.path.exists(text)  # noqa: PTH110  Path fails at a long name
        raise UserError(f'"{text}" is neither True nor False{hint}')
    return BOOLEANS[text.lower()]


@shown_as('True|False|FILE')
def boolean_or_file(text):
    """True, False, or the path of a file."""
    if not text.strip():
        raise UserError(f'"{text}" is neither True nor False nor the path of a file')
    return BOOLEANS.get(text.lower(), text)


def text_of(metavar):
    """A parser that takes any text."""
    return shown_as(metavar)(lambda text: text)


FOLDER, FILE, NAME = text_of('FOLDER'), text_of('FILE'), text_of('NAME')


def number(kind, low, low_included=True, high=math.inf):
    """A parser of numbers in a range. kind: int or float."""
    bracket = '[' if low_included else '('

    @shown_as('INTEGER' if kind is int else 'NUMBER')
    def parse(text):
        try:
            value = kind(text) if text.isascii() and '_' not in text else math.nan  # 2_0 is a slip of the hand
        except ValueError:
            value = math.nan
        if not (low < value < high or (low_included and value == low)):
            raise UserError(f'"{text}" is not {"an integer" if kind is int else "a number"} in {bracket}{low}, {high})')
        return value
    return parse


COUNT, SIZE = number(int, 1), number(int, 1, True, 10_001)
RATE, NATURAL, SEED = number(float, 0), number(int, 0), number(int, 0, True, 2**32)


def choice(options, aliases=None):
    """A parser of names; the refusal of an unknown name suggests the nearest one. options: the names, or a function
    that gives them."""
    @shown_as('NAME' if callable(options) or len(options) > 5 else '|'.join(options))
    def parse(text, options=options):
        options = options() if callable(options) else options
        name = (aliases or {}).get(text, text)
        if name not in options:
            known = {known.lower(): known for known in (*options, *(aliases or {}))}
            near = difflib.get_close_matches(text.lower(), known, 1)
            listed = ', '.join(options[:30]) + (', ...' if len(options) > 30 else '')
            raise UserError(f'"{text}" is not one of {listed}' + (f'; did you mean {known[near[0]]}?' if near else ''))
        return name
    return parse


def several(parse):
    """A parser of values separated by commas or blanks: (value, ...), each value once."""
    @shown_as(f'{"NAME" if "|" in parse.metavar else parse.metavar},...')
    def parse_all(text):
        return tuple(dict.fromkeys(map(parse, text.replace(',', ' ').split() or [''])))
    return parse_all


@shown_as('auto|cpu|cuda|cuda:N|mps')
def device_name(text):
    """auto, cuda, cuda:1, mps, cpu."""
    kind, _, index = text.partition(':')
    if kind == 'cuda' and index.isdecimal():
        return text
    return choice(('auto', 'cuda', 'mps', 'cpu'))(text)


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, and whose help is printed once.

    Blank words are ignored with a warning, and quotes around a value are removed: a pasted published command can
    contain both (a backslash and a blank at the end of a line; --data_root='"dataset/"').
    """

    def parse_known_args(self, args=None, namespace=None):
        words = list(map(str, sys.argv[1:] if args is None else args))
        if not all(map(str.strip, words)):
            screen.warn('a blank argument is ignored: a line of the command ends in a backslash and a blank. Flags on '
                        'the lines after it are not a part of this command; remove the blank')
        args = [re.sub(r'^(--\w+=)?(["\'])(.*)\2$', r'\1\3', word) for word in words if word.strip()]
        return super().parse_known_args(args, namespace)

    def _get_value(self, action, text):
        try:
            return super()._get_value(action, text)
        except UserError as error:
            raise argparse.ArgumentError(action, str(error)) from error

    def _print_message(self, message, file=None):
        screen.say(message.rstrip('\n'))

    def error(self, message):
        unknown = message.removeprefix('unrecognized arguments: ')
        if unknown != message:
            flag = unknown.split()[0].split('=')[0]
            if not flag.startswith('-'):
                raise UserError(f'unexpected "{flag}": write --flag=value; image files come first')
            if Path(unknown.split()[0]).exists():
                raise UserError(f'{unknown.split()[0]} looks like a flag; if the file is meant, write ./{flag}')
            near = difflib.get_close_matches(flag, self._option_string_actions, 1)
            message = f'unknown flag {flag}' + (f'; did you mean {near[0]}?' if near else '') + ' (--help lists all)'
        raise UserError(message)


def plain_parser(description):
    """A parser whose help starts with the script's description."""
    module = sys.modules['__main__'].__spec__  # of `python -m research.NAME`
    return Parser(f'python -m {module.name}' if module else None, description=description, allow_abbrev=False,
                  formatter_class=argparse.RawDescriptionHelpFormatter)
