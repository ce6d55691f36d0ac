"""reports/index.html: every bundle with whether it holds, figures that compare, and each machine over time."""

import html.parser
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "evidence"))

from kit.evidence import index
from kit.evidence.index import CACHE, Listed, overview, write_index
from kit.records import Outcome

POINT = "4 × 64, bfloat16, eager"


class Page(html.parser.HTMLParser):
    """Links, cells and tags of a page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.cells, self.tags, self._is_cell = [], [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self._is_cell = tag == "td" or (self._is_cell and tag in ("a", "span"))
        self.links += [value for name, value in attributes if name == "href" and tag == "a"]

    def handle_data(self, data):
        if self._is_cell and data.strip():
            self.cells.append(data.strip())


def one(hour=12, rate=80000.0, point=POINT, **more):
    told = {
        "key": "k", "holds": Outcome.PASS, "verdict": Outcome.PASS, "gpu": "2 × NVIDIA H100", "torch": "2.11.0+cu130",
        "ended_utc": f"2026-11-01T{hour:02d}:00:00.000+00:00", "machine": "2 × NVIDIA H100 gpu-1, gpu-2",
        "tokens_per_s": {point: rate}, "limit_share": 0.0948, "scaling": "98.9 % on 2 GPUs",
    }  # fmt: skip
    return Listed(**{**told, **more})


def test_a_row_says_when_where_how_fast_and_whether_it_holds():
    page = Page(overview({"run-a": one()}))
    assert page.cells == [
        "PASS", "yes", "run-a", "2026-11-01 12:00", "2 × NVIDIA H100", "2.11.0+cu130", "80,000",
        f"80,000 at {POINT}", "9.5 %", "98.9 % on 2 GPUs",
    ]  # fmt: skip
    assert page.links == ["run-a/index.html"]


def test_one_column_compares_the_same_point_and_shows_nothing_for_others():
    text = overview({"a": one(), "b": one(11), "c": one(10, 9e5, "64 × 1024, bfloat16, graphed")})
    cells = Page(text).cells
    assert f"tokens/s at {POINT}" in text and cells[26] == "–" and cells[27].startswith("900,000 at 64 × 1024")


def test_the_newest_report_comes_first():
    page = Page(overview({"old": one(1), "new": one(9), "mid": one(5)}))
    assert page.links == [f"{name}/index.html" for name in ("new", "mid", "old")]


def test_a_machine_with_several_reports_has_its_trend_oldest_first_and_no_other():
    text = overview({"a": one(9, 90000.0), "b": one(1, 70000.0), "c": one(2, machine="another")})
    assert "oldest first: 70,000, 90,000." in text and Page(text).tags.count("svg") == 1


def test_the_page_holds_no_script_and_asks_for_nothing():
    text = overview({"<script>alert(1)</script>": one(torch="<img src=x>", machine="<b>"), "b": one(1, machine="<b>")})
    assert not {"script", "img", "iframe"} & set(Page(text).tags)
    assert "http" not in text.replace("http-equiv", "")


def test_bundles_are_verified_once_and_a_bad_neighbour_harms_nobody(tmp_path, monkeypatch):
    import evidence_sample as sample

    asked = []
    monkeypatch.setattr(index, "load", lambda path, load=index.load: asked.append(path.name) or load(path))
    sample.make(tmp_path, run_id="20261101T120000Z-cuda-good")
    edited = sample.make(tmp_path, state="FAILED", run_id="20261101T120000Z-cuda-edit")
    data = (edited / "evidence.json").read_text(encoding="utf-8")
    (edited / "evidence.json").write_text(data.replace('"FAIL"', '"PASS"'), encoding="utf-8")
    for name, text in (("broken", "{"), ("strange", "[]")):
        (tmp_path / name).mkdir()
        for file in ("evidence.json", "manifest.json"):
            (tmp_path / name / file).write_text(text, encoding="utf-8")
    (tmp_path / "pipe").mkdir()
    (tmp_path / "pipe/manifest.json").write_text("{}", encoding="utf-8")
    if os.name != "nt":
        os.mkfifo(tmp_path / "pipe/evidence.json")
    page = Page(write_index(tmp_path).read_text(encoding="utf-8"))
    assert page.cells[:3] == ["PASS", "yes", "20261101T120000Z-cuda-good"]
    assert page.cells.count("no: INVALID") == 3 and page.cells.count("PASS") == 1
    assert len(asked) == 4
    again = write_index(tmp_path).read_text(encoding="utf-8")
    assert len(asked) == 4 and Page(again).cells == page.cells


def test_a_broken_cache_is_made_again_and_an_empty_folder_gives_an_empty_page(tmp_path):
    (tmp_path / CACHE).write_text('{"a": [', encoding="utf-8")
    assert "<h1>Reports</h1>" in write_index(tmp_path).read_text(encoding="utf-8")
    assert json.loads((tmp_path / CACHE).read_bytes()) == {}


def test_a_thousand_bundles_that_did_not_change_are_not_verified_again(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "load", lambda path: (_ for _ in ()).throw(AssertionError("verified again")))
    listed = {}
    for number in range(1000):
        (tmp_path / f"run-{number}").mkdir()
        for name, size in (("manifest.json", 8_000), ("evidence.json", 40_000)):
            (tmp_path / f"run-{number}" / name).write_bytes(b"%d" % number + b" " * size)
        listed[f"run-{number}"] = one(key=index._key(tmp_path / f"run-{number}"))
    (tmp_path / CACHE).write_text(index.dumps(listed, indent=None), encoding="utf-8")
    page = write_index(tmp_path).read_text(encoding="utf-8")
    assert page.count("/index.html'>") == 1000


def test_the_page_has_no_serious_finding_of_axe(tmp_path):
    """With axe-core from npm: AXE_CORE names its axe.min.js."""
    script = os.environ.get("AXE_CORE")
    chromium = shutil.which("chromium")
    if not script or not chromium:
        pytest.skip("AXE_CORE does not name axe-core's axe.min.js, or chromium is missing")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install playwright")
    path = tmp_path / "index.html"
    path.write_text(overview({"a": one(9, 9e4), "b": one(1)}), encoding="utf-8")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            page = browser.new_page(color_scheme=scheme, bypass_csp=True)
            page.goto(path.as_uri())
            page.evaluate(Path(script).read_text(encoding="utf-8"))
            found = page.evaluate("axe.run()")["violations"]
            assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == [], json.dumps(found)[:2000]
        browser.close()
