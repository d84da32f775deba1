"""Delimited text: every cell is text, Arrow and `csv` read the same rows, and messages name the line."""

import csv
import gzip
import io
import random

import pyarrow as pa
import pytest

from datamodules.sources import delimited
from datamodules.sources.delimited import read_delimited
from datamodules.sources.source import ReadOptions
from datamodules.sources.table_file import TableFile
from workbench.errors import UserError

CAPTIONS = [
    *("None", "NA", "null", "NaN", "1e5", "true", "007", "=1+1", "#N/A", "trailing  ", "  leading", "it's"),
    *("a dog 🐕 and a 猫", "line\u2028separator", "back\\slash", "\\N", "\ttab", "a, b; c | d"),
    *('a "quoted" word', '"', "two\nlines", "two\r\nlines", "  \n x"),
]
UNQUOTED = [text for text in CAPTIONS if not set(text) & set('"\r\n\t,;|')]


def read(content, tmp_path, name="pairs.csv", **options):
    content = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(content)
    return read_delimited(TableFile(name, name, "."), ReadOptions(**options))


def written(rows, header=("filepath", "title"), **form):
    text = io.StringIO(newline="")
    csv.writer(text, **form).writerows([header, *rows])
    return text.getvalue()


def rows_of(source):
    return [(source.place(n), source.pictures.paths[n], source.captions[n]) for n in range(len(source))]


def refusal(content, tmp_path, **options):
    with pytest.raises(UserError) as error:
        read(content, tmp_path, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def readers(monkeypatch):
    """Which of the two readers were asked."""
    asked = []
    for name in ("_read_with_arrow", "_read_with_csv"):
        real = getattr(delimited, name)

        def noted(*args, _real=real, _name=name):
            asked.append(_name)
            return _real(*args)

        monkeypatch.setattr(delimited, name, noted)
    return asked


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|", "^", "\x01"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_captions_are_text(tmp_path, delimiter, end, readers):
    rows = [(f"{n}.jpg", text) for n, text in enumerate(CAPTIONS)]
    source = read(written(rows, delimiter=delimiter, lineterminator=end), tmp_path)
    assert [caption for (caption,) in source.captions] == CAPTIONS
    assert source.pictures.paths[:] == [path for path, _ in rows]
    assert readers == ["_read_with_csv"]


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|", "^", "\x1e"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"], ids=["", "BOM"])
def test_captions_are_text_without_quotes_too(tmp_path, delimiter, end, start, readers):
    lines = ["filepath" + delimiter + "title", *(f"{n}.jpg{delimiter}{text}" for n, text in enumerate(UNQUOTED))]
    source = read(start + end.join(lines).encode(), tmp_path)
    assert [caption for (caption,) in source.captions] == UNQUOTED
    assert source.place(1) == "pairs.csv, line 3" and source.name == "pairs.csv"
    assert source.pictures.name(0) == "0.jpg"
    assert readers == ["_read_with_arrow"]


def test_line_numbers(tmp_path, readers):
    text = '\n\nfilepath,title\na.jpg,"two\nlines"\n\nb.jpg,"x"\nc.jpg,y'
    assert [place for place, *_ in rows_of(read(text, tmp_path))] == [f"pairs.csv, line {n}" for n in (4, 7, 8)]
    text = "\r\n\r\nfilepath,title\r\na.jpg,x\r\n\r\n\r\nb.jpg,x\r\n\r\nc.jpg,y"
    assert [place for place, *_ in rows_of(read(text, tmp_path))] == [f"pairs.csv, line {n}" for n in (4, 7, 9)]
    assert readers == ["_read_with_csv", "_read_with_arrow"]


def test_lines_that_end_where_a_piece_of_the_file_does(tmp_path, monkeypatch, readers):
    text = "filepath,title\r\n" + "".join(f"{n:02}.jpg,x\r\n\r\n" for n in range(20))
    for chunk in range(20, 40):
        monkeypatch.setattr(delimited, "_CHUNK", chunk)
        rows = rows_of(read(text, tmp_path))
        assert rows == [(f"pairs.csv, line {2 + 2 * n}", f"{n:02}.jpg", ["x"]) for n in range(20)]
    assert set(readers) == {"_read_with_arrow"}


@pytest.mark.parametrize("chunk", [64, 1 << 12])
def test_both_readers_agree_with_python_on_random_tables(tmp_path, monkeypatch, chunk, readers):
    monkeypatch.setattr(delimited, "_CHUNK", chunk)
    monkeypatch.setattr(delimited, "ROWS_AT_ONCE", 3)
    draw = random.Random(chunk)
    refused = 0
    for _ in range(300):
        delimiter, end = draw.choice("\t,;|"), draw.choice(["\n", "\r\n"])
        characters = [c for c in ["a", "é", "😀", " ", "\u2028", "\x0b", "'", "\\", *",;|\t"] if c != delimiter]
        if draw.random() < 0.4:
            characters += ['"', "\n", "\r", "\r\n", delimiter]
        header = ["filepath", "title", "more"][: draw.choice((2, 3))]
        rows = [["x" + "".join(draw.choices(characters, k=5)) for _ in header] for _ in range(draw.randint(1, 8))]
        text = written(rows, header, delimiter=delimiter, lineterminator=end)
        if draw.random() < 0.3:
            place = draw.randrange(len(text))
            text = text[:place] + draw.choice([end, end + end, delimiter, '"', "\r"]) + text[place:]
        if draw.random() < 0.3:
            text = text.removesuffix(end)
        expected, begins = [], 1
        try:
            reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
            for cells in reader:
                if cells:
                    expected.append((f"pairs.csv, line {begins}", cells))
                begins = reader.line_num + 1
        except csv.Error:
            expected = []
        expected = expected if expected and expected[0][1] == header and len(expected) > 1 else []
        if any(len(cells) != len(header) or not all(cell.strip() for cell in cells[:2]) for _, cells in expected):
            expected = []
        try:
            found = rows_of(read(text, tmp_path))
        except UserError:
            found, refused = [], refused + 1
        assert found == [(place, cells[0], [cells[1]]) for place, cells in expected[1:]], text
    assert 20 < refused < 120 and readers.count("_read_with_arrow") > 60 < readers.count("_read_with_csv")


def test_gzip(tmp_path):
    text = written([(f"{n}.jpg", text) for n, text in enumerate(CAPTIONS)])
    source = read(gzip.compress(text.encode()), tmp_path, "pairs.csv.gz")
    assert [caption for (caption,) in source.captions] == CAPTIONS
    plain = gzip.compress(b"filepath,title\na.jpg,x\nb.jpg,y\n")
    assert rows_of(read(plain, tmp_path))[1] == ("pairs.csv, line 3", "b.jpg", ["y"])
    assert "cannot be read" in refusal(plain[:-9], tmp_path)


def test_columns_and_labels(tmp_path):
    text = "id,class,image,caption\n1,7,a.jpg,x\n2,None,b.jpg,y\n"
    source = read(text, tmp_path, label_column="class")
    assert source.labels[:] == ["7", "None"] and read(text, tmp_path).labels is None
    quoted = '"image";"caption, in English, of course"\n"a.jpg";"x"\n'
    assert list(read(quoted, tmp_path, caption_column="caption, in English, of course").captions) == [["x"]]
    source = read(text, tmp_path, image_column="id", caption_column="image")
    assert rows_of(source)[0] == ("pairs.csv, line 2", "1", ["a.jpg"])


WRONG = {
    "more cells": ("a.jpg,x\nb.jpg,y,z\n", ["pairs.csv, line 3", "more cells than the header's 2", "','"]),
    "fewer cells": ("a.jpg,x\n\nb.jpg\n", ["pairs.csv, line 4", "fewer cells", "only 1"]),
    "more cells, quoted": ('a.jpg,"x"\nb.jpg,y,z\n', ["pairs.csv, line 3", "more cells"]),
    "fewer cells, quoted": ('a.jpg,"x\n"\nb.jpg\n', ["pairs.csv, line 4", "fewer cells"]),
    "blank": ("a.jpg,x\n   \n", ["pairs.csv, line 3", "fewer cells"]),
    "open quote": ('a.jpg,x\nb.jpg,"y\nc.jpg,z\n', ["pairs.csv, line 3", "double quotes"]),
    "stray quote": ('a.jpg,"x" y\n', ["pairs.csv, line 2", "double quotes"]),
    "caption": ("a.jpg,x\nb.jpg,\nc.jpg, \u3000\n", ["line 3: the caption is empty", "2 such rows", "line 4"]),
    "path": ("a.jpg,x\n,y\n", ["line 3: the picture path is empty"]),
    "no row": ("", ["pairs.csv has no row"]),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_rows(tmp_path, kind):
    text, words = WRONG[kind]
    said = refusal("filepath,title\n" + text, tmp_path)
    assert all(word in said for word in words), said


def test_wrong_encodings(tmp_path):
    table = "filepath,title\na.jpg,café\nb.jpg,thé\n"
    assert "pairs.csv is UTF-16" in refusal(table.encode("utf-16"), tmp_path)
    assert "pairs.csv is UTF-16" in refusal(table.encode("utf-16-be"), tmp_path)
    said = refusal(table.replace("café", "coffee").encode("latin-1"), tmp_path)
    assert "pairs.csv, line 3" in said and "0xe9" in said and "iconv" in said
    quoted = table.replace("café", '"coffee"').encode("latin-1")
    assert "pairs.csv, line 3" in refusal(quoted, tmp_path)


def test_wrong_headers(tmp_path):
    assert "is empty" in refusal("\n\n", tmp_path)
    assert "a single column, 'filepath title'" in refusal("filepath title\na.jpg x\n", tmp_path)
    said = refusal("a.jpg,red apple\nb.jpg,green pear\n", tmp_path)
    assert "it has a.jpg, red apple" in said and "looks like a row" in said
    assert "2 columns called 'title'" in refusal("filepath,title,title\na.jpg,x,y\n", tmp_path)
    said = refusal("bild,titel\na/1.jpg,a red apple\nb.jpg,two green pears\n", tmp_path)
    assert (
        "it has bild, titel" in said and "'bild' looks like pictures" in said and "--data.image_column 'bild'" in said
    )
    said = refusal("image,w,satz\na/1.jpg,7,a red apple\nb.jpg,8,two green pears\n", tmp_path)
    assert "'satz' looks like captions" in said and "--data.caption_column 'satz'" in said
    said = refusal("image,caption\na,b\n", tmp_path, image_column="imgae")
    assert "no column 'imgae' (--data.image_column); did you mean 'image'? It has image, caption." in said


def test_long_cells_are_refused_and_the_limit_of_csv_is_put_back(tmp_path):
    before = csv.field_size_limit()
    csv.field_size_limit(131072)
    long = "x" * (delimited.LONGEST + 1)
    assert "line 2: the caption is longer" in refusal(f"filepath,title\na.jpg,{long}\n", tmp_path)
    assert "line 2: field larger than field limit" in refusal(f'filepath,title\na.jpg,"{long}"\n', tmp_path)
    assert csv.field_size_limit(before) == 131072
    longer_than_the_default = "x" * 200_000
    source = read(f'filepath,title,more\na.jpg,"x",{longer_than_the_default}\n', tmp_path)
    assert rows_of(source) == [("pairs.csv, line 2", "a.jpg", ["x"])]


def test_rows_are_not_python_objects(tmp_path):
    """Ten thousand rows take what their text does: no list of strings is kept, and nothing is there twice."""
    rows = [(f"{n:06}.jpg", "x" * 84) for n in range(10_000)]
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
        source = read(written(rows, quoting=quoting), tmp_path)
        arrays = (source.captions.array, source.pictures.paths.array, source.place.numbers.array)
        assert all(isinstance(array, pa.Array) for array in arrays)
        assert sum(array.nbytes for array in arrays) < 10_000 * (94 + 28) + 1000
