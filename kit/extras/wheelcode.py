"""Reads which GPU code a wheel or an installed package really holds: its cubins and its PTX.

nvcc puts all device code of a library into "fat binaries" inside the .so or .dll. Their
headers are plain even where the code is compressed, so no GPU, no toolkit and no import
is needed, and nothing of the file is ever run. Layout, as written by fatbinary of CUDA
12.4 to 13.0 and checked with it: 16 bytes (magic ba55ed50, version, header size, size),
then for each image a header with kind (1 PTX, 2 cubin), sizes, architecture and flags,
where 0x100000 marks 'a' code and 0x200000 'f' code, then the image.

Not seen: code in .cubin or .ptx files of their own, or compiled at run time (Triton).
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import re
import struct
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO

from kit.errors import UsageError
from kit.gpu.compat import Capability, Code, cover
from kit.records import Check, Outcome
from kit.units import dotted

_MAGIC = b"\x50\xed\x55\xba"
_CONTAINER = struct.Struct("<IHHQ")
_IMAGE = struct.Struct("<HHIQIIHHIIIQ")
_KINDS = {1: True, 2: False}
_ARCH_SPECIFIC, _FAMILY_SPECIFIC = 0x100000, 0x200000
_LIBRARY = re.compile(r"\.(?:so(?:\.\d+){0,4}|dll|pyd)$", re.IGNORECASE)
_CHUNK = 4 * 1024 * 1024
_MAX_BYTES = 16 * 1024**3


@dataclasses.dataclass(frozen=True)
class Library:
    """One shared library. counts: how many images of each architecture, {'sm_90': 12, 'compute_90': 1}."""

    name: str
    counts: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Scan:
    """What a wheel or package holds. arch_list: every architecture in it, native code before PTX, lowest
    first. libraries: those with GPU code. files_read: how many libraries were opened."""

    name: str
    arch_list: tuple[str, ...]
    libraries: tuple[Library, ...]
    files_read: int


def scan_wheel(path: Path) -> Scan:
    """The GPU code in a .whl, read as a stream: memory stays small, nothing is unpacked. Raises
    UsageError."""
    try:
        with zipfile.ZipFile(path) as wheel:
            members = [info for info in wheel.infolist() if _LIBRARY.search(info.filename)]
            total = sum(info.file_size for info in members)
            if total > _MAX_BYTES:
                raise UsageError(f"{path.name} unpacks to {total:,} bytes", expected=f"at most {_MAX_BYTES:,} bytes")
            found = []
            for info in members:
                with wheel.open(info) as file:
                    found.append(Library(info.filename, _count(file)))
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise UsageError(
            f"{path}: {error}", expected="a wheel (.whl), which is a zip file", todo="Check the path."
        ) from None
    return _scan(path.name, found)


def scan_installed(package: str) -> Scan:
    """The GPU code of an installed package, found by its metadata and not imported. Raises UsageError."""
    found = next(iter(importlib.metadata.Distribution.discover(name=package)), None)
    if found is None:
        raise UsageError(f"{package!r} is not installed here", expected="an installed package", todo="See `pip list`.")
    libraries = []
    for file in found.files or ():
        path = Path(str(found.locate_file(file)))
        if _LIBRARY.search(path.name) and path.is_file():
            try:
                with path.open("rb") as opened:
                    libraries.append(Library(path.name, _count(opened)))
            except OSError as error:
                raise UsageError(f"{path}: {error}", expected="a library that can be read") from None
    return _scan(f"{package} {found.version}", libraries)


def check(scan: Scan, capability: Capability | None) -> Check:
    """Whether a package serves a GPU. Libraries of others that a wheel carries along (NAME.libs/) do not
    decide, nor do those that only hold 'a' code for another chip. Where parts differ, the one with most code
    decides whether that is a FAIL or only worth a look."""
    values = {"arch_list": list(scan.arch_list), "files_read": scan.files_read}
    expected = f"code for compute capability {dotted(capability)}" if capability else "code for the GPU"
    if not scan.arch_list or capability is None:
        what = " ".join(scan.arch_list) or f"no GPU code in {scan.files_read} libraries"
        return Check("native.package_code", Outcome.INCONCLUSIVE, f"{scan.name} holds {what}", expected, values=values)
    held = {library.name: cover(tuple(library.counts), capability) for library in _deciding(scan, capability)}
    native = [name for name, found in held.items() if found.how == "native"]
    lacking = [name for name in held if name not in native]
    values["lacking"] = lacking
    todo = "Update the package, or build it from source for this GPU (TORCH_CUDA_ARCH_LIST)."
    if not lacking:
        found = f"{scan.name}: {held[native[0]].reason}"
        return Check("native.package_code", Outcome.PASS, found, expected, values=values)
    main = max(scan.libraries, key=lambda library: (library.name in held, sum(library.counts.values())))
    if native and main.name in native:
        found = f"{scan.name}: {', '.join(native[:3])} serve this GPU, {', '.join(lacking[:3])} do not"
        return Check("native.package_code", Outcome.INCONCLUSIVE, found, expected, todo, values)
    return Check("native.package_code", Outcome.FAIL, f"{scan.name}: {held[main.name].reason}", expected, todo, values)


def _deciding(scan: Scan, capability: Capability) -> list[Library]:
    own = [library for library in scan.libraries if ".libs/" not in library.name] or list(scan.libraries)
    for_others = [
        library
        for library in own
        if all(name.endswith("a") for name in library.counts) and cover(tuple(library.counts), capability).how == "none"
    ]
    return [library for library in own if library not in for_others] or own


def _scan(name: str, libraries: list[Library]) -> Scan:
    held = [library for library in libraries if library.counts]
    return Scan(name, _sorted(code for library in held for code in library.counts), tuple(held), len(libraries))


def _sorted(codes: Iterable[str]) -> tuple[str, ...]:
    def key(text: str) -> tuple[bool, int, str]:
        return text.startswith("compute"), int(re.sub(r"\D", "", text)), text

    return tuple(sorted(set(codes), key=key))


def _count(file: IO[bytes]) -> Mapping[str, int]:
    counts = Counter(str(code) for code in images(file))
    return {name: counts[name] for name in _sorted(counts)}


# --- the format ----------------------------------------------------------------------


def images(file: IO[bytes]) -> Iterator[Code]:
    """Each cubin and PTX image of a file that can seek, in the order of the file."""
    window, place = _Window(file), 0
    while (place := window.find(_MAGIC, place)) >= 0:
        header = window.at(place, _CONTAINER.size)
        if len(header) < _CONTAINER.size:
            return
        _, version, header_size, size = _CONTAINER.unpack(header)
        if version != 1 or header_size != _CONTAINER.size or size < _IMAGE.size:
            # the four bytes by chance
            place += len(_MAGIC)
            continue
        end, place = place + header_size + size, place + header_size
        while place + _IMAGE.size <= end:
            found = _image(window.at(place, _IMAGE.size))
            if found is None:
                break
            code, length = found
            yield code
            place += length


def _image(header: bytes) -> tuple[Code, int] | None:
    """(code, length with its header), or None where this is no image header."""
    if len(header) < _IMAGE.size:
        return None
    kind, _, header_size, size, _, _, _, _, arch, _, _, flags = _IMAGE.unpack(header)
    if kind not in _KINDS or not _IMAGE.size <= header_size <= 4096 or not 20 <= arch < 1000:
        return None
    letter = "a" if flags & _ARCH_SPECIFIC else "f" if flags & _FAMILY_SPECIFIC else ""
    return Code((arch // 10, arch % 10), _KINDS[kind], letter), header_size + size


class _Window:
    """A part of a file in memory; moves forward, and skips what is not asked for."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._start, self._held = file, 0, b""

    def at(self, place: int, length: int) -> bytes:
        """Up to `length` bytes from `place` on; fewer at the end of the file."""
        if not self._start <= place <= self._start + len(self._held):
            self._move(place)
        while self._start + len(self._held) < place + length and self._more():
            pass
        return self._held[place - self._start : place - self._start + length]

    def find(self, mark: bytes, place: int) -> int:
        """Where `mark` stands next, or -1."""
        if not self._start <= place <= self._start + len(self._held):
            self._move(place)
        while True:
            found = self._held.find(mark, max(0, place - self._start))
            if found >= 0:
                return self._start + found
            keep = max(place, self._start + len(self._held) - len(mark) + 1)
            self._held, self._start = self._held[keep - self._start :], keep
            if not self._more():
                return -1

    def _move(self, place: int) -> None:
        self._file.seek(place)
        self._start, self._held = place, b""

    def _more(self) -> bool:
        chunk = self._file.read(_CHUNK)
        self._held += chunk
        return bool(chunk)
