"""JSON lines: captions are strings or lists of strings and nothing else; messages name the line."""

import gzip
import json

import pytest

from datamodules.sources import json_lines
from datamodules.sources.json_lines import read_json_lines
from datamodules.sources.source import ReadOptions
from datamodules.sources.table_file import TableFile
from workbench.errors import UserError

CAPTIONS = [
    *("None", "NA", "null", "1e5", "true", "=1+1", "trailing  ", 'a "quoted" word', "two\nlines", "a dog 🐕", "\u2028"),
]
CAPTIONS[-1] = "a\u2028b"


def read(lines, tmp_path, name="pairs.jsonl", **options):
    text = lines if isinstance(lines, bytes) else "\n".join(lines).encode()
    (tmp_path / name).write_bytes(text)
    return read_json_lines(TableFile(name, name, "."), ReadOptions(**options))


def refusal(lines, tmp_path, **options):
    with pytest.raises(UserError) as error:
        read(lines, tmp_path, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("ascii", [True, False])
def test_captions_are_text(tmp_path, monkeypatch, ascii):
    monkeypatch.setattr(json_lines, "ROWS_AT_ONCE", 4)
    rows = [{"image": f"{n}.jpg", "caption": text} for n, text in enumerate(CAPTIONS)]
    source = read([json.dumps(row, ensure_ascii=ascii) for row in rows], tmp_path)
    assert [caption for (caption,) in source.captions] == CAPTIONS
    assert source.pictures.paths[:] == [row["image"] for row in rows]
    assert source.labels is None and source.block_starts is None


def test_several_captions_labels_and_lines(tmp_path):
    text = (
        b'\xef\xbb\xbf{"file_name": "a.jpg", "captions": ["x", "None"], "label": 7}\r\n\r\n'
        b'  {"file_name": "b.jpg", "captions": "y", "label": "7", "more": null}'
    )
    source = read(text, tmp_path, label_column="label")
    assert list(source.captions) == [["x", "None"], ["y"]] and source.labels[:] == ["7", "7"]
    assert [source.place(0), source.place(1)] == ["pairs.jsonl, line 1", "pairs.jsonl, line 3"]
    assert len(read(gzip.compress(text), tmp_path)) == 2


GOOD = '{"image": "a.jpg", "caption": "x"}'
WRONG = {
    "null": ('{"image": "b.jpg", "caption": null}', ["the caption is null", "a caption is text"]),
    "number": ('{"image": "b.jpg", "caption": 1e5}', ["the caption is the number 100000.0", "a caption is text"]),
    "boolean": ('{"image": "b.jpg", "caption": true}', ["the caption is true", "a caption is text"]),
    "object": ('{"image": "b.jpg", "caption": {"en": "x"}}', ["the caption is an object", "a caption is text"]),
    "in a list": ('{"image": "b.jpg", "caption": ["x", null]}', ["the caption is null", "a list of strings"]),
    "no caption": ('{"image": "b.jpg", "caption": []}', ["the caption is empty"]),
    "empty": ('{"image": "b.jpg", "caption": ["x", " "]}', ["the caption is empty"]),
    "path": ('{"image": 7, "caption": "x"}', ["the picture path is the number 7"]),
    "key": ('{"image": "b.jpg", "text": "x"}', ["no key 'caption'; it has image, text"]),
    "list": ('["b.jpg", "x"]', ["is a list", "whole JSON object"]),
    "no JSON": ("{'image': 'b.jpg'}", ["is not JSON", "whole JSON object"]),
    "depth": ('{"image": ' + "[" * 100_000, ["is not JSON", "whole JSON object"]),
    "digits": ('{"image": ' + "9" * 5000 + "}", ["is not JSON", "whole JSON object"]),
    "half": ('{"image": "b.jpg", "caption": "\\ud83d"}', ["half of a character", "ud83d"]),
    "long": ('{"image": "b.jpg", "caption": "' + "x" * 2_000_000 + '"}', ["caption is longer than"]),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_lines(tmp_path, kind):
    line, words = WRONG[kind]
    said = refusal([GOOD, "", line, GOOD], tmp_path)
    assert "pairs.jsonl, line 3" in said and all(word in said for word in words) and len(said) < 500, said


def test_wrong_files(tmp_path, monkeypatch):
    assert "pairs.jsonl is empty" in refusal(["", " "], tmp_path)
    assert "line 1 is not JSON" in refusal(["{", '"image": "a.jpg", "caption": "x"}'], tmp_path)
    assert "line 2 is not UTF-8" in refusal(GOOD.encode() + b"\n" + '{"image": "é"}'.encode("latin-1"), tmp_path)
    said = refusal(['{"bild": "a.jpg", "satz": "a red apple"}'], tmp_path)
    assert "it has bild, satz" in said and "--data.image_column 'bild'" in said
    assert "the label is null" in refusal([GOOD[:-1] + ', "k": null}'], tmp_path, label_column="k")
    assert "the label is true" in refusal([GOOD[:-1] + ', "k": true}'], tmp_path, label_column="k")
    monkeypatch.setattr(json_lines, "LONGEST_LINE", 100)
    assert "line 2 is longer than 100 bytes" in refusal([GOOD, GOOD[:-1] + " " * 100 + "}"], tmp_path)
