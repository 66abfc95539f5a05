"""The one exception that this library raises for what a caller can mend."""


class UserError(Exception):
    """What the user can mend: one line saying what is wrong, where, and how to mend it."""
