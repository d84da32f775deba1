"""The LightningModules. A task is what is done with a model; the Trainer's verb is when."""

from workbench.tasks.base import Task
from workbench.tasks.classification import ClassificationTask
from workbench.tasks.contrastive import ContrastiveTask
from workbench.tasks.coop import CoOpTask
from workbench.tasks.linear_probe import LinearProbeTask
from workbench.tasks.tip_adapter import TipAdapterTask
from workbench.tasks.training import TrainingTask

__all__ = [
    "ClassificationTask",
    "CoOpTask",
    "ContrastiveTask",
    "LinearProbeTask",
    "Task",
    "TipAdapterTask",
    "TrainingTask",
]
