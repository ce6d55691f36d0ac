"""Which torch is installed where, and what a later install did to it."""

from pathlib import Path

from kit.gpu.installs import environments, installs, read_install, table


def site(root, *, version="2.9.1+cu128", cuda="'12.8'", metadata="2.9.1", extra=(), url=None):
    folder = root / "lib" / "python3.12" / "site-packages"
    info = folder / f"torch-{metadata}.dist-info"
    (folder / "torch").mkdir(parents=True)
    info.mkdir()
    text = (
        f"from typing import Optional\n__version__ = '{version}'\ncuda: Optional[str] = {cuda}\nhip: "
        f"Optional[str] = None\n"
    )
    (folder / "torch" / "version.py").write_text(text, encoding="utf-8")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {metadata}\n", encoding="utf-8")
    (info / "INSTALLER").write_text("pip\n", encoding="utf-8")
    if url:
        (info / "direct_url.json").write_text(f'{{"url": "{url}"}}', encoding="utf-8")
    for name in extra:
        (folder / f"{name}.dist-info").mkdir()
    return folder


def test_a_cuda_build_is_told_with_its_cuda(tmp_path):
    found = read_install(site(tmp_path))
    assert (found.version, found.cuda, found.source, found.findings) == ("2.9.1+cu128", "12.8", "pip", ())


def test_a_cuda_build_replaced_by_a_cpu_one_is_told(tmp_path):
    found = read_install(site(tmp_path, version="2.9.1+cpu", cuda="None", extra=["nvidia_cuda_runtime_cu12-12.8.90"]))
    assert found.cuda is None and "replaced a CUDA build" in found.findings[0]


def test_two_versions_mixed_in_one_folder_are_told(tmp_path):
    assert "two are mixed" in read_install(site(tmp_path, metadata="2.13.0")).findings[0]


def test_the_url_that_pip_noted_is_the_source(tmp_path):
    assert read_install(site(tmp_path, url="https://example.org/torch.whl")).source == "https://example.org/torch.whl"


def test_nothing_of_an_environment_is_run(tmp_path):
    folder = site(tmp_path)
    (folder / "torch" / "version.py").write_text("raise SystemExit(7)\n__version__ = '1.0'\n", encoding="utf-8")
    assert read_install(folder).version == "1.0"


def test_a_broken_note_of_pip_is_no_error(tmp_path):
    folder = site(tmp_path)
    (folder / "torch-2.9.1.dist-info" / "direct_url.json").write_text("[1]", encoding="utf-8")
    assert read_install(folder).source == "pip"


def test_several_environments_stand_in_one_table(tmp_path):
    site(tmp_path / "a")
    site(tmp_path / "b", version="2.9.1+cpu", cuda="None")
    (tmp_path / "no-environment").mkdir()
    text = table(installs(environments([tmp_path, Path("/nowhere")])))
    assert [line.split()[0] for line in text.splitlines()] == ["2.9.1+cu128", "2.9.1+cpu"]


def test_a_folder_without_torch_has_none(tmp_path):
    assert read_install(tmp_path) is None
