"""The one exception that stands for a user's mistake."""


class UserError(ValueError):
    """A mistake that the user can mend: what was wrong, where, and what to do, in one or two sentences.

    The command line prints the message alone and exits with 2; in Python it is an ordinary `ValueError`.
    """
