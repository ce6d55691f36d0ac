"""Which torch is installed where, read from the files of each environment without importing any of them.

Answers "is this still the build I installed?": the package's metadata against the version
that its own code states, where pip says it got it, and CUDA packages that a later install
left behind when it replaced a CUDA build by one without. `torch/version.py` is read as
text; nothing of an environment is run.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable
from pathlib import Path

_FOLDERS = ("lib/python3*/site-packages", "Lib/site-packages", "lib64/python3*/site-packages")


@dataclasses.dataclass(frozen=True)
class Install:
    """One torch. version: as its code says, '2.9.1+cpu'; metadata_version: as pip believes. cuda: '12.8',
    None for a CPU build. source: the URL that pip noted, else its installer ('pip', 'conda', 'uv').
    left_behind: CUDA runtime packages beside a build without CUDA."""

    folder: str
    version: str | None
    metadata_version: str | None
    cuda: str | None
    source: str | None
    left_behind: tuple[str, ...] = ()

    @property
    def findings(self) -> tuple[str, ...]:
        """What is wrong with this installation, in words."""
        found = []
        base, packaged = ((text or "").split("+")[0] for text in (self.version, self.metadata_version))
        if base and packaged and base != packaged:
            found.append(f"its code says {self.version}, its metadata {self.metadata_version}: two are mixed")
        if self.left_behind:
            found.append(
                f"no CUDA, but {', '.join(self.left_behind[:3])} is there: a later install replaced a CUDA build"
            )
        return tuple(found)


def environments(roots: Iterable[Path]) -> tuple[Path, ...]:
    """The site-packages folders of each root that is an environment, and of the environments directly in
    it."""
    found: dict[Path, None] = {}
    for root in roots:
        candidates = [root, *(child for child in _children(root) if child.is_dir())]
        for candidate in candidates:
            for pattern in _FOLDERS:
                found.update(dict.fromkeys(path.resolve() for path in candidate.glob(pattern) if path.is_dir()))
    return tuple(found)


def installs(folders: Iterable[Path]) -> tuple[Install, ...]:
    """The torch of each site-packages folder that has one."""
    return tuple(found for folder in folders if (found := read_install(folder)) is not None)


def read_install(folder: Path) -> Install | None:
    """The torch in one site-packages folder; None where there is none."""
    info = next(iter(sorted(folder.glob("torch-*.dist-info"))), None)
    code = _text(folder / "torch" / "version.py")
    if info is None and code is None:
        return None
    cuda = _value(code, "cuda")
    left = () if cuda else tuple(sorted(_name(path) for path in folder.glob("nvidia_cuda_runtime*.dist-info")))
    return Install(
        folder=str(folder),
        version=_value(code, "__version__"),
        metadata_version=_metadata_version(info),
        cuda=cuda,
        source=_source(info),
        left_behind=left,
    )


def table(found: Iterable[Install]) -> str:
    """One line for each installation, and what is wrong with it below."""
    lines = []
    for install in found:
        build = f"CUDA {install.cuda}" if install.cuda else "no CUDA"
        lines.append(f"{install.version or install.metadata_version or '?':<24} {build:<10} {install.folder}")
        lines += [f"    {finding}" for finding in install.findings]
    return "\n".join(lines)


def _children(root: Path) -> list[Path]:
    try:
        return sorted(root.iterdir())
    except OSError:
        return []


def _value(code: str | None, name: str) -> str | None:
    """`name`'s string in torch/version.py: "cuda: Optional[str] = '12.8'"."""
    match = re.search(rf"^{name}\b[^=\n]{{0,60}}=\s*['\"]([^'\"\n]{{1,60}})['\"]", code or "", re.MULTILINE)
    return match[1] if match else None


def _metadata_version(info: Path | None) -> str | None:
    match = re.search(r"^Version: (\S{1,60})", _text(info / "METADATA") or "", re.MULTILINE) if info else None
    return match[1] if match else None


def _source(info: Path | None) -> str | None:
    if info is None:
        return None
    try:
        url = json.loads(_text(info / "direct_url.json") or "{}").get("url")
    except (ValueError, AttributeError):
        url = None
    return url if isinstance(url, str) else (_text(info / "INSTALLER") or "").strip() or None


def _name(info: Path) -> str:
    return info.name.removesuffix(".dist-info").replace("_", "-")


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")[:1_000_000]
    except OSError:
        return None
