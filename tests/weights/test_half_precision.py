"""Half precision by OpenAI's rule, against open_clip's copy of it; and no training on half weights."""

import open_clip
import pytest
import torch

from workbench.errors import UserError
from workbench.models import create_model
from workbench.optimization import parameter_groups
from workbench.weights.half_precision import rounded_to_half, to_half


@pytest.mark.parametrize("name, theirs", [("ViT-B/32", "ViT-B-32-quickgelu"), ("RN50", "RN50-quickgelu")])
def test_the_types_are_those_of_convert_weights(name, theirs):
    with torch.device("meta"):
        ours, config = to_half(create_model(name)), open_clip.get_model_config(theirs)
        peer = open_clip.model.CLIP(**config)
        open_clip.model.convert_weights_to_fp16(peer)
    assert {key: p.dtype for key, p in ours.named_parameters()} == {key: p.dtype for key, p in peer.named_parameters()}


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-rn"])
def test_the_half_model_computes_nearly_the_same(name):
    model = create_model(name).eval()
    images, tokens = torch.randn(2, 3, 32, 32), torch.tensor([[49406, 320, 1125, 49407], [49406, 5, 49407, 0]])
    rounded = rounded_to_half(model)
    assert {p.dtype for p in model.parameters()} == {torch.float32}  # a copy
    assert not torch.equal(rounded.text_projection, model.text_projection)
    half = to_half(model)
    assert half.dtype == torch.float16
    with torch.no_grad():
        assert half.encode_image(images).dtype == half.encode_text(tokens).dtype == torch.float16
        for ours, expected in (
            (half.encode_image(images), rounded.encode_image(images)),
            (half.encode_text(tokens), rounded.encode_text(tokens)),
        ):
            torch.testing.assert_close(ours.float(), expected, rtol=2e-2, atol=2e-3 * float(expected.abs().max()))


def test_training_on_half_weights_is_refused():
    with pytest.raises(UserError, match=r"in half precision \(.*\).*Adam.*fp32"):
        parameter_groups(to_half(create_model("tiny-vit")), 0.2, [])


def test_frozen_half_weights_may_stay():
    model = to_half(create_model("tiny-vit"))
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.dtype == torch.float32)
    assert parameter_groups(model, 0.2, [])
