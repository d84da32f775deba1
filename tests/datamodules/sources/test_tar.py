"""Tar headers: against Python's `tarfile`, and by hand what nobody should have written."""

import io
import os
import random
import struct
import tarfile

import pytest

from datamodules.sources import tar
from datamodules.sources.tar import TarReader
from workbench.errors import UserError

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
END = bytes(1024)


def members(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        reader = TarReader(descriptor, str(path))
        found = [tuple(member) for member in reader]
        return found, [reader.read(offset, size) for _, offset, size in found], reader.ended
    finally:
        os.close(descriptor)


def of_tarfile(path):
    with tarfile.open(path, "r:") as archive:
        files = [member for member in archive if member.isreg()]
        return [(member.name, member.offset_data, member.size) for member in files], [
            archive.extractfile(member).read() for member in files
        ]


def header(name=b"a.txt", size=0, kind=b"0", magic=b"ustar\x0000", prefix=b"", size_field=None, **wrong):
    """Return a header block, right but for what is asked for."""
    field = b"%011o\0" % size if size_field is None else size_field
    block = struct.pack(
        "100s8s8s8s12s12s8s1s100s8s32s32s8s8s155s12x",
        *(name, b"0000644\0", b"0000000\0", b"0000000\0", field, b"00000000000\0", b" " * 8, kind, b"target"),
        *(magic, b"", b"", b"", b"", prefix),
    )
    checksum = b"%06o\0 " % (sum(block) + wrong.get("off", 0))
    return block[:148] + wrong.get("checksum", checksum) + block[156:]


def padded(content):
    return content + bytes(-len(content) % 512)


def record(key, value):
    length = len(key) + len(value) + 3
    while len(str(length)) + len(key) + len(value) + 3 != length:
        length = len(str(length)) + len(key) + len(value) + 3
    return b"%d %s=%s\n" % (length, key, value)


def pax(*records, kind=b"x"):
    content = b"".join(records)
    return header(b"PaxHeader", len(content), kind) + padded(content)


@pytest.fixture
def archive(tmp_path):
    def write(*blocks):
        path = tmp_path / "hand.tar"
        path.write_bytes(b"".join(blocks))
        return path

    return write


def name_for(source, number, kind):
    if kind == "ustar":
        folder = "f" * source.randint(1, 40) + "/" if source.random() < 0.3 else ""
        return f"{folder * source.randint(1, 3)}{number:06d}{'n' * source.randint(0, 60)}.jpg"
    names = ["{:06d}.jpg", "bücher/{:06d}.png", "日本/{:06d}.txt", "x" * 90 + "{:06d}.json", "🎉" * 60 + "/{:06d}.jpg"]
    return source.choice([*names, "d/" * 120 + "{:06d}" + "y" * 120 + ".json"]).format(number)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", FORMATS)
def test_as_tarfile_reads_it(tmp_path, kind, seed):
    source = random.Random(seed)
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=FORMATS[kind]) as archive:
        for number in range(source.choice([1, 20, 400])):
            entry = tarfile.TarInfo(name_for(source, number, kind))
            if source.random() < 0.1:
                entry.type = tarfile.DIRTYPE
                archive.addfile(entry)
                continue
            content = source.randbytes(source.choice([0, 1, 511, 512, 513, 5000, 20000]))
            entry.size, entry.mtime = len(content), source.choice([0, 1.5 if kind == "pax" else 1])
            entry.uname = source.choice(["", "müller" if kind == "pax" else "mueller"])
            archive.addfile(entry, io.BytesIO(content))
    found, contents, ended = members(path)
    assert (found, contents) == of_tarfile(path) and ended


def test_the_tar_program(tmp_path):
    names = ["a.jpg", "sub/b.txt", "sub/" + "c" * 150 + ".jpg"]
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(name)
    for kind in ("v7", "oldgnu", "gnu", "ustar", "posix"):
        path = tmp_path / f"{kind}.tar"
        some = names if kind not in ("v7", "ustar") else names[:2]
        assert os.spawnlp(os.P_WAIT, "tar", "tar", f"--format={kind}", "-cf", path, "-C", tmp_path / "in", *some) == 0
        found, contents, ended = members(path)
        assert (found, contents) == of_tarfile(path) and [name for name, *_ in found] == some and ended


def test_headers_of_old(archive):
    old = header(b"old.txt", 3, b"\0", magic=b"") + padded(b"old")
    folder = header(b"folder/", 0, b"\0", magic=b"")
    prefixed = header(b"name.txt", 1, prefix=b"some/prefix") + padded(b"1")
    times = header(b"gnu.txt", 1, magic=b"ustar  \0", prefix=b"13371337") + padded(b"2")
    spaces = header(b"s.txt", size_field=b"      3 \0\0\0\0") + padded(b"abc")
    binary = header(b"b.txt", size_field=b"\x80" + (2).to_bytes(11, "big")) + padded(b"xy")
    latin = header(b"caf\xe9.txt")
    found, contents, ended = members(archive(old, folder, prefixed, times, spaces, binary, latin, END))
    names = [name for name, *_ in found]
    assert names == ["old.txt", "some/prefix/name.txt", "gnu.txt", "s.txt", "b.txt", "caf\\xe9.txt"]
    assert contents == [b"old", b"1", b"2", b"abc", b"xy", b""] and ended


def test_long_names_and_sizes_of_both_kinds(archive):
    long = header(b"././@LongLink", 301, b"L") + padded(b"l" * 300 + b"\0")
    link = header(b"././@LongLink", 4, b"K") + padded(b"abc\0")
    sized = pax(record(b"size", b"3"), record(b"path", "ü\n=.txt".encode()))
    ignored = pax(record(b"comment", b"made by git"), kind=b"g")
    twice = [header(b"././@LongLink", 4, b"L") + padded(b"one\0"), pax(record(b"path", b"two"))]
    blocks = [ignored, long, link, header(b"x", 1), padded(b"1"), sized, header(b"y", 0), padded(b"123")]
    path = archive(*blocks, header(b"z", 1), padded(b"2"), *twice, header(), *twice[::-1], header(), END)
    found, contents, _ = members(path)
    assert [name for name, *_ in found] == ["l" * 300, "ü\n=.txt", "z", "one", "two"]
    assert contents == [b"1", b"123", b"2", b"", b""]
    assert (found, contents) == of_tarfile(path)


def refused(path, match):
    with pytest.raises(UserError, match=match) as raised:
        members(path)
    assert str(path) in str(raised.value) and str(raised.value).endswith(".")


@pytest.mark.parametrize(
    "kind, what",
    [
        (b"1", "a hard link; pack"),
        (b"2", r"a symbolic link; pack .*\(tar --dereference\)"),
        (b"3", "a device"),
        (b"4", "a device"),
        (b"6", "a FIFO"),
        (b"S", "a sparse file"),
        (b"M", "the rest of a file in another volume"),
        (b"Z", "of the unknown kind b'Z'"),
    ],
)
def test_what_has_no_bytes_of_its_own_is_refused(archive, kind, what):
    path = archive(header(b"a.txt", 1), padded(b"1"), header(b"evil.jpg", 0, kind), END)
    refused(path, f"has the member 'evil.jpg' at byte 1,024, which is {what}")


@pytest.mark.parametrize("name", [b"/etc/passwd", b"../a.txt", b"a/../../b.txt", b"a/.."])
def test_names_that_lead_out_are_refused(archive, name):
    refused(archive(header(name), END), "which leads out of the archive")
    refused(archive(pax(record(b"path", name)), header(), END), "which leads out")
    long = header(b"././@LongLink", len(name) + 1, b"L") + padded(name + b"\0")
    refused(archive(long, header(), END), "which leads out")
    head, _, tail = name.rpartition(b"/")
    if head:
        refused(archive(header(tail, prefix=head), END), "which leads out")


def test_names_that_only_look_like_it(archive):
    found, *_ = members(archive(header(b"..a/b..c/...txt"), END))
    assert found[0][0] == "..a/b..c/...txt"


def test_names_that_are_none(archive):
    refused(archive(header(b""), END), "a member without a name at byte 0")
    refused(archive(pax(record(b"path", b"a\0b")), header(), END), "a member without a name")


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g", b"X"])
def test_extensions_of_any_size_are_refused(archive, kind):
    refused(
        archive(header(b"x", (1 << 20) + 1, kind), END), "a header of 1,048,577 bytes at byte 0, more than any name"
    )
    refused(
        archive(header(b"x", 5000, kind), bytes(1000)), "cut short: 4,000 bytes of the header at byte 0 are missing"
    )


@pytest.mark.parametrize(
    "field",
    [b"-0000000001\0", b"\xff" * 12, b"0000000009\0 ", b"0x000000010\0", b"1_000000000\0", b"abc\0\0\0\0\0\0\0\0\0"],
)
def test_sizes_that_are_none(archive, field):
    refused(archive(header(size_field=field), END), "a member at byte 0 whose size is no number")


@pytest.mark.parametrize("field", [b"77777777777\0", b"\x80" + b"\xff" * 11, b"\x80" + (1 << 63).to_bytes(11, "big")])
def test_sizes_beyond_the_file(archive, field):
    refused(
        archive(header(size_field=field), END), r"is cut short: [\d,]+ bytes of 'a.txt' are missing; write or fetch"
    )


@pytest.mark.parametrize(
    "records, what",
    [
        (record(b"size", b"-5"), "whose size is no number: b'-5'"),
        (record(b"size", b"9" * 30), "whose size is no number"),
        (record(b"size", b"9" * 19), "is cut short: 9,999"),
        (record(b"GNU.sparse.major", b"1"), "a sparse file"),
        (b"13 path=abc\n", "a damaged pax header at byte 512"),
        (b"9999 path=a\n", "a damaged pax header"),
        (b"0 path=a\n", "a damaged pax header"),
        (record(b"comment", b"x") + b"0 path=a\n", "a damaged pax header"),
        (b"path=a\n", "a damaged pax header"),
        (b"8 path=\n"[:7] + b"x", "a damaged pax header"),
        (b"9" * 4000 + b" path=a\n", "a damaged pax header"),
    ],
)
def test_pax_headers_that_are_none(archive, records, what):
    refused(archive(pax(records), header(), END), what)


@pytest.mark.parametrize("key", [b"path", b"size"])
def test_one_name_for_all_is_refused(archive, key):
    refused(archive(pax(record(key, b"1"), kind=b"g"), header(), END), "gives all members one name or size")


def test_checksums(archive):
    refused(archive(header(off=1), END), "is no tar archive, as the checksum of its first header is wrong")
    refused(archive(header(), header(off=1), END), "is damaged: the checksum of the header at byte 512 is wrong")
    refused(archive(header(checksum=b"9" * 8), END), "is no tar archive")
    block = bytearray(header(b"a.txt"))
    for position in range(512):
        if not 148 <= position < 156:
            block[position] ^= 1
            refused(archive(bytes(block), END), "is no tar archive|no number")
            block[position] ^= 1
    members(archive(bytes(block), END))


def test_signed_checksums(archive):
    block = header(b"\xff\xfe.txt")
    signed = sum(byte - 256 if byte > 127 else byte for byte in block[:148] + block[156:]) + 8 * 32
    found, *_ = members(archive(block[:148] + b"%06o\0 " % signed + block[156:], END))
    assert found[0][0] == "\\xff\\xfe.txt"


def test_other_files(archive):
    refused(archive(), "is empty")
    refused(archive(b"<html>not found</html>"), "is no tar archive")
    refused(archive(b"<html>" * 1000), "is no tar archive")
    for magic, name in (
        (b"\x1f\x8b", "gzip"),
        (b"BZh9", "bzip2"),
        (b"\xfd7zXZ\0", "xz"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
    ):
        refused(archive(magic + b"x" * 2000), rf"is compressed \({name}\); decompress it")


def test_compressed_archives_that_are_short(tmp_path):
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    refused(path, "is compressed")


def test_more_members_than_anyone_has(archive, monkeypatch):
    monkeypatch.setattr(tar, "MOST_MEMBERS", 3)
    assert len(members(archive(*[header()] * 3, END))[0]) == 3
    refused(archive(*[header()] * 4, END), "has more than 3 members")
    refused(archive(*[pax()] * 4, END), "has more than 3 members")


def test_archives_that_end_anywhere(tmp_path, archive):
    first, second = header(b"a.txt", 700) + padded(b"1" * 700), header(b"b.txt", 10) + padded(b"2" * 10)
    whole = first + pax(record(b"path", b"c.txt")) + second + END
    contents_of_last = len(first) + 1024 + 512
    for size in range(1, len(whole) + 1, 3):
        path = archive(whole[:size])
        if size >= contents_of_last + 10:  # the last member is whole, with or without what pads it
            found, _, ended = members(path)
            assert [name for name, *_ in found] == ["a.txt", "c.txt"]
            assert ended == (size >= len(whole) - 512)
        elif len(first) - (512 - 188) <= size <= len(first):
            found, _, ended = members(path)
            assert [name for name, *_ in found] == ["a.txt"] and not ended
        else:
            refused(path, "is cut short|is no tar archive")


def test_more_after_the_end_is_refused(archive):
    one = header(b"a.txt", 1) + padded(b"1")
    members(archive(one, END, bytes(10240)))
    refused(archive(one, END, one, END), "goes on after its end at byte 1,024, which would be left out")
    refused(archive(one, bytes(512), one, END), "goes on after its end")
    refused(archive(one, END, bytes(3 << 20), b"x"), "goes on after its end")


def test_noise_is_never_taken(tmp_path):
    """Damage anywhere in the headers is refused or leaves members inside the file."""
    source = random.Random(0)
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for number in range(5):
            entry = tarfile.TarInfo("ü" * 80 + f"{number}.txt")
            entry.size = 100
            archive.addfile(entry, io.BytesIO(bytes(100)))
    clean = path.read_bytes()
    for _ in range(500):
        damaged = bytearray(clean)
        for _ in range(source.randint(1, 4)):
            damaged[source.randrange(len(clean))] = source.randrange(256)
        path.write_bytes(damaged[: source.choice([len(clean), source.randrange(len(clean))])])
        try:
            found, contents, _ = members(path)
        except UserError:
            continue
        assert all(len(content) == size for (_, _, size), content in zip(found, contents, strict=True))
