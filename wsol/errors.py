"""The one exception that this library raises for what a caller can mend, and how it cites the errors of libraries."""


class UserError(Exception):
    """What the user can mend: one line saying what is wrong, where, and how to mend it."""


def words_of(error):
    """What an exception of a library says, short enough to be a part of one line."""
    return ' '.join(str(error).split())[:200] or type(error).__name__
