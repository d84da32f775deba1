import hashlib
import html
import pickle
import random
import subprocess
import sys
from functools import cache
from pathlib import Path

import emoji
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer

from workbench import tokenizer
from workbench.errors import UserError
from workbench.tokenizer import EOT, SOT, Tokenizer, count_truncated, tokenize, trim

# First and last letters of scripts that the emoji names are not written in, and of awkward blocks.
BLOCKS = {
    "latin-1": (0xA0, 0xFF),
    "latin extended": (0x100, 0x24F),
    "phonetic": (0x250, 0x2AF),
    "combining": (0x300, 0x36F),
    "greek": (0x370, 0x3FF),
    "armenian": (0x530, 0x58F),
    "hebrew": (0x590, 0x5FF),
    "devanagari": (0x900, 0x97F),
    "tamil": (0xB80, 0xBFF),
    "thai": (0xE00, 0xE7F),
    "tibetan": (0xF00, 0xFFF),
    "georgian": (0x10A0, 0x10FF),
    "ethiopic": (0x1200, 0x137F),
    "cherokee": (0x13A0, 0x13FF),
    "khmer": (0x1780, 0x17FF),
    "vietnamese": (0x1E00, 0x1EFF),
    "punctuation and spaces": (0x2000, 0x206F),
    "super- and subscripts": (0x2070, 0x209F),
    "roman numerals": (0x2150, 0x218F),
    "enclosed": (0x2460, 0x24FF),
    "kana": (0x3000, 0x30FF),
    "compatibility": (0xF900, 0xFAFF),
    "ligatures, Arabic forms": (0xFB00, 0xFDFF),
    "half width": (0xFF00, 0xFFEF),
    "gothic": (0x10330, 0x1034F),
    "mathematical letters": (0x1D400, 0x1D7FF),
    "emoji": (0x1F300, 0x1FAFF),
    "rare CJK": (0x20000, 0x2007F),
    "control": (0x00, 0x1F),
    "C1 control": (0x7F, 0x9F),
    "private use": (0xE000, 0xE01F),
}
AWKWARD = [
    "",
    " ",
    "\n\t\r\x0b\x0c",
    "\x1c\x1d\x1e\x1f\x85",
    "a\x00b\x07c\x1b[31md\x7fe",
    "a\u00a0b\u2003c\u3000d\u200be\u2028f\u2029g\ufeffh",
    "İstanbul'un ışığı İI ıi",
    "ſhip'ſ longſ 'ſ IT'S I'LL WE'RE you'Ve",
    "ß ẞ ŉ ǰ ΐ ﬁ ﬀ ﬆ Ǆ ǅ K Å",
    "ΌΔΥΣΣΕΎΣ Σ ς ΣΑΣ",
    "שלום עולם \u202bright\u202c to left \u200f!",
    "مرحبا بالعالم ١٢٣ ۴۵۶",
    "你好，世界！ 한국어 日本語テキスト ﾊﾝｶｸ",
    "𝕬𝖇𝖈 𠜎𠜱 👩🏽‍🚀👨‍👩‍👧‍👦 🏴󠁧󠁢󠁳󠁣󠁴󠁿 🇩🇪",
    "e\u0301 n\u0303 \u0301",
    "½ ² Ⅷ ① ٣ x2y3 1234567890",
    "“quotes” ‘single’ «guillemets» – — …",
    "&amp;amp;lt;b&amp;amp;gt; &amp;quot; &#233; &#xe9; &amp;#39; &notit; &nbsp;&copy &",
    "don't can't we'll I'd they've he's I'm we're o'clock ''s",
    "schÃ¶n â€œquotedâ€\x9d l’Ã©tÃ© Ã\xa0 ðŸ˜€",
    "\ud83d\ude00 lone \ud800 surrogate",
    "!!! ... ??? --- *** ~~~ @#$%^&*()_+{}|:\"<>?[]\\;',./`",
    "</w> <w> a</w>b <|pad|> <|",
    "HELLO World cAmElCaSe",
    "http://example.com/a?b=c&d=e#f user@example.com #hash @name",
    "word " * 2000,
    "x" * 10_000,
    "é" * 10_000,
    "字" * 10_000,
    "!" * 10_000,
    "1" * 10_000,
]
CHUNKS = 8


@cache
def real_strings():
    """Return the emoji's names in all languages, those names as mojibake and as entities, and words of many blocks."""
    for language in emoji.LANGUAGES:
        emoji.config.load_language(language)
    names = [about[lang] for about in emoji.EMOJI_DATA.values() for lang in emoji.LANGUAGES if lang in about]
    names = list(dict.fromkeys(name.strip(":").replace("_", " ") for name in names))
    foreign = [name for name in names if not name.isascii()]
    latin = [name.encode().decode("latin-1") for name in foreign[::2]]
    windows = [name.encode().decode("cp1252", errors="ignore") for name in foreign[1::2]]
    escaped = ["".join(f"&#{ord(c)};" for c in name) for name in foreign[::40]]
    escaped += [html.escape(f"<{name}> & 'more'") for name in names[::40]]
    escaped += [html.escape(html.escape(f'"{name}" & <more>')) for name in names[::40]]
    rng = random.Random(0)
    words = []
    for first, last in BLOCKS.values():
        for _ in range(250):
            length = rng.randint(1, 12)
            letters = [
                chr(rng.randint(first, last)) if rng.random() < 0.8 else rng.choice(" aZ1.'") for _ in range(length)
            ]
            words.append("".join(letters))
    emojis = [f"A {character} and {character * 3}!" for character in list(emoji.EMOJI_DATA)[::2]]
    return list(dict.fromkeys([*names, *latin, *windows, *escaped, *words, *emojis, *AWKWARD]))


@cache
def ours():
    return Tokenizer()


@cache
def theirs():
    return SimpleTokenizer()


def test_vocabulary_is_openais():
    digest = hashlib.sha256(tokenizer.VOCABULARY.read_bytes()).hexdigest()
    assert digest == tokenizer.content_hash() == "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
    assert digest in Path(tokenizer.__file__).with_name("bpe_simple_vocab_16e6.LICENSE").read_text()


def test_there_are_enough_real_strings():
    texts = real_strings()
    assert len(texts) >= 100_000
    assert not [text for text in texts if "<start_of_text>" in text or "<|startoftext|>" in text]


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_ids_are_open_clips(chunk):
    mine, other = ours().encode, theirs().encode
    different = [text for text in real_strings()[chunk::CHUNKS] if mine(text) != other(text)]
    assert not different, [ascii(text[:80]) for text in different[:5]]


def test_rows_are_open_clips():
    texts = [text for text in AWKWARD if len(text) < 200]
    rows = tokenize(texts, truncate=True)
    assert rows.dtype == torch.int32
    assert torch.equal(rows.long(), theirs()(texts))
    assert torch.equal(tokenize("a cat", 12).long(), theirs()("a cat", 12))


def test_special_tokens_are_spelt_as_openais():
    assert ours().encode("<|startoftext|>a<|ENDOFTEXT|>") == [SOT, *ours().encode("a"), EOT]
    assert (SOT, EOT) == (ours().sot, ours().eot) == (49406, 49407)
    assert max(ours().encode("<start_of_text>")) < SOT


def random_ascii(rng):
    pieces = ["&", "&amp;", "&lt", ";", "\x1b[0m", "'s", "'LL", "<|endoftext|>", " ", "\r\n", "The ", "42"]
    return "".join(
        rng.choice(pieces) if rng.random() < 0.2 else chr(rng.randrange(128)) for _ in range(rng.randint(0, 40))
    )


def test_skipping_the_cleaning_changes_nothing(monkeypatch):
    rng = random.Random(1)
    texts = [random_ascii(rng) for _ in range(4000)]
    printing = [text for text in ("".join(c for c in text if c.isprintable() and c != "&") for text in texts) if text]
    texts += printing
    assert sum(map(tokenizer._plain, texts)) >= len(printing) > 3800
    fast = [ours().encode(text) for text in texts]
    monkeypatch.setattr(tokenizer, "_plain", lambda text: False)
    slow = Tokenizer()
    different = [text for text, ids in zip(texts, fast, strict=True) if slow.encode(text) != ids]
    assert not different, [ascii(text) for text in different[:5]]


def test_the_table_of_words_is_bounded(monkeypatch):
    monkeypatch.setattr(tokenizer, "_CACHED_WORDS", 4)
    small = Tokenizer()
    texts = ["one two three four five six", "six five four three two one", "seven eight nine"]
    assert [small.encode(text) for text in texts] == [ours().encode(text) for text in texts]
    assert len(small._words) <= 4


def test_a_text_that_is_too_long_is_named():
    long = "a photo of " + "very " * 100 + "big dog"
    with pytest.raises(UserError) as raised:
        tokenize(["short", long])
    message = str(raised.value)
    assert "Text 1 has 107 tokens" in message
    assert "context length of 77" in message
    assert "a photo of very very" in message
    assert len(message) < 250
    with pytest.raises(UserError, match="Text 0 has 5 tokens, more than the context length of 4: 'one two three'"):
        tokenize("one two three", context_length=4)


@pytest.mark.parametrize("context_length", [2, 5, 77])
def test_truncation_keeps_the_end(context_length):
    text = "dog " * 200
    row = tokenize(text, context_length, truncate=True)[0]
    dog = ours().encode("dog")
    assert row.tolist() == [SOT, *dog * (context_length - 2), EOT]
    fits = tokenize("dog " * (context_length - 2), context_length)[0]
    assert torch.equal(row, fits), "a text of exactly the length is not too long"


def test_counting_what_would_be_cut():
    assert count_truncated(["dog", "dog " * 75, "dog " * 76, "dog " * 200]) == 2
    assert count_truncated(["dog dog", "dog"], context_length=3) == 1
    assert count_truncated([]) == 0


def test_trimming_cuts_behind_the_longest_text():
    tokens = tokenize(["", "a small dog", "cat"])
    trimmed = trim(tokens)
    assert trimmed.shape == (3, 5)
    assert torch.equal(trimmed, tokens[:, :5])
    assert not tokens[:, 5:].any()
    full = tokenize(["cat", "dog " * 75])
    assert torch.equal(trim(full), full)


def test_decoding_returns_the_cleaned_text():
    texts = ["a photo of a cat!", "don't 42", "naïve schön 你好 😀", "!", "wow !!", ""]
    for text in texts:
        expected = text.replace("42", "4 2").replace("don't", "don 't").replace("cat!", "cat !")
        assert ours().decode(ours().encode(text)) == expected
        assert ours().decode(tokenize(text)[0]) == expected, "start, end and padding are left out"
    assert ours().decode(ours().encode("𠜎")[:2]) == "\ufffd", "half a character"


def test_decoding_and_encoding_again_gives_the_same_ids():
    names = real_strings()[:50_000:29]
    different = [text for text in names if ours().encode(ours().decode(ours().encode(text))) != ours().encode(text)]
    assert not different


def test_survives_pickling():
    used = Tokenizer()
    used.encode("warm dog")
    copy = pickle.loads(pickle.dumps(used))
    for text in ("warm dog", "naïve 😀 don't", "new words"):
        assert copy.encode(text) == used.encode(text)


def test_importing_reads_nothing_heavy():
    code = (
        "import sys, torch, numpy; before = set(sys.modules); import workbench.tokenizer as t\n"
        "assert not {'ftfy', 'regex'} & (set(sys.modules) - before)\n"
        "assert t.tokenizer.cache_info().currsize == 0, 'the vocabulary is read on first use'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
