"""What the flags of a command line take: parsers of one value, each with a clear refusal."""
import argparse
import difflib
import math

from runtime import screen
from wsol.errors import UserError


def boolean(text):
    """True/False/yes/no/1/0."""
    values = {'true': True, 'yes': True, '1': True, 'false': False, 'no': False, '0': False}
    try:
        return values[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f'"{text}" is neither True nor False') from None


def number(kind, low, low_included=True, high=math.inf):
    """A parser of numbers in a range."""
    bracket = '[' if low_included else '('

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (low < value < high or (low_included and value == low)):
            raise argparse.ArgumentTypeError(f'"{text}" is not {"an integer" if kind is int else "a number"} in '
                                             f'{bracket}{low}, {high})')
        return value
    return parse


def choice(options, aliases=None):
    """A parser of names; an unknown one is answered with the nearest. options: the names, or a function that gives
    them."""
    def parse(text, options=options):
        options = options() if callable(options) else options
        name = (aliases or {}).get(text, text)
        if name not in options:
            known = {known.lower(): known for known in (*options, *(aliases or {}))}
            near = difflib.get_close_matches(text.lower(), known, 1)
            listed = ', '.join(options[:30]) + (', ...' if len(options) > 30 else '')
            raise argparse.ArgumentTypeError(f'"{text}" is not one of {listed}'
                                             + (f'; did you mean {known[near[0]]}?' if near else ''))
        return name
    return parse


def several(parse):
    """A parser of values separated by commas: (value, ...), each once."""
    def parse_all(text):
        return tuple(dict.fromkeys(parse(word.strip()) for word in text.split(',')))
    return parse_all


def device_name(text):
    """auto, cuda, cuda:1, mps, cpu."""
    kind, _, number = text.partition(':')
    if kind == 'cuda' and number.isdecimal():
        return text
    return choice(('auto', 'cuda', 'mps', 'cpu'))(text)


def percentages(text):
    """30,50,70 -> (30, 50, 70)."""
    values = text.replace(',', ' ').split()
    if not values or not all(value.isdecimal() and len(value) < 4 and 0 < int(value) <= 100 for value in values):
        raise argparse.ArgumentTypeError(f'"{text}" is not a list of percentages such as 30,50,70')
    return tuple(map(int, values))


def boolean_or_file(text):
    """True, False, or the path of a file."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f'"{text}" is neither True nor False nor the path of a file')
    try:
        return boolean(text)
    except argparse.ArgumentTypeError:
        return text


COUNT, SIZE = number(int, 1), number(int, 1, True, 10_001)
RATE, POSITIVE = number(float, 0), number(float, 0, False)
NATURAL, SEED = number(int, 0), number(int, 0, True, 2**32)


class Joined(argparse.Action):
    """Words that make one list of percentages."""

    def __call__(self, parser, namespace, values, option_string=None):
        try:
            setattr(namespace, self.dest, percentages(' '.join(values)))
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentError(self, str(error)) from None


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, and whose help is printed once."""

    def _print_message(self, message, file=None):
        screen.say(message.rstrip('\n'))

    def error(self, message):
        unknown = message.removeprefix('unrecognized arguments: ')
        if unknown != message:
            flag = unknown.split()[0].split('=')[0]
            if not flag.startswith('-'):
                raise UserError(f'"{flag}" belongs to no flag; a value goes after its flag, and images before all')
            near = difflib.get_close_matches(flag, self._option_string_actions, 1)
            message = f'unknown flag {flag}' + (f'; did you mean {near[0]}?' if near else '') + ' (--help lists all)'
        raise UserError(message)


def plain_parser(description):
    """A parser whose help is a script's own description."""
    return Parser(description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
