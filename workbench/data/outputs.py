"""What a check writes beside what it says."""

from pathlib import Path

from workbench.data.checking import Check
from workbench.data.planning import Plan
from workbench.errors import UserError


class Outputs:
    """The files that were asked for.

    Args:
        json: for programs, or None.
        html: for a browser, or None.
        fix: the mended data, or None.

    Raises:
        UserError: one cannot be written, before anything was looked at.
    """

    def __init__(self, json: str | None, html: str | None, fix: str | None):
        self.json, self.html, self.fix = (None if name is None else Path(name) for name in (json, html, fix))
        for option, path in (("--json", self.json), ("--html", self.html)):
            if path is not None and path.is_dir():
                raise UserError(f"{option} {path} is a folder; name a file.")

    def require_possible(self, plan: Plan) -> None:
        """Refuse what cannot be written of these data.

        Raises:
            UserError: it cannot.
        """
        if self.fix is not None:
            from workbench.data.fixing import require_fixable

            require_fixable(plan, self.fix)

    def write(self, check: Check, seed: int) -> list[str]:
        """Write the files, and return what to say of them."""
        said = []
        try:
            if self.json is not None:
                from workbench.data.report_json import write_json

                write_json(check, self.json)
                said.append(f"Written: {self.json}")
            if self.html is not None:
                from workbench.data.report_html import write_html

                write_html(check, self.html, seed)
                said.append(f"Written: {self.html}")
        except OSError as error:
            raise UserError(f"{error.filename or 'The report'} cannot be written ({error.strerror}).") from error
        if self.fix is not None:
            from workbench.data.fixing import write_fixed

            said += write_fixed(check, self.fix)
        return said
