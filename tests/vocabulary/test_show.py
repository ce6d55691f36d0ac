"""How values look: everything escaped, nothing red without its remedy."""

from kit.errors import UsageError
from kit.records import Check, Outcome
from kit.show import Table, check_lines, plain

HOSTILE = '<script>alert(1)</script>\x1b[31m\u202e"&'


def test_plain_text_is_left_alone():
    assert plain("Größe 4 × 64, µs\n") == "Größe 4 × 64, µs\n"


def test_a_red_check_says_what_was_expected_and_what_to_do():
    text = "\n".join(check_lines([Check("native.x", Outcome.FAIL, "found it", "wanted that", "do this")]))
    assert "expected: wanted that" in text and "to do: do this" in text


def test_a_green_check_takes_one_line():
    assert len(check_lines([Check("native.x", Outcome.PASS, "fine", "fine")])) == 1


def test_a_table_escapes_its_cells_and_aligns_its_numbers():
    table = Table(("name", "n"), ((HOSTILE, 5), ("b", 12)))
    assert "<script" not in table._repr_html_()
    lines = str(Table(("name", "n"), (("a", 5), ("b", 12)))).splitlines()
    assert lines == ["name   n", "a      5", "b     12"]


def test_an_error_of_a_person_shows_three_parts_and_no_traceback_in_a_notebook():
    shown = "\n".join(UsageError("found it", expected="wanted", todo="do")._render_traceback_())
    assert shown == "UsageError\nfound it\nExpected: wanted\nTo do: do"
