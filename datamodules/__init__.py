"""Image-text and classification data for the tasks."""

from datamodules.base import ImageDataModule
from datamodules.openmoji import OpenMojiDataModule

__all__ = ["ImageDataModule", "OpenMojiDataModule"]
