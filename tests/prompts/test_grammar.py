"""What a template stands for, and what is said of one that stands for nothing."""

import itertools

import pytest

from workbench.errors import UserError
from workbench.prompts.grammar import MOST_CHARACTERS, MOST_PROMPTS, expand


@pytest.mark.parametrize(
    "template, prompts",
    [
        ("a photo of a {}.", ["a photo of a {}."]),
        ("{}", ["{}"]),
        ("(a|the) {}", ["a {}", "the {}"]),
        ("a (|large ){}", ["a {}", "a large {}"]),
        ("a {}(.|!|)", ["a {}.", "a {}!", "a {}"]),
        ("(a|b) (c|d) {}", ["a c {}", "a d {}", "b c {}", "b d {}"]),  # leftmost slowest
        ("({}|a {} here)", ["{}", "a {} here"]),
        ("((a|b) c|d) {}", ["a c {}", "b c {}", "d {}"]),
        ("x(|a (|b |c )){}", ["x{}", "xa {}", "xa b {}", "xa c {}"]),
        (r"{} \(a bird\)", ["{} (a bird)"]),
        (r"(\(|\)|\||\\) {}", ["( {}", ") {}", "| {}", "\\ {}"]),
        (r"\{{}\} and \{x\}", ["{{}} and {x}"]),
        ("ein Foto, größer: {} – 写真", ["ein Foto, größer: {} – 写真"]),
        ("two\nlines {}", ["two\nlines {}"]),
    ],
)
def test_known_answers(template, prompts):
    assert expand(template) == prompts


def test_many_brackets_are_the_product():
    template = "".join(f"({a}|{b}|)" for a, b in ("ab", "cd", "ef", "gh")) + "{}"
    assert expand(template) == [
        "".join(parts) + "{}"
        for parts in itertools.product(*(("a", "b", ""), ("c", "d", "")), *(("e", "f", ""), ("g", "h", "")))
    ]


@pytest.mark.parametrize(
    "template, said",
    [
        ("a photo", "'a photo' has no {}; it needs one"),
        ("", "'' has no {}"),
        ("{} and {}", "has 2 {}; it needs one"),
        ("(a {}|b)", "'(a {}|b)', which becomes 'b', has no {}"),
        ("({}|a {}) {}", "which becomes '{} {}', has 2 {}"),
        (r"\{\}", "has no {}"),
        (r"\{\} and {}", r"has \{\} beside {}"),
        ("(a|b {}", r"at character 1 a ( that is not closed; write \( for"),
        ("a ((a|b) {}", "at character 3 a ( that is not closed"),
        ("a|b) {}", r"at character 2 a | that no ( comes before; write \| for"),
        ("a b) {}", r"at character 4 a ) that no ( comes before; write \) for"),
        ("a|b {}", "at character 2 a | that no ( comes before"),
        ("{} (a bird)", r"at character 4 brackets without |; write \( and \) for"),
        ("() {}", "brackets without |"),
        ("a {c}", r"at character 3 a lone {; write \{ for"),
        ("a }{} ", r"at character 3 a lone }; write \} for"),
        ("a {} \\", "at character 6 a lone \\; write \\\\ for"),
        (r"a \x {}", "at character 3 a lone \\"),
        ("(a|b)" * 20 + "{}", f"stands for more than {MOST_PROMPTS} prompts"),
        ("(0|1|2|3|4|5|6|7|8|9)" * 4 + "(a|b){}", f"stands for more than {MOST_PROMPTS} prompts"),
        ("x" * MOST_CHARACTERS + "{}", f"at most {MOST_CHARACTERS} characters"),
        ("(" * MOST_CHARACTERS, "not closed"),
    ],
)
def test_what_cannot_be_read(template, said):
    with pytest.raises(UserError) as raised:
        expand(template)
    assert said in str(raised.value)
    assert len(str(raised.value)) < 300


def test_the_limits_themselves_are_allowed():
    assert len(expand("(" + "|" * (MOST_CHARACTERS - 4) + "){}")) == MOST_CHARACTERS - 3
    assert len(expand("(0|1|2|3|4|5|6|7|8|9)" * 4 + "{}")) == MOST_PROMPTS
