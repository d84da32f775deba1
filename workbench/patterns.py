"""Regular expressions over parameter names, as settings give them: searched in a name from its start."""

import difflib
import re
from collections.abc import Sequence

from workbench.errors import UserError


def compiled(match: str, setting: str) -> re.Pattern[str]:
    """Compile a pattern.

    Args:
        match: the regular expression.
        setting: whose it is, for the message.

    Raises:
        UserError: it is none.
    """
    try:
        return re.compile(match)
    except re.error as error:
        raise UserError(f"{setting}: {match!r} is no regular expression ({error}).") from error


def pattern_for(match: str, names: Sequence[str], setting: str) -> re.Pattern[str]:
    """Compile a pattern that has to match some of the names.

    Raises:
        UserError: it is no regular expression, or matches none of them.
    """
    pattern = compiled(match, setting)
    if not any(pattern.match(name) for name in names):
        near = difflib.get_close_matches(match.replace("\\", ""), names, n=3, cutoff=0.3) or names[:3]
        raise UserError(f"{setting}: {match!r} matches no parameter; names look like {', '.join(near)}.")
    return pattern
