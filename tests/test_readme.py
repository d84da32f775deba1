"""The README's Python, from its own text, on small weights in place of OpenAI's."""

import re
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from workbench.models import create_model
from workbench.weights import zoo

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(autouse=True)
def small_weights(tmp_path, monkeypatch):
    """An archive as OpenAI's are, under the name of one of theirs."""
    torch.manual_seed(0)
    model = create_model("tiny-vit").eval()
    with torch.no_grad():
        model.visual.proj.mul_(30)  # to the size of trained features, which the probe's regularisation is for
    example = torch.randn(1, 3, 32, 32), torch.tensor([[49406, 5, 49407]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and OpenAI's files are made of it
        torch.jit.trace(model, example, check_trace=False).save(str(tmp_path / "tiny.pt"))
    monkeypatch.setitem(zoo.ZOO, "ViT-B/32", zoo.Entry("tiny.pt", zoo.sha256(tmp_path / "tiny.pt")))
    monkeypatch.setenv("CLIP_WORKBENCH_CACHE", str(tmp_path))


def block(word):
    [found] = [text for text in BLOCKS if word in text]
    return found


def test_zero_shot_prediction(capsys):
    Image.new("RGB", (50, 40), "red").save("picture.png")
    names = {}
    exec(block("Label probabilities"), names)
    assert names["image_features"].shape == (1, 32) and names["text_features"].shape == (3, 32)
    assert names["logits_per_text"].shape == (3, 1)
    assert names["probabilities"].shape == (1, 3) and abs(names["probabilities"].sum() - 1) < 1e-5
    assert capsys.readouterr().out.startswith("Label probabilities: [[0.")


def test_linear_probe(capsys):
    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images[:200], digits.target[:200], strict=True)):
        folder = Path("pictures", "test" if number % 4 == 0 else "train", str(label))
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15).astype("uint8")).resize((40, 40)).save(folder / f"{number}.png")
    exec(block("LogisticRegression"), {})
    accuracy = float(re.fullmatch(r"Accuracy: ([\d.]+)%\n", capsys.readouterr().out)[1])
    assert accuracy > 50, "random features of pictures tell ten digits apart, ten times better than chance"


def test_every_block_of_python_is_run_here():
    assert len(BLOCKS) == 2


def test_the_api_is_openais():
    """What their README's examples call, as they call it: CIFAR-100 by name, one text at a time."""
    import workbench as clip

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, preprocess = clip.load("ViT-B/32", device)
    classes = ["apple", "aquarium fish", "baby", "bear", "beaver", "bed"]
    image_input = preprocess(Image.new("RGB", (32, 32), "green")).unsqueeze(0).to(device)
    text_inputs = torch.cat([clip.tokenize(f"a photo of a {name}") for name in classes]).to(device)
    with torch.no_grad():
        image_features = model.encode_image(image_input)
        text_features = model.encode_text(text_inputs)
    image_features /= image_features.norm(dim=-1, keepdim=True)
    text_features /= text_features.norm(dim=-1, keepdim=True)
    similarity = (100.0 * image_features @ text_features.T).softmax(dim=-1)
    values, indices = similarity[0].topk(5)
    assert len(set(indices.tolist())) == 5 and bool((values[:-1] >= values[1:]).all())
    assert clip.available_models()[0] == "RN50"
    assert clip.tokenize(["x"], context_length=10, truncate=True).shape == (1, 10)
