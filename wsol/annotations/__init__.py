"""What data sets know about images beyond their class: part points, segmentations, superclasses."""
import re
from collections import Counter

from wsol.errors import UserError


def whole_number(text):
    """A whole number from 0 in plain digits; int() takes 2_0, signs and foreign digits too. Raises ValueError."""
    if not re.fullmatch('[0-9]{1,9}', text):
        raise ValueError(f'"{text}" is no whole number in plain digits')
    return int(text)


def each_once(pairs):
    """The dict of pairs (key, value). Raises UserError for a key that is stated twice: parsers take the last."""
    pairs = list(pairs)
    repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if repeated:
        raise UserError(f'"{repeated[0]}" is stated twice')
    return dict(pairs)
