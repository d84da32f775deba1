"""The same sets as CLIP_benchmark has them, where it is installed: it brings a captioning toolkit, so is no extra."""

import importlib.resources
import json

import pytest

from workbench import prompts
from workbench.errors import UserError

datasets = pytest.importorskip("clip_benchmark.datasets")

# CLIP_benchmark's name -> ours, and whether its classes and its templates are OpenAI's.
CLIP_BENCHMARK = {
    "imagenet1k": ("imagenet", True, True),
    "cifar10": ("cifar10", None, True),
    "cifar100": ("cifar100", None, True),
    "food101": ("food101", None, True),
    "sun397": ("sun397", None, True),
    "cars": ("stanford_cars", None, True),
    "fgvc_aircraft": ("fgvc_aircraft", None, True),
    "dtd": ("dtd", None, True),
    "pets": ("oxford_pets", "order", True),
    "caltech101": ("caltech101", True, True),
    "caltech101_vtab": ("caltech101", "order", None),
    "flowers": ("flowers102", True, True),
    "mnist": ("mnist", True, True),
    "stl10": ("stl10", None, True),
    "eurosat": ("eurosat", "order", True),
    "gtsrb": ("gtsrb", True, True),
    "country211": ("country211", True, True),
    "renderedsst2": ("sst2", None, True),
    "voc2007": ("voc2007", None, True),
    "fer2013": ("fer2013", "order", True),
    "clevr_count_all": ("clevr_counts", "order", False),
    "pcam": ("patch_camelyon", True, False),
    "resisc45": ("resisc45", None, False),
    "kitti_closest_vehicle_distance": ("kitti", True, True),
}


@pytest.mark.parametrize("theirs", CLIP_BENCHMARK)
def test_classes_and_templates(theirs):
    folder = importlib.resources.files(datasets)
    classes = json.loads(folder.joinpath("en_classnames.json").read_text()).get(theirs)
    templates = json.loads(folder.joinpath("en_zeroshot_classification_templates.json").read_text()).get(theirs)
    name, same_classes, same_templates = CLIP_BENCHMARK[theirs]
    assert (classes is None) == (same_classes is None) and (templates is None) == (same_templates is None)
    file = prompts.read(name)
    if classes is not None:
        assert (classes == file.class_names) == (same_classes is True)
    if same_classes == "order":
        with pytest.raises(UserError, match="in another order"):
            prompts.check_class_order(classes, file.class_names, "CLIP_benchmark", name, file.aliases)
    if templates is not None:
        assert ({template.replace("{c}", "{}") for template in templates} == set(file.templates)) == same_templates
