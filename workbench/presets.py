"""Settings that are known to work, by method, with where they come from; and what a run's own have to do with them.

The commonest accident of fine-tuning is pre-training's learning rate, a hundred times too high: within a few hundred
steps the weights have forgotten what they were taken for.

Usual rates are published ones, or those of our experiments where the source says so. Lowest and highest are of the
reports that are named, too; where there is but one rate, they are our judgement, up to a factor of ten around it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer, RAdam

_KINDS = {"Adam": (Adam, AdamW, NAdam, RAdam), "SGD": (SGD,)}
_ROUNDING = 1e-9
_STEPS_THAT_MATTER = 10
"""A warm-up of fewer may as well be none."""
_OPTION = "--model.init_args.optimizer.init_args.lr"


@dataclass(frozen=True)
class Rates:
    """Learning rates at the peak of the schedule: `lowest` and `highest` known to work, `usual` to begin with."""

    lowest: float
    usual: float
    highest: float


@dataclass(frozen=True)
class Preset:
    """One row: a method, for certain models where that matters.

    Attributes:
        method: as a task's `method` says it.
        optimizer: `Adam` (and its like, AdamW first), `SGD`, or `L-BFGS`.
        rates: None for an optimizer without a learning rate.
        weight_decay: as published.
        warmup: share of the run.
        batch: pictures or pairs of a step; None for all.
        length: of a run: passes over the data, or steps where it says so.
        source: of these numbers.
        models: architectures that the row is for; empty for all that no other row of the method names.
    """

    method: str
    optimizer: str
    rates: Rates | None
    weight_decay: float
    warmup: float
    batch: int | None
    length: str
    source: str
    models: tuple[str, ...] = ()


_CLIP = (0.2, 0.005, 32768, "32", "CLIP (arXiv 2103.00020), tables 18 to 20")
PRESETS = (
    # Highest: OpenCLIP's recipe for Conceptual Captions, in batches of 1,024 (open_clip #448), and our quickstart.
    Preset("pre-training", "Adam", Rates(3.6e-4, 5e-4, 1e-3), *_CLIP),
    Preset("pre-training", "Adam", Rates(3.6e-4, 4e-4, 1e-3), *_CLIP, ("RN50x16", "ViT-L/14")),
    Preset("pre-training", "Adam", Rates(3.6e-4, 3.6e-4, 1e-3), *_CLIP, ("RN50x64",)),
    # Lowest: those who succeeded in openai/CLIP #150, who also froze normalisation layers and lowered the decay. OpenAI
    # trained the last epoch of ViT-L/14@336px at 2e-5 (table 20). Highest: ft_layer_decay.yaml's.
    Preset(
        *("contrastive", "Adam", Rates(1e-7, 1e-5, 3e-5), 0.05, 0.1, 64, "10"),
        "FLYP's rate; openai/CLIP #150; CLIP, table 20; batch and decay of ft_vit_b32.yaml",
    ),
    Preset(
        *("FLYP", "Adam", Rates(1e-6, 1e-5, 3e-5), 0.1, 0.02, 512, "10"),
        "FLYP (arXiv 2212.00638), its code for ImageNet; lowest for PatchCamelyon",
    ),
    Preset(
        *("LiT", "Adam", Rates(1e-6, 5e-5, 1e-3), 0.05, 0.1, 64, "10"),
        "ft_lit.yaml; highest: LiT (arXiv 2111.07991) for a new text tower, batch 512, decay 0.01 (big_vision)",
    ),
    Preset(
        *("classifier", "Adam", Rates(1e-6, 3e-5, 1e-4), 0.1, 0.02, 512, "10"),
        "WiSE-FT (arXiv 2109.01903), its code for ImageNet: 500 steps of warm-up",
    ),
    Preset(
        *("LP-FT", "Adam", Rates(1e-6, 1e-5, 1e-4), 0.1, 0.1, 128, "10"),
        "ft_lp_ft.yaml, after WiSE-FT; LP-FT (arXiv 2202.10054) chooses the rate on val",
    ),
    Preset(
        *("LoRA", "Adam", Rates(1e-5, 2e-4, 1e-3), 0.01, 0.0, 32, "500 steps x shots"),
        "CLIP-LoRA (arXiv 2405.18541), its code",
    ),
    Preset(
        *("CoOp", "SGD", Rates(1e-4, 2e-3, 1e-2), 5e-4, 0.005, 32, "200"),
        "CoOp (arXiv 2109.01134), section 4.1 and its code, 16 shots",
    ),
    Preset(
        *("Tip-Adapter-F", "Adam", Rates(1e-4, 1e-3, 1e-2), 0.01, 0.0, 256, "20"),
        "Tip-Adapter (arXiv 2207.09519), its code",
    ),
    Preset("linear probe", "L-BFGS", None, 0.0, 0.0, None, "1,000 steps", "CLIP, appendix A.3"),
)


def preset(method: str, architecture: str | None = None) -> Preset:
    """Return the row of a method for an architecture.

    Raises:
        KeyError: no such method.
    """
    rows = [row for row in PRESETS if row.method == method]
    if not rows:
        raise KeyError(method)
    return next((row for row in rows if architecture in row.models), rows[0])


def concerns(row: Preset, optimizer: Optimizer, warmup: int, total_steps: int, from_weights: bool) -> list[str]:
    """Say what of a run's settings lies outside of what is known to work, and what to take instead; often nothing.

    Args:
        row: what the run is compared with.
        optimizer: with groups as `workbench.optimization.parameter_groups` makes them, and their `lr`. Its learning
            rate is judged if it is of the row's kind: SGD's rates are others than Adam's.
        warmup: steps.
        total_steps: of the run.
        from_weights: whether it starts from weights. Without, no learning rate is judged: small models stand higher
            ones than the paper's, and there is nothing to forget.
    """
    found = []
    if from_weights and row.rates is not None and isinstance(optimizer, _KINDS[row.optimizer]):
        found += _of_learning_rate(row, optimizer.param_groups)
    if 2 * warmup >= total_steps > 1:
        found.append(
            f"The warm-up of {warmup} steps is half of the run's {total_steps} or more; usual for {row.method} is a "
            f"share of {row.warmup:g} (--model.init_args.warmup {row.warmup:g})."
        )
    elif not warmup and row.warmup * total_steps >= _STEPS_THAT_MATTER:
        found.append(
            f"There is no warm-up; usual for {row.method} is a share of {row.warmup:g} of the run "
            f"(--model.init_args.warmup {row.warmup:g})."
        )
    decay = max(group["weight_decay"] for group in optimizer.param_groups)
    if decay > 1:
        found.append(
            f"The weight decay is {decay:g}, above 1; usual for {row.method} is {row.weight_decay:g}, which is not "
            "multiplied by 100 as a percentage would be."
        )
    return found


def _of_learning_rate(row: Preset, groups: Sequence[dict]) -> Iterator[str]:
    """Compare the highest learning rate of what a method moves with the method's."""
    judged = {
        group["lr"]: group["lr_multiplier"]
        for group in groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        if _is_judged(name, parameter.ndim)
    }
    rate, usual = max(judged, default=row.rates.usual), row.rates.usual
    if row.rates.lowest * (1 - _ROUNDING) <= rate <= row.rates.highest * (1 + _ROUNDING):
        return
    what = "may forget what the weights know" if rate > usual else "will hardly learn"
    factor = max(rate / usual, usual / max(rate, 1e-30))
    many = f"{factor:,.0f}" if factor >= 10 else f"{factor:.2g}"
    times = f"{many} times" if rate > usual else f"1/{many} of"
    yield (
        f"The learning rate {_number(rate)} is {times} the usual one of {row.method} from weights, and the run {what}: "
        f"known to work are {_span(row.rates)}; begin with {_number(usual)} "
        f"({_OPTION} {_number(usual / judged[rate])}). From: {row.source}."
    )


def _is_judged(name: str, dimensions: int) -> bool:
    """Leave out what may learn faster: a head, B of a LoRA (LoRA+, arXiv 2402.12354), and vectors (BitFit's biases)."""
    return dimensions >= 2 and not name.startswith("head.") and not (".lora." in name and name.endswith(".B"))


def table() -> str:
    """Return the rows as a Markdown table, as the README has it."""
    lines = [
        "| method | optimizer | learning rate | known to work | weight decay | warm-up | batch | epochs | from |",
        "|---|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in PRESETS:
        method = f"{row.method}, {' and '.join(row.models)}" if row.models else row.method
        rates = ("-", "-") if row.rates is None else (_number(row.rates.usual), _span(row.rates))
        batch = "all" if row.batch is None else f"{row.batch:,}"
        shares = f"{row.weight_decay:g}", f"{100 * row.warmup:g} %"
        lines.append(f"| {' | '.join((method, row.optimizer, *rates, *shares, batch, row.length, row.source))} |")
    return "\n".join(lines)


def _span(rates: Rates) -> str:
    return f"{_number(rates.lowest)} to {_number(rates.highest)}"


def _number(rate: float) -> str:
    """Write a learning rate as people do: 5e-4."""
    mantissa, exponent = f"{rate:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
