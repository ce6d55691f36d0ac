"""reports/index.html: every bundle with its figures and a link that leads there, each machine over time."""

import dataclasses
import html.parser
import json
import os
import shutil
from pathlib import Path

import pytest

from kit.evidence.contents import Evidence, Number
from kit.evidence.render import Listed, overview
from kit.records import Check, Outcome, Verdict, dumps
from kit.report import write_overview

EVIDENCE = Evidence(
    schema_version="2.0", run_id="r", nonce="n", reviewer_nonce=None, kit_version="0", code={}, device="cuda",
    state="COMPLETE", started_utc="2026-11-01T11:00:00.000+00:00", ended_utc="2026-11-01T12:00:00.000+00:00",
    verdict=Verdict.of([Check("native.x", Outcome.PASS, "fine", "fine")]), claims={}, promises=(), notebooks=(),
    numbers=(Number("steady_samples_per_s", 75.456, "samples/s", ""), Number("best_tokens_per_s", 80000.0, "tokens/s", ""),
             Number("best_floor_ratio", 0.0948, "1", "")),
    headline="It trains.", limits=(), system={},
)  # fmt: skip
FACTS = {"torch": {"version": "2.11.0+cu130", "gpus": [{"name": "NVIDIA H100", "uuid": "gpu-1"}]}}


class Page(html.parser.HTMLParser):
    """Links, cells and tags of a page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.cells, self.tags, self._is_cell = [], [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self._is_cell = tag == "td" or (self._is_cell and tag == "a")
        self.links += [value for name, value in attributes if name == "href" and tag == "a"]

    def handle_data(self, data):
        if self._is_cell and data.strip():
            self.cells.append(data.strip())


def at(hour, rate=80000.0, **more):
    numbers = (
        *EVIDENCE.numbers[:1],
        dataclasses.replace(EVIDENCE.numbers[1], value=rate),
        *EVIDENCE.numbers[2:],
    )
    return dataclasses.replace(
        EVIDENCE, ended_utc=f"2026-11-01T{hour:02d}:00:00.000+00:00", **{"numbers": numbers, **more}
    )


def test_a_row_says_when_where_and_how_fast():
    page = Page(overview([Listed.of("run-a", EVIDENCE, FACTS)]))
    assert page.cells == [
        "PASS",
        "run-a",
        "2026-11-01 12:00",
        "NVIDIA H100",
        "2.11.0+cu130",
        "75.5",
        "80,000",
        "9.5 %",
    ]
    assert page.links == ["run-a/index.html"]


def test_the_newest_report_comes_first():
    page = Page(
        overview([Listed.of("old", at(1), FACTS), Listed.of("new", at(9), FACTS), Listed.of("mid", at(5), FACTS)])
    )
    assert page.links == [f"{name}/index.html" for name in ("new", "mid", "old")]


def test_a_report_without_numbers_shows_dashes_and_no_zero():
    page = Page(overview([Listed.of("run-a", at(1, numbers=()), {})]))
    assert page.cells[3:] == ["unknown", "unknown", "–", "–", "–"]


def test_a_machine_with_several_reports_has_its_trend_oldest_first():
    text = overview([Listed.of("a", at(9, 90000.0), FACTS), Listed.of("b", at(1, 70000.0), FACTS)])
    assert "oldest first: 70,000, 90,000." in text and Page(text).tags.count("svg") == 1


def test_reports_of_two_machines_are_never_one_line():
    other = {"torch": {"version": "2", "gpus": [{"name": "NVIDIA H100", "uuid": "gpu-2"}]}}
    assert "<svg" not in overview([Listed.of("a", at(1), FACTS), Listed.of("b", at(2), other)])


def test_the_page_holds_no_script_and_asks_for_nothing():
    text = overview([Listed.of("<script>alert(1)</script>", at(1), {"torch": {"version": "<img src=x>"}})])
    assert not {"script", "img", "iframe"} & set(Page(text).tags)
    assert "http" not in text.replace("http-equiv", "")


def test_an_empty_folder_gives_an_empty_page(tmp_path):
    assert "<h1>Reports</h1>" in write_overview(tmp_path).read_text(encoding="utf-8")


def test_the_index_lists_bundles_and_leaves_out_what_is_none(tmp_path):
    for name, text in (("good", dumps(EVIDENCE)), ("broken", "{"), ("strange", '{"a": 1}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "evidence.json").write_text(text, encoding="utf-8")
    (tmp_path / "good" / "index.html").write_text("", encoding="utf-8")
    page = Page(write_overview(tmp_path).read_text(encoding="utf-8"))
    assert page.links == ["good/index.html"]
    assert all((tmp_path / link).is_file() for link in page.links)


def test_the_page_has_no_serious_finding_of_axe(tmp_path):
    """With axe-core from npm: AXE_CORE names its axe.min.js."""
    script = os.environ.get("AXE_CORE")
    chromium = shutil.which("chromium")
    if not script or not chromium:
        pytest.skip("AXE_CORE does not name axe-core's axe.min.js, or chromium is missing")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install playwright")
    path = tmp_path / "index.html"
    path.write_text(overview([Listed.of("a", at(9, 9e4), FACTS), Listed.of("b", at(1), FACTS)]), encoding="utf-8")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            page = browser.new_page(color_scheme=scheme, bypass_csp=True)
            page.goto(path.as_uri())
            page.evaluate(Path(script).read_text(encoding="utf-8"))
            found = page.evaluate("axe.run()")["violations"]
            assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == [], json.dumps(found)[:2000]
        browser.close()
