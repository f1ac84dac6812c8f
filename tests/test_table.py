"""Tables: nothing in a cell is obeyed, nothing is left out."""

import io
import sys

import pytest

from batchsweep.table import Column, table_text, visible

COLUMNS = (Column("model"), Column("note", prose=True), Column("arms", right=True))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("[bold red]m[/bold red]", "[bold red]m[/bold red]"),
        ("m[/x]", "m[/x]"),
        (":smile:", ":smile:"),
        ("a\nb", r"a\nb"),
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("a\rb\tc", r"a\rb\tc"),
        ("a\x9b2Jb", r"a\x9b2Jb"),
        ("a\u202eb", r"a\u202eb"),
        ("a\udcffb", r"a\udcffb"),
        ("größe 模型", "größe 模型"),
    ],
)
def test_a_name_is_shown_as_it_is_and_never_obeyed(name, shown):
    assert visible(name) == shown
    text = table_text(COLUMNS, [(name, name, "1")])
    assert text.splitlines()[1].split() == [*shown.split(), *shown.split(), "1"]
    assert text.count("\n") == 2 and "\x1b" not in text


def test_without_a_terminal_a_line_is_as_long_as_it_takes():
    name, note = "owner/" + "m" * 300, "so it is " * 40
    assert name in table_text(COLUMNS, [(name, note, "1")])
    assert table_text(COLUMNS, [(name, note, "1")]).count("\n") == 2


def test_numbers_stand_at_the_right():
    text = table_text(COLUMNS, [("a", "", "7"), ("b", "", "1,000")], title="two [models]")
    assert [line[-6:] for line in text.splitlines()] == ["odels]", "  arms", "     7", " 1,000"]


def test_on_a_narrow_terminal_names_that_differ_at_their_ends_still_do(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", "80")
    numbers = [Column(f"pulls {n}", right=True) for n in range(7)]
    names = ["EleutherAI/pythia-14m", "EleutherAI/pythia-70m"]
    text = table_text([Column("model"), *numbers], [[n, *["12,345"] * 7] for n in names])
    assert all(len(line) <= 80 for line in text.splitlines())
    first = [line.split()[0] for line in text.splitlines()[1:]]
    assert first == ["EleutherAI/", "pythia-14m", "EleutherAI/", "pythia-70m"]


def test_prose_goes_on_before_a_name_does():
    rows = [("EleutherAI/pythia-14m", "word " * 30, "1")]
    text = table_text(COLUMNS, rows, width=80)
    assert "EleutherAI/pythia-14m  word" in text
    assert text.split().count("word") == 30
