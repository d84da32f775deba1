"""What a check says on the screen, in JSON and on its page."""

import base64
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from workbench.data import report_html
from workbench.data.checking import check_plan
from workbench.data.planning import make_plan
from workbench.data.report_html import write_html
from workbench.data.report_json import write_json
from workbench.data.report_text import printable, readable_bytes, readable_seconds, report_text
from workbench.main import main

HOSTILE = "\x1b[31m<script>alert('x')</script> \"quoted\" & {{ 7 * 7 }} <img src=x onerror=y>"


@pytest.fixture
def checked(pairs, table):
    """Return the check of a table with hostile captions, a repeated one, and a picture that is gone."""
    pairs(numbers=range(10))
    rows = [(f"pictures/{number}.jpg", HOSTILE if number < 2 else f"caption {number}") for number in range(10)]
    rows[9] = ("pictures/<b>gone</b>.jpg", HOSTILE + " too")
    return check_plan(make_plan(table("pairs.csv", rows)), workers=0)


class Page(HTMLParser):
    """Collects elements, and refuses text that is none of HTML's."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def test_page(checked):
    write_html(checked, Path("page.html"), seed=1)
    text = Path("page.html").read_text()
    page = Page(text)
    tags = {tag for tag, _ in page.elements}
    assert "script" not in tags and "iframe" not in tags
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("src", "href"):
            assert attributes.get(name, "data:image/").startswith("data:image/"), (tag, attributes)
    assert "{{ 7 * 7 }}" in page.text and "alert('x')" in page.text and "\x1b" not in text
    assert "pictures/<b>gone</b>.jpg" in page.text
    assert "<script>" not in text and "http:" not in text and "https:" not in text
    pictures = [attributes["src"] for tag, attributes in page.elements if tag == "img"]
    # One finding shows two rows with one caption, another six small ones; all nine are in the sample.
    assert len(set(pictures)) == 9
    for source in pictures:
        with Image.open(io.BytesIO(base64.b64decode(source.partition("base64,")[2]))) as opened:
            assert opened.format == "JPEG" and max(opened.size) <= 168
    for finding in checked.findings:
        assert finding.text in " ".join(page.text.split()), finding.text
    assert "Captions by tokens" in page.text and "prefers-color-scheme: dark" in text


def test_the_sample_is_of_the_seed(checked, monkeypatch):
    monkeypatch.setattr(report_html, "_SAMPLE", 3)
    texts = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_html(checked, Path(name), seed)
        texts.append(Path(name).read_text().replace(f"Drawn with seed {seed}.", ""))
    assert texts[0] == texts[1] != texts[2]


def test_screen(checked, monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    said = report_text(checked)
    lines = said.splitlines()
    order = [lines.index(title) for title in ("WOULD BREAK TRAINING", "FOR INFORMATION")]
    assert order == sorted(order)
    assert "pictures/<b>gone</b>.jpg (pairs.csv, line 11)" in said
    assert "\x1b" not in said and "\\x1b[31m<script>" in said
    assert max(len(line) for line in lines if "python -m" not in line) <= 90
    assert "--fix cleaned.csv" in said and "data show pairs.csv" in said


def test_json(checked):
    write_json(checked, Path("found.json"))
    found = json.loads(Path("found.json").read_text())
    assert set(found) == {
        *("version", "target", "breaks_training", "settings", "refused", "notices", "splits", "batches", "findings"),
        "measured",
    }
    missing = next(each for each in found["findings"] if each["code"] == "missing-pictures")
    assert {**missing["rows"][0], "reason": ""} == {
        "split": "train",
        "row": 9,
        "place": "pairs.csv, line 11",
        "picture": "pictures/<b>gone</b>.jpg",
        "reason": "",
    }
    repeated = next(each for each in found["findings"] if each["code"] == "repeated-captions")
    assert [row["place"] for row in repeated["groups"][0]] == ["pairs.csv, line 2", "pairs.csv, line 3"]
    assert found["splits"]["train"]["captions"]["most_common"] == [[HOSTILE, 2]]


def test_files_that_cannot_be_written(pairs, capsys):
    name = pairs(numbers=range(3))
    Path("folder").mkdir()
    for option in ("--json", "--html"):
        assert main(["data", "check", name, option, "folder"]) == 2
        assert "is a folder" in capsys.readouterr().err
        assert main(["data", "check", name, option, f"{name}/below"]) == 2
        assert "cannot be written" in capsys.readouterr().err
    assert sorted(path.name for path in Path().iterdir()) == ["folder", "pairs.csv", "pictures"]


def test_words_for_numbers():
    sizes = [readable_bytes(size) for size in (0, 999, 1500, 2.5e9, 3e14)]
    assert sizes == ["0 bytes", "999 bytes", "1.5 kB", "2.5 GB", "300 TB"]
    assert [readable_seconds(time) for time in (0.25, 42, 300, 7200)] == ["0.2 s", "42 s", "5 min", "2.0 h"]
    assert printable("a\x1b[0m\nb \u202e ✓ \u200d") == "a\\x1b[0m\\x0ab \\u202e ✓ \u200d"
