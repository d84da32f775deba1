"""Class names and prompt templates of OpenAI's 27 datasets, and of a user's own YAML files.

    class_names("food101"), templates("imagenet", "subset7"), names("fer2013"), read("my_classes.yaml")

Labels go by OpenAI's order, which is not that of torchvision for several sets: `check_class_order` compares.
"""

import difflib
import os

from workbench.errors import UserError
from workbench.prompts.order import check_class_order
from workbench.prompts.reading import Prompts, available, read

__all__ = ["Prompts", "available", "check_class_order", "class_names", "names", "read", "templates"]


def class_names(path_or_name: str | os.PathLike[str]) -> list[str]:
    """Return one name for each class, by label."""
    return read(path_or_name).class_names


def names(path_or_name: str | os.PathLike[str]) -> list[list[str]]:
    """Return all the names of each class, by label."""
    return [list(names) for names in read(path_or_name).names]


def templates(path_or_name: str | os.PathLike[str], subset: str | None = None) -> list[str]:
    """Return prompts with one `{}` each: all of a set, or those of a subset that its file names.

    Raises:
        UserError: there is no such set or subset.
    """
    prompts = read(path_or_name)
    if subset is None:
        return list(prompts.templates)
    if subset not in prompts.template_subsets:
        known = sorted(prompts.template_subsets)
        near = difflib.get_close_matches(subset, known, n=1)
        raise UserError(
            f"The prompts {prompts.name!r} have no subset {subset!r}; "
            + (
                f"did you mean {near[0]!r}?"
                if near
                else f"there is {', '.join(known)}."
                if known
                else "they have none, so leave it out."
            )
        )
    return list(prompts.template_subsets[subset])
