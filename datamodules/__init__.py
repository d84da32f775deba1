"""Image-text and classification data for the tasks."""

from datamodules.base import ImageDataModule
from datamodules.classification import ClassificationDataModule
from datamodules.digits import DigitsDataModule
from datamodules.image_text import ImageTextDataModule
from datamodules.openmoji import OpenMojiDataModule

__all__ = [
    "ClassificationDataModule",
    "DigitsDataModule",
    "ImageDataModule",
    "ImageTextDataModule",
    "OpenMojiDataModule",
]
