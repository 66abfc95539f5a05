"""What data sets know about images beyond their class: part points, segmentations, superclasses."""
import re


def whole_number(text):
    """A whole number from 0 in plain digits; int() takes 2_0, signs and foreign digits too. Raises ValueError."""
    if not re.fullmatch('[0-9]{1,9}', text):
        raise ValueError(f'"{text}" is no whole number in plain digits')
    return int(text)
