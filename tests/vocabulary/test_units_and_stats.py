"""Text for quantities, and the spread of values."""

import pytest

from kit.units import memory, number, percent, quantity, seconds, spread


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (quantity(50.8e12, "FLOP/s"), "50.8 TFLOP/s"),
        (quantity(None, "FLOP/s"), "unknown"),
        (number(1234567.8), "1,234,568"),
        (number(0.012345, 2), "0.012"),
        (number(None), "unknown"),
        (number(0), "0"),
        (seconds(0.0124), "12.4 ms"),
        (seconds(3.3e-6), "3.30 µs"),
        (seconds(125), "2 min 05 s"),
        (memory(1024**3), "1.00 GiB"),
        (memory(10 * 1024**2), "10.0 MiB"),
        (memory(None), "unknown"),
        (percent(0.4567), "46 %"),
        (percent(None), "unknown"),
    ],
)
def test_quantities_read_as_expected(text, expected):
    assert text == expected


def test_the_spread_of_nothing_is_unknown():
    assert spread([]) is None


def test_one_value_has_no_spread():
    found = spread([2.0])
    assert (found.n, found.median, found.iqr) == (1, 2.0, 0.0)


def test_quartiles_are_those_of_the_inclusive_method():
    found = spread([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (found.q1, found.median, found.q3) == (2.0, 3.0, 4.0)
