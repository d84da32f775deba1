"""Learning rates that fall from layer to layer, from a tower's output to its input.

Early layers hold what is general and are moved least (Bao et al. 2022, arXiv 2106.08254, appendix; Dong et al. 2022,
arXiv 2212.06138, for CLIP: 0.6 to 0.65 for ViTs).
"""

import re
from collections.abc import Sequence

from workbench.errors import UserError

_TOWERS = (
    # Names of what comes before the first block, and of a block, with its stage and its number there.
    (
        r"visual\.(conv\d|bn\d|class_embedding|positional_embedding|ln_pre)\b",
        r"visual\.(?:transformer\.resblocks|layer(\d+))\.(\d+)\.",
    ),
    (r"(token_embedding|positional_embedding)\b", r"transformer\.resblocks()\.(\d+)\."),
)


def layer_multipliers(names: Sequence[str], decay: float) -> dict[str, float]:
    """Return what each parameter's learning rate is multiplied by: decay^(layers above it).

    A layer is a residual block; what comes before the first is one more, and what comes after the last, like all that
    belongs to no tower (`logit_scale`, a head), keeps its rate.

    Args:
        names: of a CLIP's parameters, OpenAI's.
        decay: of one layer to the next, above 0 and at most 1.

    Raises:
        UserError: a decay outside of that, or a timm tower, whose layers are not known here.
    """
    if not 0 < decay <= 1:
        raise UserError(f"layer_decay is {decay}; it is above 0 and at most 1, such as 0.65.")
    if any(name.startswith("visual.trunk.") for name in names):
        raise UserError("layer_decay knows the layers of ViTs, ResNets and text towers, not of timm's; leave it out.")
    multipliers = dict.fromkeys(names, 1.0)
    for first, block in _TOWERS:
        blocks = {name: (int(found[1] or 0), int(found[2])) for name in names if (found := re.match(block, name))}
        number = {key: place for place, key in enumerate(sorted(set(blocks.values())), start=1)}
        for name in names:
            layer = 0 if re.match(first, name) else number[blocks[name]] if name in blocks else None
            if layer is not None:
                multipliers[name] = decay ** (len(number) + 1 - layer)
    return multipliers
