"""The network as set-up sees it: is an index there, and pip itself where a Python comes without it."""

from __future__ import annotations

import hashlib
import os
import threading

from kit.errors import SetupFailed

PYPI = "https://pypi.org/simple"
LIMIT_S = 3.0
PIP_URL = (
    "https://files.pythonhosted.org/packages/07/25/"
    "ee8c38ae72d66b844ce8eb9711ba905dba21ca1a8a0c960057c41cd23337/pip-26.3-py3-none-any.whl"
)
PIP_SHA256 = "f3b60b20ffaadd4415ed7957212a38ac63fa4c5fa375bd0f4a797777940fad13"


def can_reach(index_url: str, limit_s: float = LIMIT_S) -> bool:
    """Whether the index hands out its page for torch, through the proxy that the environment names.

    In a daemon thread, because looking up a name has no time limit of its own.
    """
    answer: list[bool] = []
    url = f"{index_url.rstrip('/')}/torch/"
    thread = threading.Thread(target=lambda: answer.append(_answers(url, limit_s)), daemon=True)
    thread.start()
    thread.join(limit_s)
    return bool(answer and answer[0])


def _answers(url: str, limit_s: float) -> bool:
    from http.client import HTTPException

    try:
        with _open(url, limit_s):
            return True
    except (OSError, ValueError, HTTPException):
        return False


def fetch_pip(url: str = PIP_URL) -> bytes:
    """pip's wheel from PyPI, checked against the sha256 that stands here."""
    try:
        with _open(url, 30) as answer:
            content = answer.read()
    except OSError as error:
        raise SetupFailed(
            f"This Python has no pip of its own, and PyPI's could not be fetched ({error}).",
            expected="Python's `ensurepip`, or a way to files.pythonhosted.org.",
            todo="`apt install python3-venv` (or what your system calls it) and run the command again.",
        ) from error
    if hashlib.sha256(content).hexdigest() != PIP_SHA256:
        raise SetupFailed(
            f"{url} is another file than it should be.",
            expected=f"sha256 {PIP_SHA256}.",
            todo="find out who answers in its place (a proxy?), or `apt install python3-venv`.",
        )
    return content


def _open(url: str, limit_s: float):
    """A GET, as pip would do it (some servers refuse HEAD), with the certificates pip was told to trust."""
    # Both cost 30 ms at import, and most runs never ask the network.
    import ssl
    import urllib.request

    named = os.environ.get("PIP_CERT") or os.environ.get("REQUESTS_CA_BUNDLE")
    context = ssl.create_default_context(cafile=named if named and os.path.isfile(named) else None)
    request = urllib.request.Request(url, headers={"User-Agent": "kit"})
    return urllib.request.urlopen(request, timeout=limit_s, context=context)
