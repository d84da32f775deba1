"""The LightningModules. A task is what is done with a model; the Trainer's verb is when."""

from workbench.tasks.base import Task
from workbench.tasks.contrastive import ContrastiveTask
from workbench.tasks.training import TrainingTask

__all__ = ["ContrastiveTask", "Task", "TrainingTask"]
