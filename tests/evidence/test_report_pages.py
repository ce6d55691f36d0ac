"""The pages that people read: the same bytes each time, safe with hostile text, no script, no request."""

import base64
import dataclasses
import html.parser
import re

import evidence_sample as sample
import pytest

from kit.evidence.contents import Number, value, value_range
from kit.evidence.notebook import markdown, notebook_html, problems, safe_html, source_sha256
from kit.evidence.render import derived, page, readme
from kit.records import dumps
from kit.show import in_markdown

EVIL = [
    "<script>alert(1)</script>",
    "'><img src=x onerror=alert(1)>",
    '" onload="alert(1)',
    "](https://evil.example) [x](javascript:alert(1))",
    "| a | b |\n\n# title",
    "\x1b[31mred\x1b]0;title\x07",
    "abc\u202edef\u2066g",
    "zero\u200bwidth\ufeff",
    "`code` **bold** ~~gone~~ <b>x</b>",
    "www.evil.example https://evil.example ada@evil.example @everyone #1",
    "\ud800 lone",
    "</title></style></pre></table>",
    "&lt;b&gt;",
]
ALLOWED_TAGS = re.findall(
    r"\w+",
    "html head meta link title style body p h1 h2 h3 h4 div span b i br small code pre table thead tbody tr th td ul"
    " ol li dl dt dd nav figure figcaption img a details summary main svg path polyline circle rect",
)
LOADS = ("srcset", "style", "action", "formaction", "background", "poster")
HREF = r"data:,$|https?://|\.\./index\.html$|(notebooks|figures|raw|facts)/[\w./-]+$|#[\w-]+$|[\w-]+/index\.html$"


class Reader(html.parser.HTMLParser):
    """Collects tags, attributes and text, and complains about anything that could load or run."""

    def __init__(self, text):
        super().__init__()
        self.found, self.problems, self.text = [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self.problems += [] if tag in ALLOWED_TAGS else [tag]
        for name, told in attrs:
            is_strange = name == "src" and not told.startswith("data:image/png;base64,")
            is_strange |= name == "href" and not re.match(HREF, told)
            if is_strange or name.startswith("on") or name in LOADS:
                self.problems.append(f"{tag} {name} {told[:50]}")

    def handle_data(self, data):
        self.text += data


def evidence_with(text):
    evidence = sample.conclude({"raw/run.json": dumps(sample.run_record("FAILED")).encode()})
    run = dataclasses.replace(evidence.notebooks[0], error=text)
    numbers = (Number("n", None, "s", text, reason=text), Number("step_4x64_a_b_s", None, "s", text, reason=text))
    promise = dataclasses.replace(evidence.promises[0], sentence=text, text=text)
    checks = tuple(
        dataclasses.replace(check, found=text, expected=text, todo=text) for check in evidence.verdict.checks
    )
    return dataclasses.replace(
        evidence,
        headline=text,
        limits=(text,),
        notebooks=(run,),
        numbers=numbers,
        system={text: text},
        promises=(promise,),
        reviewer_nonce=text,
        code={"commit": text, "is_dirty": True, "diff_sha256": text},
        verdict=dataclasses.replace(evidence.verdict, checks=checks),
    )


def hostile_notebook(text):
    def shown(data, **metadata):
        return {"output_type": "display_data", "data": data, "metadata": metadata}

    value = sample.notebook(text, "b")
    value["cells"][0]["source"] = text
    value["cells"][1]["outputs"] = [
        {"output_type": "stream", "name": "stdout", "text": text},
        {"output_type": "error", "ename": text, "evalue": text, "traceback": [text]},
        shown({"text/html": text, "text/plain": text}),
        shown({"text/markdown": text, "application/javascript": text}),
        shown({"image/png": base64.b64encode(sample.png()).decode()}, **{"image/png": {"alt": text}}),
        shown({"image/png": text, "image/svg+xml": text}),
    ]
    return value


@pytest.mark.parametrize("text", EVIL)
def test_hostile_text_stays_text_in_every_page(text):
    files = {
        "env_info.txt": text.encode("utf-8", "replace"),
        "figures/a.png": sample.png(),
        "figures/a.svg": f"<dc:description>{text}</dc:description>".encode("utf-8", "replace"),
    }
    for made in (page(evidence_with(text), files), notebook_html(hostile_notebook(text), text)):
        read = Reader(made)
        assert not read.problems
        assert not re.search("[\u202a-\u202e\u2066-\u2069\u200b\ufeff\x1b\x07]", made)
        made.encode()
    links = [
        told
        for tag, told in Reader(page(evidence_with(text), files)).found
        if tag == "a" and told["href"].startswith("http")
    ]
    assert not links


def test_gpu_called_script_is_readable_as_such():
    assert "<script>alert(1)</script>" in Reader(page(evidence_with(EVIL[0]), {})).text


@pytest.mark.parametrize("text", EVIL)
def test_hostile_text_makes_no_markup_in_markdown(text):
    line = in_markdown(text)
    assert "\n" not in line and "://" not in line and "www." not in line and "@" not in line
    assert not re.search(r"(?<!\\)[\[\]|`*~#]|<", re.sub(r"&#\d+;", "", line))
    table_rows = [row for row in readme(evidence_with(text), {}).splitlines() if row.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in table_rows} <= {3, 4, 5, 6}


def test_pages_are_the_same_bytes_each_time(bundle):
    files = {p.relative_to(bundle).as_posix(): p.read_bytes() for p in bundle.rglob("*") if p.is_file()}
    evidence = sample.conclude(files)
    first, again = derived(evidence, files), derived(evidence, dict(reversed(files.items())))
    assert first == again and all(files[name] == data for name, data in first.items())


ORDER = (
    "PyTorch trains natively on this NVIDIA H100",
    "checks passed, and a run that lied about its GPU was caught",
    "System under test",
    "580.159.04, up to CUDA 13.0",
    "How fast, beside what the card allows",
    "Why you can believe it",
    "Red is right here",
    "Checks",
    "Verify it yourself",
    f"python3 -m kit verify {sample.RUN_ID}",
    "What this report does not show",
    "All numbers",
    "Notebooks and raw records",
)


@pytest.mark.parametrize("name", ["index.html", "README.md"])
def test_both_pages_tell_the_same_in_the_order_in_which_a_reader_asks(bundle, name):
    told = (bundle / name).read_text(encoding="utf-8")
    if name == "index.html":
        nav = re.search(r"<nav>.*</nav>", told)[0]
        assert set(re.findall("href='#([^']+)'", nav)) == set(re.findall("<h2 id='([^']+)'", told)) - {
            "machine-and-tools-in-their-own-words"
        }
        told = Reader(told.replace(nav, "")).text
    else:
        assert told.startswith("# PASS: ") and told.index("<details") < len("".join(told.splitlines(True)[:60]))
        assert "![steps](figures/steps.png)" in told
    places = [told.index(part) for part in ORDER]
    assert places == sorted(places), [ORDER[i] for i in range(1, len(ORDER)) if places[i] < places[i - 1]]


def test_checks_are_folded_where_they_passed_and_open_where_one_did_not(bundle, tmp_path):
    opened = re.compile(r"<details open><summary>([^<:]*)")
    assert opened.findall((bundle / "index.html").read_text(encoding="utf-8")) == []
    failed = sample.make(tmp_path / "failed", state="FAILED")
    assert opened.findall((failed / "index.html").read_text(encoding="utf-8")) == ["Integrity of the records"]


def test_sweep_is_a_table_of_engines_against_shapes_with_the_limit_below():
    numbers = [
        Number("step_4x64_bfloat16_eager_s", 0.0564, "s", ""), Number("step_4x64_bfloat16_trainer_s", 0.0557, "s", ""),
        Number("step_64x1024_bfloat16_trainer_s", None, "s", "", reason="out of memory"),
        Number("step_64x1024_bfloat16_eager_s", 0.2, "s", ""), Number("limit_4x64_bfloat16_s", 0.00149, "s", ""),
        Number("limit_64x1024_bfloat16_s", 0.1, "s", ""), Number("best_tokens_per_s", 541396.0, "tokens/s", "best: x"),
        Number("weak_scaling_2_ranks_efficiency", 0.9894, "1", "tokens/s over two; 2 ranks, 32 × 1024 each"),
    ]  # fmt: skip
    told = readme(dataclasses.replace(evidence_with("x"), numbers=tuple(numbers)), {})
    assert "| Hugging Face's Trainer | 55.7 ms (2.7 %) | out of memory |" in told
    assert "| plain loop | 56.4 ms (2.6 %) | 200 ms (50 %) |" in told
    assert "| limit of this card | 1.49 ms | 100 ms |" in told
    keys = [line for line in told.splitlines() if line.startswith("- **")]
    assert keys[0].startswith("- **98.9 %** of 2 times one GPU's speed, on 2 GPUs: 2 ranks, 32 × 1024 each")
    assert keys[1].startswith("- **541,000 tokens/s**") and keys[2].startswith("- **1.0 ×** trainer against")


def test_failing_cell_and_its_error_come_first(tmp_path):
    path = sample.make(tmp_path, state="FAILED")
    text = Reader((path / "index.html").read_text(encoding="utf-8")).text
    text = text[text.index("Stopped in 01_smoke, cell 2.") :]
    assert text.index("ZeroDivisionError") < text.index("System under test")
    assert text.index("repair the first failing cell") < text.index("System under test")


def test_dirty_code_is_never_silent():
    code = {"commit": "1", "is_dirty": True, "diff_sha256": "abc"}
    assert "uncommitted changes (diff abc" in page(dataclasses.replace(evidence_with("x"), code=code), {})


def test_figures_have_the_alt_text_of_their_svg(bundle):
    files = {
        "figures/a_b.png": sample.png(),
        "figures/c.png": sample.png(),
        "figures/d.png": b"GIF89a",
        "figures/c.svg": b"<dc:description>tokens/s &lt;up&gt;</dc:description>",
    }
    images = [told["alt"] for tag, told in Reader(page(evidence_with("x"), files)).found if tag == "img"]
    assert images == ["a b", "tokens/s <up>"]


def test_figures_over_the_limit_are_named_and_not_shown(monkeypatch):
    import kit.evidence.render as module

    monkeypatch.setattr(module, "MAX_EMBEDDED_BYTES", 100)
    made = page(evidence_with("x"), {"figures/a.png": sample.png(), "figures/b.png": sample.png()})
    assert made.count("<img") == 1 and "figures/b.png is not shown here" in made


@pytest.mark.parametrize(
    "number,expected,spread",
    [
        (Number("a", 1.74, "s", "d", low=1.7, high=1.8), "1.74 s", "1.70 s to 1.80 s"),
        (Number("a", 989e12, "FLOP/s", "d"), "989 TFLOP/s", ""),
        (Number("a", 3 * 1024**3, "B", "d"), "3.00 GiB", ""),
        (Number("a", 0.412, "1", "d", low=0.4, high=None), "0.412", ""),
        (Number("a", 31.66, "samples/s", "d"), "31.7 samples/s", ""),
        (Number("a", 14, "points", "d"), "14 points", ""),
        (Number("a", None, "W", "d", reason="a CPU run"), "unknown: a CPU run", ""),
    ],
)
def test_numbers_carry_unit_and_unknown_its_reason(number, expected, spread):
    assert (value(number), value_range(number)) == (expected, spread)


def test_markdown_of_our_articles():
    made = markdown(
        "# Title\n\nOne *idea* a **cell**, `x * y` and [source](https://docs.example.org/a).\n\n- one\n  more\n- two\n\n"
        "1. a\n2. b\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n\n```\nx < y\n```\n"
    )
    assert "<h1>Title</h1>" in made and "<i>idea</i>" in made and "<b>cell</b>" in made and "<code>x * y</code>" in made
    assert "<a href='https://docs.example.org/a' rel='noopener noreferrer'>source</a>" in made
    assert "<ul><li>one more</li><li>two</li></ul>" in made and "<ol><li>a</li><li>b</li></ol>" in made
    assert "<tr><td>1</td><td>2</td></tr>" in made and "---" not in made and "<pre>x &lt; y</pre>" in made


def test_hash_of_a_notebook_is_that_of_its_template():
    template, executed = sample.notebook("a = 1", "b = 2", executed=False), sample.notebook("a = 1", "b = 2")
    executed["cells"][0]["source"] = ["# A notebook\r\n", "\r\n", "One `idea` a **cell**."]
    executed["cells"].insert(
        0, {"cell_type": "markdown", "metadata": {"tags": ["papermill-error-cell-tag"]}, "source": "error"}
    )
    assert source_sha256(executed) == source_sha256(template)
    assert source_sha256(sample.notebook("a = 1", "b = 3")) != source_sha256(template)


def test_notebook_counts_only_when_every_cell_ran_in_order_without_error():
    assert not list(problems(sample.notebook("a", "b"))) and list(problems(sample.notebook("a", "b", executed=False)))
    assert list(problems({"cells": []})) == ["it has no code cell"]


@pytest.mark.parametrize(
    ("source", "kept"),
    [
        ("<script>alert(1)</script>x", "x"),
        ('<b onclick=a style="background:url(x)">a', "<b>a</b>"),
        ("</div></main><div style='color:red;position:fixed'>a", "<div>a</div>"),
        (
            "<table><tr><td rowspan='2' style='text-align:left'>1",
            "<table><tr><td rowspan='2' style=\"text-align:left\">1</td></tr></table>",
        ),
        ('<a href="javascript:x">y</a><img src=x onerror=1>', "y"),
        ("<style>*{}</style><!-- c -->1 < 2 &lt;b&gt;", "1 &lt; 2 &lt;b&gt;"),
    ],
)
def test_the_html_of_an_output_keeps_its_layout_and_nothing_that_loads_or_runs(source, kept):
    assert safe_html(source) == kept


@pytest.mark.parametrize(("said", "is_shown"), [("PASS 14 of 14 steps", True), ("FAIL 3 of 14 steps", False)])
def test_the_html_of_an_output_is_shown_only_where_the_text_says_it_too(said, is_shown):
    data = {"text/plain": said, "text/html": "<p>PASS: <b>14 of 14</b> steps</p>"}
    cell = {"cell_type": "code", "source": "x", "outputs": [{"output_type": "execute_result", "data": data}]}
    page = notebook_html({"cells": [cell]})
    assert ("<b>14 of 14</b>" in page) == is_shown and (f"<pre>{said}</pre>" in page) != is_shown
