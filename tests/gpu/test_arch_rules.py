"""Which code runs on which GPU: the rules, each with the case that breaks it."""

import pytest

from kit.gpu.compat import codes, cover

OFFICIAL = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")


@pytest.mark.parametrize(
    ("arch_list", "capability", "how"),
    [
        (OFFICIAL, (8, 9), "native"),
        (OFFICIAL, (10, 3), "native"),
        (OFFICIAL, (12, 1), "native"),
        (OFFICIAL, (7, 0), "none"),
        (OFFICIAL, (6, 1), "none"),
        (("sm_60",), (6, 1), "native"),
        (("sm_86",), (8, 0), "none"),
        (("sm_90",), (10, 0), "none"),
        (("sm_80", "sm_90"), (8, 7), "none"),
        (("sm_60",), (6, 2), "none"),
        (("sm_87",), (8, 6), "none"),
        (("sm_101",), (11, 0), "native"),
        (("sm_90a",), (9, 0), "native"),
        (("sm_100a",), (10, 3), "none"),
        (("sm_100f",), (10, 3), "native"),
        (("sm_120f",), (12, 1), "native"),
        (("sm_120a",), (12, 1), "none"),
        (("sm_80", "compute_90"), (12, 0), "ptx"),
        (("sm_90", "compute_37"), (9, 0), "native"),
        (("compute_90a",), (10, 0), "none"),
        (("compute_120",), (9, 0), "none"),
        ((), (9, 0), "none"),
        (("ve",), (9, 0), "none"),
    ],
)
def test_code_runs_by_generation_and_never_across_it(arch_list, capability, how):
    assert cover(arch_list, capability).how == how


def test_desktop_code_runs_on_orin_only_from_cuda_13_2_on():
    assert cover(("sm_80",), (8, 7), cuda=(13, 0)).how == "none"
    assert cover(("sm_80",), (8, 7), cuda=(13, 2)).how == "native"


def test_exact_code_is_told_from_code_of_a_lower_minor_version():
    assert cover(("sm_80", "sm_86"), (8, 6)).is_exact
    found = cover(("sm_80", "sm_86"), (8, 9))
    assert (found.code, found.is_exact) == ("sm_86", False)


def test_the_reason_says_what_the_build_holds():
    assert "sm_75 sm_80" in cover(OFFICIAL, (6, 1)).reason
    assert "Jetson" in cover(("sm_80",), (8, 7)).reason


@pytest.mark.parametrize(
    ("text", "name"),
    [("sm_90a", "sm_90a"), ("compute_120", "compute_120"), ("sm_1", None), ("x", None)],
)
def test_an_entry_is_an_architecture_or_nothing(text, name):
    assert [str(code) for code in codes([text])] == ([name] if name else [])
