"""GPU names, families and datasheets."""

import pytest

from kit.gpu import compat, specs


@pytest.mark.parametrize(
    ("name", "capability"),
    [
        ("NVIDIA GeForce RTX 5090", (12, 0)),
        ("NVIDIA GeForce RTX 5090 Laptop GPU", (12, 0)),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", (12, 0)),
        ("NVIDIA GB10", (12, 1)),
        ("NVIDIA B200", (10, 0)),
        ("NVIDIA B300 SXM6 AC", (10, 3)),
        ("NVIDIA GB200", (10, 0)),
        ("NVIDIA H100 80GB HBM3", (9, 0)),
        ("NVIDIA GH200 480GB", (9, 0)),
        ("NVIDIA H20", (9, 0)),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", (9, 0)),
        ("NVIDIA RTX 6000 Ada Generation", (8, 9)),
        ("NVIDIA L40S", (8, 9)),
        ("NVIDIA GeForce RTX 4060 Ti", (8, 9)),
        ("NVIDIA RTX A6000", (8, 6)),
        ("NVIDIA A10G", (8, 6)),
        ("NVIDIA GeForce RTX 3050", (8, 6)),
        ("NVIDIA A100-SXM4-80GB", (8, 0)),
        ("NVIDIA A30", (8, 0)),
        ("Orin", (8, 7)),
        ("NVIDIA Thor", (11, 0)),
        ("Tesla T4", (7, 5)),
        ("Quadro RTX 5000", (7, 5)),
        ("NVIDIA GeForce GTX 1660 Ti", (7, 5)),
        ("TITAN RTX", (7, 5)),
        ("Tesla V100-SXM2-16GB", (7, 0)),
        ("NVIDIA TITAN V", (7, 0)),
        ("Tesla P100-PCIE-16GB", (6, 0)),
        ("GeForce GTX 1080 Ti", (6, 1)),
        ("TITAN Xp", (6, 1)),
        ("Quadro P2000", (6, 1)),
        ("NVIDIA GeForce MX330", (6, 1)),
        ("GTX 1050Ti", (6, 1)),
        ("GeForce GTX TITAN X", (5, 2)),
        ("Tesla M60", (5, 2)),
        ("GeForce GTX 750 Ti", (5, 0)),
        ("Tesla K80", (3, 7)),
        ("Tesla K40m", (3, 5)),
        ("GeForce GTX 660 Ti", (3, 0)),
        ("GeForce GTX 105...", (6, 1)),
        # several chips were sold under the name, or nobody knows it
        ("GeForce GT 630", None),
        ("NVIDIA RTX 5000", None),
        ("NVIDIA GeForce", None),
        ("Radeon RX 7900", None),
        ("", None),
        ("NVIDIA GeForce RTX 6090", None),
        (None, None),
    ],
)
def test_a_name_gives_its_capability_or_none(name, capability):
    found = specs.possible_capabilities(name)
    assert (found[0] if len(found) == 1 else None) == capability


def test_a_name_of_several_chips_gives_them_all():
    assert specs.possible_capabilities("GeForce GT 630") == ((2, 1), (3, 0), (3, 5))


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA L40S-48Q",
        "NVIDIA GeForce RTX 5090 D",
        "NVIDIA GeForce RTX 6090",
        None,
    ],
)
def test_a_laptop_a_slice_a_vgpu_and_an_unknown_card_have_no_peak(name):
    assert specs.peak_flop_per_s(name, "bf16") is None
    assert specs.bandwidth_bytes_per_s(name) is None


@pytest.mark.parametrize(
    ("name", "bf16"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756.5e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce RTX 5090", 209.5e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA L4", 121e12),
    ],
)
def test_peaks_are_the_dense_figures(name, bf16):
    assert specs.peak_flop_per_s(name, "bf16") == pytest.approx(bf16)


def test_a_card_without_bf16_has_no_bf16_peak():
    assert specs.peak_flop_per_s("Tesla T4", "bf16") is None
    assert specs.peak_flop_per_s("Tesla T4", "fp16") == 65e12


def test_every_card_is_plausible_and_names_its_document():
    for name, card in [(name, row) for row in compat.load("gpus")["cards"] for name in row["names"]]:
        peaks = {dtype: specs.peak_flop_per_s(name, dtype) for dtype in ("bf16", "fp16", "tf32", "fp32", "fp8")}
        assert len(specs.possible_capabilities(name)) == 1 and card["source"], name
        assert all(1e12 <= peak <= 1e16 for peak in peaks.values() if peak), name
        assert 1e11 <= (specs.bandwidth_bytes_per_s(name) or 1e12) <= 2e13, name
        # tensor cores: 16 bit is at least 1.9 times TF32, 8 bit twice 16 bit
        if peaks["tf32"]:
            assert peaks["bf16"] / peaks["tf32"] == pytest.approx(2, rel=0.1), name
        if peaks["fp8"]:
            assert peaks["fp8"] / peaks["bf16"] == pytest.approx(2, rel=0.02), name


def test_old_gpus_know_their_last_driver_branch():
    assert specs.still_driven((6, 1), "580.95.05") is True
    assert specs.still_driven((6, 1), "590.44.01") is False
    assert specs.still_driven((3, 5), "535.129.03") is False
    assert specs.still_driven((8, 6), "615.71.09") is True
    assert specs.still_driven((8, 6), None) is None
