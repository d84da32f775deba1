"""What `python -m workbench` can be told to do, and how it ends."""

VERBS = {
    "fit": "train: pre-train or fine-tune, as the experiment says",
    "validate": "measure a checkpoint on the validation split",
    "test": "measure a checkpoint on the test split, or on val where there is none",
}
"""The Trainer's, of LightningCLI."""

COMMANDS = {
    "export": (
        "workbench.export.command:export",
        "a run's checkpoint into the format of another library, proven equal",
    ),
    "convert": ("workbench.export.command:convert", "any weights into the format of another library, without a run"),
    "data": (
        "workbench.data.command:SUBCOMMANDS",
        "check a data set, show what the model sees of it, make shards of it",
    ),
    "interpolate": (
        "workbench.averaging.command:interpolate",
        "average weights: WiSE-FT between two models, or a soup of several",
    ),
    "report": ("workbench.report.command:report", "compare runs: one table of what each gained and forgot"),
    "doctor": ("workbench.doctor:doctor", "check this machine: versions, devices, speed, and a self-test"),
}
"""Plain functions: their signature is their option list, their docstring their help. A dict has several, by name."""

POSITIONAL = ("report",)
"""Those that take a list of words, without an option's name."""

MISTAKE = 2
INTERRUPTED = 130
CLOSED_PIPE = 141
