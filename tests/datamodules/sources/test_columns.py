"""Which columns are taken by their names, and what is suggested where none is."""

import pytest

from datamodules.sources.columns import choose_columns
from datamodules.sources.source import ReadOptions
from workbench.errors import UserError


def choose(columns, first=None, types=None, **options):
    types = types or {}
    found = choose_columns(
        columns.split(),
        ReadOptions(**options),
        "pairs.csv",
        lambda: {name: values for name, values in (first or {}).items() if name in columns.split()},
        lambda column: types.get(column, "picture") == "picture",
        lambda column: types.get(column, "text") == "text",
    )
    return found.image, found.caption, found.label


def refusal(*args, **options):
    with pytest.raises(UserError) as error:
        choose(*args, **options)
    return str(error.value)


@pytest.mark.parametrize(
    ("columns", "image", "caption"),
    [
        ("filepath title", "filepath", "title"),
        ("title image filepath caption", "filepath", "caption"),
        ("id file_name caption", "file_name", "caption"),  # COCO
        ("url key status jpg caption width", "jpg", "caption"),  # img2dataset
        ("__key__ jpg txt", "jpg", "txt"),  # WebDataset
        ("image_name comment_number comment", "image_name", "comment"),  # Flickr30k
        ("Image CAPTIONS", "Image", "CAPTIONS"),
        ("image label captions", "image", "captions"),
        ("image label", "image", "label"),
    ],
)
def test_usual_names(columns, image, caption):
    assert choose(columns) == (image, caption, None)


def test_names_that_were_given():
    assert choose("image a b", image_column="b", caption_column="a") == ("b", "a", None)
    assert choose("image caption text label", label_column="label") == ("image", "caption", "label")
    assert choose("image label text", label_column="text") == ("image", "label", "text"), "a name stands for one thing"
    assert choose("image class", captions=False) == ("image", "class", "class")
    assert choose("image caption class", captions=False, label_column="caption") == ("image", "caption", "caption")
    said = refusal("image caption", caption_column="kaption")
    assert said == (
        "pairs.csv has no column 'kaption' (--data.caption_column); did you mean 'caption'? It has image, caption."
    )
    assert refusal("image caption", label_column="zzz").startswith(
        "pairs.csv has no column 'zzz' (--data.label_column). It has image, caption."
    )


def test_types_are_looked_at():
    types = {"image": "number", "label": "number"}
    assert choose("image path text", types=types) == ("path", "text", None)
    assert choose("image text", types=types) == ("image", "text", None), "its type is refused by who knows it"
    said = refusal("image bild text", {"bild": ["a.jpg"]}, types=types)
    assert "it has image, bild, text" in said and "'bild' looks like pictures" in said
    assert choose("path label", types=types)[1] == "label"


def test_suggestions():
    first = {
        "nr": ["1", "2"],
        "bild": ["x/1.JPG", "x/2.png"],
        "wort": ["a red dog", "cat"],
        "satz": ["a red dog runs over a field", "a cat"],
    }
    said = refusal("nr bild wort satz", first)
    assert "none of the usual columns (filepath, image, image_path, path, ...)" in said
    assert (
        "it has nr, bild, wort, satz. 'bild' looks like pictures; if it is, say so with --data.image_column 'bild'."
        in said
    )
    said = refusal("nr bild wort satz", first, image_column="bild")
    assert "(caption, captions, title, text, ...)" in said and "--data.caption_column 'satz'" in said
    assert refusal("nr wort", first).endswith("Say which it is with --data.image_column.")
    said = refusal("url caption", {"url": ["https://example.com/a.jpg"], "caption": ["x"]})
    assert "addresses of pictures" in said and "img2dataset" in said
    assert "looks like a row" in refusal("a.jpg red")
    assert refusal("image nr", first).endswith("Say which it is with --data.caption_column.")
    said = refusal("image nr wort satz", first, captions=False)
    assert said.endswith("Say which it is with --data.label_column.") and "(label, class, " in said
    assert "c29 and 71 more" in refusal(" ".join(f"c{n}" for n in range(101)))
    assert "has 2 columns called 'image'" in refusal("image image caption")
