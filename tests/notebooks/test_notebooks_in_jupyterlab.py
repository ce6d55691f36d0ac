"""JupyterLab in a real browser: a newcomer runs all cells and sees a verdict and a figure.

Needs Debian's chromium and `pip install playwright`, which brings no browser of its own; skipped with the
reason elsewhere.
"""

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from kit.process import ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TOKEN = "for-this-test"
START_S, RUN_S = 90, 400

MISSING = [name for name in ("playwright", "jupyterlab") if not importlib.util.find_spec(name)]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path"),
    pytest.mark.skipif(bool(MISSING), reason=f"{MISSING} missing: pip install playwright"),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab that `kit lab` started over a copy of the notebooks."""
    root = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", root / "notebooks", ignore=shutil.ignore_patterns(".*"))
    # Without the question whether one wants news, which would lie over the screenshots.
    settings = root / "jupyterlab_settings_dir" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}', encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = "JUPYTER_CONFIG_DIR JUPYTER_DATA_DIR JUPYTERLAB_SETTINGS_DIR JUPYTERLAB_WORKSPACES_DIR IPYTHONDIR"
    own = {name: str(root / name.lower()) for name in names.split()}
    options = f"--no-browser --port={port} --ServerApp.port_retries=0 --IdentityProvider.token={TOKEN} --allow-root"
    command = [sys.executable, "-m", "kit", "lab", *options.split(), f"--ServerApp.root_dir={root}"]
    environ = {**os.environ, **own, "PYTHONPATH": str(ROOT)}
    with (root / "server.log").open("w", encoding="utf-8") as log:
        server = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for_server(server, address, root / "server.log")
        yield address
    finally:
        server.kill()
        server.wait()


def wait_for_server(server, address, log):
    until = time.monotonic() + START_S
    while time.monotonic() < until and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/api/status?token={TOKEN}", timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text(encoding='utf-8', errors='replace')[-3000:]}")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


def run_all_cells(page, lab, name):
    # A workspace of its own, else the notebooks of the page before would be open too.
    page.goto(f"{lab}/lab/workspaces/{name}/tree/notebooks/{name}.ipynb?token={TOKEN}")
    idle(page)
    # As a person does it, by the menu.
    page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
    page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).last.click()
    # The prompt of a cell that waits or runs is [*]; the last cell has its number when all have run.
    page.wait_for_function(
        "() => { const p = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')]"
        ".map(x => x.innerText.trim());"
        " return (p.length && p.every(x => /^\\[\\d+\\]:$/.test(x)))"
        " || document.querySelector('[data-mime-type=\"application/vnd.jupyter.error\"]') }",
        timeout=RUN_S * 1000,
    )
    idle(page)


def idle(page):
    """Waits for the status bar: the circle in the toolbar says idle before there is a kernel."""
    page.locator(".jp-StatusBar-Widget", has_text="Idle").wait_for(timeout=START_S * 1000)


@pytest.mark.parametrize(
    ("name", "height", "card", "figures"),
    [
        ("01_env_check", 2400, "GPU check:", 0),
        ("02_smoke_training", 4400, "trained", 2),
        ("03_throughput", 6400, "tokens/s", 4),
        ("04_scaling", 5200, "trained", 2),
    ],
)
def test_a_newcomer_runs_a_notebook_to_the_end(lab, browser, name, height, card, figures):
    page = browser.new_page(viewport={"width": 1200, "height": height})
    run_all_cells(page, lab, name)
    errors = page.locator('[data-mime-type="application/vnd.jupyter.error"]').all_inner_texts()
    assert errors == []
    prompts = [text.strip() for text in page.locator(".jp-CodeCell .jp-InputPrompt").all_inner_texts()]
    assert prompts == [f"[{number}]:" for number in range(1, len(prompts) + 1)]
    assert page.locator(".jp-OutputArea-output.jp-RenderedHTMLCommon", has_text=card).first.is_visible()
    shown = page.locator(".jp-OutputArea-output img")
    assert shown.count() == figures
    assert all(shown.nth(i).evaluate("img => img.complete && img.naturalWidth > 300") for i in range(figures))
    page.close()
