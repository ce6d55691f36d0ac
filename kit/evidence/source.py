"""A bundle that came from a stranger, as a read-only mapping of names to bytes: a folder, a zip or a tar.gz.

Nothing is followed, extracted or trusted: links, devices, odd names, bombs and sizes over
the limits are refused before a byte of content is read, and all problems are told at once.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO

from kit.errors import BundleInvalid
from kit.evidence.manifest import MANIFEST, MAX_FILE_BYTES, MAX_FILES, MAX_TOTAL_BYTES, Entry, check_json_size
from kit.records import loads
from kit.units import MiB, memory

_REPARSE_POINT = 0x400
# What Finder and Explorer leave in a folder that they open or pack.
_LITTER = re.compile(r"(.*/)?(\.DS_Store|\._[^/]*|Thumbs\.db|desktop\.ini)|__MACOSX/.*", re.IGNORECASE)
_AGAIN = "zip the folder again, as `zip -r` and file managers do (Deflate, no password), or verify the folder itself"


class Source(Mapping[str, bytes]):
    """The files of a bundle. Reading one is bounded by its declared size; nothing is cached but hashes.

    aside: how many files of a file manager were left out.
    """

    def __init__(self, found: _Found, where: str) -> None:
        self.sizes, self.where, self.aside = found.checked(), where, found.aside
        self._entries: dict[str, Entry] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.sizes))

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, name: str) -> bytes:
        if name not in self.sizes:
            raise KeyError(name)
        return b"".join(self._blocks(name))

    def entry(self, name: str) -> Entry:
        """The file's size and hash, read in blocks once."""
        if name not in self._entries:
            digest, size = hashlib.sha256(), 0
            for block in self._blocks(name):
                digest.update(block)
                size += len(block)
            self._entries[name] = Entry(name, size, digest.hexdigest())
        return self._entries[name]

    def json(self, name: str) -> object:
        """The file as strict JSON within the limits. Raises ValueError with what is wrong."""
        data = self[name]
        check_json_size(data)
        return loads(data.decode("utf-8"))

    def _blocks(self, name: str) -> Iterator[bytes]:
        raise NotImplementedError

    def close(self) -> None:
        """Nothing stays open by default."""


class _Folder(Source):
    def __init__(self, path: Path) -> None:
        self._path = path
        found = _Found()
        _walk(path, "", found)
        super().__init__(found, "folder")

    def _blocks(self, name: str) -> Iterator[bytes]:
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        with open(os.open(self._path / PurePosixPath(name), flags), "rb") as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode) or info.st_size != self.sizes[name]:
                raise _refused([f"{name!r} changed while it was read"])
            yield from _bounded(file, self.sizes[name], name)


class _Packed(Source):
    """A zip or a tar: its members by their names in the bundle, without the folder that packing put before them."""

    def __init__(self, archive: zipfile.ZipFile | tarfile.TarFile, found: _Found, members: dict, where: str) -> None:
        self._archive = archive
        top = next((name for name in members if PurePosixPath(name).name == MANIFEST and name.count("/") == 1), None)
        prefix = top.removesuffix(MANIFEST) if top and MANIFEST not in members else ""
        if all(name.startswith(prefix) for name in members):
            members = {name[len(prefix) :]: member for name, member in members.items()}
            found.sizes = {name[len(prefix) :]: size for name, size in found.sizes.items()}
        self._members = members
        try:
            super().__init__(found, where)
        except BundleInvalid:
            self.close()
            raise

    def _blocks(self, name: str) -> Iterator[bytes]:
        archive, member = self._archive, self._members[name]
        try:
            file = archive.open(member) if isinstance(archive, zipfile.ZipFile) else archive.extractfile(member)
            if file is None:
                raise ValueError("no file")
            with file:
                yield from _bounded(file, self.sizes[name], name)
        except (
            zipfile.BadZipFile,
            tarfile.TarError,
            zlib.error,
            EOFError,
            RuntimeError,
            NotImplementedError,
            ValueError,
        ) as error:
            raise _refused([f"{name!r} cannot be unpacked ({error})"]) from None

    def close(self) -> None:
        self._archive.close()
        if isinstance(self._archive, tarfile.TarFile):
            self._archive.fileobj.close()


class _Found:
    """Collects names, sizes and problems; all problems are told at once."""

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self.problems: list[str] = []
        self.unusual: list[str] = []
        self.aside = 0
        self._folded: dict[str, str] = {}

    def add(self, name: str, size: int) -> bool:
        """Whether the file counts; what a file manager left behind does not."""
        if len(self.sizes) + self.aside >= MAX_FILES:
            raise _refused([f"more than {MAX_FILES} files"])
        if _LITTER.fullmatch(name):
            self.aside += 1
            return False
        if name in self.sizes:
            self.problems.append(f"{name!r} stands twice")
        elif name.casefold() in self._folded:
            self.problems.append(f"{name!r} and {self._folded[name.casefold()]!r} differ only in case")
        if not is_safe(name):
            self.problems.append(f"unsafe name {name[:200]!r}")
        if size > MAX_FILE_BYTES:
            self.problems.append(f"{name!r} has {memory(size)}, over {memory(MAX_FILE_BYTES)}")
        self.sizes[name] = size
        self._folded[name.casefold()] = name
        return True

    def checked(self) -> dict[str, int]:
        if sum(self.sizes.values()) > MAX_TOTAL_BYTES:
            self.problems.append(f"more than {memory(MAX_TOTAL_BYTES)} in all")
        if self.problems:
            raise _refused(self.problems)
        if self.unusual:
            raise BundleInvalid("; ".join(self.unusual[:5]), expected="a plain zip", todo=_AGAIN)
        return self.sizes


def open_source(path: Path) -> Source:
    """The bundle at `path`. Raises BundleInvalid where it is unsafe, or no folder, zip or tar."""
    info = path.lstat()
    if stat.S_ISDIR(info.st_mode) and not _is_link(info):
        return _Folder(path)
    if not stat.S_ISREG(info.st_mode) or _is_link(info):
        raise _refused(["it is a link or a device"])
    try:
        with path.open("rb") as file:
            is_tar = file.read(2) == b"\x1f\x8b"
        return _tar(path) if is_tar else _zip(path)
    except (zipfile.BadZipFile, struct.error, tarfile.TarError, zlib.error, OSError, EOFError, ValueError) as error:
        raise BundleInvalid(
            f"{path.name} is not a bundle: not a folder and not a zip or tar.gz that can be read ({error})",
            expected="a folder or a zip that `kit report` wrote",
        ) from None


def is_safe(name: str) -> bool:
    """Whether `name` is a plain relative path on every system; whether it belongs here is told later."""
    part = r'(?!\.\.?/|\.\.?$)[^/\\:*?"<>|\x00-\x1f\x7f]*[^/\\:*?"<>|\x00-\x1f\x7f. ]'
    return len(name) <= 240 and re.fullmatch(rf"{part}(/{part}){{0,4}}", name) is not None


def _walk(folder: Path, prefix: str, found: _Found) -> None:
    with os.scandir(folder) as rows:
        for row in rows:
            name, info = prefix + row.name, row.stat(follow_symlinks=False)
            if _is_link(info) or not (stat.S_ISDIR(info.st_mode) or stat.S_ISREG(info.st_mode)):
                found.problems.append(f"{name!r} is a link or a device")
            elif stat.S_ISDIR(info.st_mode):
                if name.count("/") >= 4:
                    raise _refused([f"{name!r} is nested too deeply"])
                _walk(folder / row.name, name + "/", found)
            elif info.st_nlink > 1:
                found.problems.append(f"{name!r} has a second hard link")
            else:
                found.add(name, info.st_size)


def _is_link(info: os.stat_result) -> bool:
    """A symbolic link, or on Windows a junction or another reparse point."""
    return stat.S_ISLNK(info.st_mode) or bool(getattr(info, "st_file_attributes", 0) & _REPARSE_POINT)


def _zip(path: Path) -> Source:
    _check_directory_size(path)
    archive, found, members = zipfile.ZipFile(path), _Found(), {}
    for info in archive.infolist():
        name = info.orig_filename.removeprefix("./")
        if info.is_dir() or not found.add(name, info.file_size):
            continue
        if info.external_attr >> 28 not in (0, 8):
            found.problems.append(f"{name[:200]!r} is a link or a device")
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            found.unusual.append(f"{name[:200]!r} is encrypted or packed in an unusual way")
        members[name] = info
    return _Packed(archive, found, members, "zip")


def _check_directory_size(path: Path) -> None:
    """Reads the end record by hand, since `zipfile` loads a list of any length (PKWARE APPNOTE 4.3.16)."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 65_558))
        tail = file.read()
    at = len(tail) - 22 if tail[-22:-18] == b"PK\5\6" and tail[-2:] == b"\0\0" else tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) < at + 22:
        raise zipfile.BadZipFile("no end record")
    count, directory_bytes = struct.unpack("<HI", tail[at + 10 : at + 16])
    if count > MAX_FILES or directory_bytes > 4 * MiB or tail[at - 20 : at - 16] == b"PK\6\7":
        raise _refused([f"its list of files is too long ({count} entries, {directory_bytes} bytes)"])


def _tar(path: Path) -> Source:
    """Unpacked once into a nameless temporary file, so that its members can be read in any order."""
    with contextlib.ExitStack() as stack:
        unpacked, found, members = stack.enter_context(tempfile.TemporaryFile()), _Found(), {}
        unpack, left = zlib.decompressobj(wbits=31), MAX_TOTAL_BYTES + MAX_FILES * 1024 + MiB
        with path.open("rb") as file:
            while block := unpack.unconsumed_tail or file.read(MiB):
                block = unpack.decompress(block, MiB)
                unpacked.write(block)
                left -= len(block)
                if left < 0:
                    raise _refused([f"more than {memory(MAX_TOTAL_BYTES)} in all"])
        unpacked.seek(0)
        archive = tarfile.open(fileobj=unpacked, mode="r:")
        for info in archive:
            name = info.name.removeprefix("./")
            if info.isdir() or (info.isfile() and not found.add(name, info.size)):
                continue
            if not info.isfile():
                found.problems.append(f"{name[:200]!r} is a link or a device")
            members[name] = info
        stack.pop_all()
    return _Packed(archive, found, members, "tar.gz")


def _bounded(file: IO[bytes], size: int, name: str) -> Iterator[bytes]:
    """Blocks of `file` up to its declared size, and an error where it has more or fewer bytes."""
    left = size
    while block := file.read(min(MiB, left + 1)):
        left -= len(block)
        if left < 0:
            break
        yield block
    if left:
        raise _refused([f"{name!r} is not as long as it says"])


def _refused(problems: list[str]) -> BundleInvalid:
    more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
    return BundleInvalid(
        "the bundle is unsafe: " + "; ".join(problems[:5]) + more,
        expected="plain files with plain names within the limits",
        todo="do not unpack it; ask its author for a bundle as `kit report` wrote it",
    )


@functools.cache
def kit_sha256() -> str:
    """One hash over the sources of this kit, the same on every system: a report names the one that made it."""
    project, digest = Path(__file__).resolve().parents[2], hashlib.sha256()
    for path in sorted((project / "kit").rglob("*.py")):
        digest.update(f"{path.relative_to(project).as_posix()}\0".encode())
        digest.update(path.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()
