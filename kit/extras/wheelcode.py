"""Reads which GPU code a wheel or an installed package really holds: its cubins and its PTX.

nvcc puts all device code of a library into "fat binaries" inside the .so or .dll. Their
headers are plain even where the code is compressed, so no GPU, no toolkit and no import
is needed, and nothing of the file is ever run. Layout, as written by fatbinary of CUDA
12.4 to 13.0 and checked with it: 16 bytes (magic ba55ed50, version, header size, size),
then for each image a header with kind (1 PTX, 2 cubin), sizes, architecture and flags,
where 0x100000 marks 'a' code and 0x200000 'f' code, then the image.

Not seen: code in .cubin or .ptx files of their own, or compiled at run time (Triton).
"""

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
            return _scan(path.name, ((info.filename, wheel.open(info)) for info in members))
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise UsageError(
            f"{path}: {error}", expected="a wheel (.whl), which is a zip file", todo="Check the path."
        ) from None


def scan_installed(package: str) -> Scan:
    """The GPU code of an installed package, found by its metadata and not imported. Raises UsageError."""
    found = next(iter(importlib.metadata.Distribution.discover(name=package)), None)
    if found is None:
        raise UsageError(f"{package!r} is not installed here", expected="an installed package", todo="See `pip list`.")
    paths = [Path(str(found.locate_file(file))) for file in found.files or ()]
    libraries = [path for path in paths if _LIBRARY.search(path.name) and path.is_file()]
    try:
        return _scan(f"{package} {found.version}", ((path.name, path.open("rb")) for path in libraries))
    except OSError as error:
        raise UsageError(f"{error}", expected="a library that can be read") from None


def _scan(name: str, libraries: Iterable[tuple[str, IO[bytes]]]) -> Scan:
    read = []
    for library, file in libraries:
        with file:
            counts = Counter(str(code) for code in images(file))
        read.append(Library(library, {code: counts[code] for code in in_order(counts)}))
    held = tuple(library for library in read if library.counts)
    return Scan(name, in_order(code for library in held for code in library.counts), held, len(read))


def in_order(codes: Iterable[str]) -> tuple[str, ...]:
    """Native code before PTX, lowest first."""
    apart = ((text.startswith("compute"), int(re.sub(r"\D", "", text)), text) for text in set(codes))
    return tuple(text for _, _, text in sorted(apart))


def check(scan: Scan, capability: Capability | None) -> Check:
    """Whether a package serves a GPU. Libraries of others that a wheel carries along (NAME.libs/) do not
    decide, nor do those that only hold 'a' code for another chip. Where parts differ, the one with most code
    decides whether that is a FAIL or only worth a look."""
    values = {"arch_list": list(scan.arch_list), "files_read": scan.files_read}
    expected = f"code for compute capability {dotted(capability)}" if capability else "code for the GPU"
    if not scan.arch_list or capability is None:
        what = " ".join(scan.arch_list) or f"no GPU code in {scan.files_read} libraries"
        return Check("native.package_code", Outcome.INCONCLUSIVE, f"{scan.name} holds {what}", expected, values=values)
    every = {library.name: cover(library.counts, capability) for library in scan.libraries}
    own = [library for library in scan.libraries if ".libs/" not in library.name] or scan.libraries
    decide = [x for x in own if every[x.name].how != "none" or not all(code.endswith("a") for code in x.counts)] or own
    native = [library.name for library in decide if every[library.name].how == "native"]
    lacking = [library.name for library in decide if library.name not in native]
    main = max(scan.libraries, key=lambda library: (library in decide, sum(library.counts.values()))).name
    outcome, found = Outcome.FAIL, every[main].reason
    if not lacking:
        outcome, found = Outcome.PASS, every[native[0]].reason
    elif main in native:
        outcome, found = (
            Outcome.INCONCLUSIVE,
            f"{', '.join(native[:3])} serve this GPU, {', '.join(lacking[:3])} do not",
        )
    todo = "Update the package, or build it from source for this GPU (TORCH_CUDA_ARCH_LIST)." if lacking else ""
    values["lacking"] = lacking
    return Check("native.package_code", outcome, f"{scan.name}: {found}", expected, todo, values)


# --- the format ----------------------------------------------------------------------


def images(file: IO[bytes]) -> Iterator[Code]:
    """Each cubin and PTX image of a file that can seek, in the order of the file."""
    window, place = _Window(file), 0
    while window.at(place, len(_MAGIC)):
        found = window.held.find(_MAGIC, place - window.start)
        if found < 0:
            # A mark may begin in the last bytes.
            place = max(place + 1, window.start + len(window.held) - len(_MAGIC) + 1)
            continue
        place = window.start + found
        header = window.at(place, _CONTAINER.size)
        if len(header) < _CONTAINER.size:
            return
        _, version, header_size, size = _CONTAINER.unpack(header)
        if version != 1 or header_size != _CONTAINER.size or size < _IMAGE.size:
            # the four bytes by chance
            place += len(_MAGIC)
            continue
        end, place = place + header_size + size, place + header_size
        while place + _IMAGE.size <= end and len(image := window.at(place, _IMAGE.size)) == _IMAGE.size:
            kind, _, header_size, size, _, _, _, _, arch, _, _, flags = _IMAGE.unpack(image)
            if kind not in (1, 2) or not _IMAGE.size <= header_size <= 4096 or not 20 <= arch < 1000:
                break
            letter = "a" if flags & _ARCH_SPECIFIC else "f" if flags & _FAMILY_SPECIFIC else ""
            yield Code((arch // 10, arch % 10), kind == 1, letter)
            place += header_size + size


class _Window:
    """A part of a file in memory, from `start` on; moves forward, and skips what is not asked for."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.start, self.held = file, 0, b""

    def at(self, place: int, length: int) -> bytes:
        """Up to `length` bytes from `place` on; fewer at the end of the file."""
        if not self.start <= place <= self.start + len(self.held):
            self._file.seek(place)
            self.start, self.held = place, b""
        while self.start + len(self.held) < place + length and (chunk := self._file.read(_CHUNK)):
            self.held, self.start = self.held[place - self.start :] + chunk, place
        return self.held[place - self.start : place - self.start + length]
