"""Asking whether an index can be reached: right, and never for long."""

import http.server
import socket
import threading
import time

import pytest

from kit.errors import SetupFailed
from kit.setup import environment


@pytest.fixture
def server(monkeypatch):
    """A server on this machine that has a page for torch below /good and none elsewhere."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/good/torch/" else 404)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"wheel")

        def log_message(self, *_):
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_an_index_with_a_page_for_torch_is_reachable(server):
    assert environment.can_reach(f"{server}/good") and environment.can_reach(f"{server}/good/")


def test_an_error_page_is_not_an_index(server):
    assert not environment.can_reach(f"{server}/blocked")


def test_a_refused_connection_is_unreachable():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        assert not environment.can_reach(f"http://127.0.0.1:{taken.getsockname()[1]}")


def test_text_that_is_no_address_is_unreachable():
    assert not environment.can_reach("nonsense")


def test_an_index_that_stays_silent_costs_its_limit_and_no_more(monkeypatch):
    released = threading.Event()

    def silent(url, limit_s):
        released.wait(30)
        raise OSError("timed out")

    monkeypatch.setattr(environment, "_open", silent)
    began = time.monotonic()
    try:
        assert not environment.can_reach("https://index.test", limit_s=0.1)
    finally:
        released.set()
    assert time.monotonic() - began < 2


def test_pip_that_is_another_file_is_refused(server):
    with pytest.raises(SetupFailed, match="another file"):
        environment.fetch_pip(f"{server}/good/torch/")


def test_pip_that_cannot_be_fetched_says_what_to_install(server):
    with pytest.raises(SetupFailed, match="python3-venv"):
        environment.fetch_pip(f"{server}/absent")
