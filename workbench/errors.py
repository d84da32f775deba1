"""The one exception that stands for a user's mistake, and the one warning that is for users."""


class UserError(ValueError):
    """A mistake that the user can mend: what was wrong, where, and what to do, in one or two sentences.

    The command line prints the message alone and exits with 2; in Python it is an ordinary `ValueError`.
    """


class Notice(UserWarning):
    """What a user should know and may leave as it is; the command line prints the message alone."""
