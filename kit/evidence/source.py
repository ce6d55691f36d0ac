"""A bundle that came from a stranger, as a read-only mapping of names to bytes: a folder, a zip or a tar.gz.

Nothing is followed, extracted or trusted: links, devices, odd names, bombs and sizes over
the limits are refused before a byte of content is read, and all problems are told at once.
"""

import contextlib
import functools
import gzip
import hashlib
import io
import os
import re
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from kit.errors import BundleInvalid
from kit.evidence.manifest import MANIFEST, MAX_FILE_BYTES, MAX_FILES, MAX_TOTAL_BYTES, Entry, check_json_size
from kit.records import loads
from kit.units import MiB, memory

_REPARSE_POINT = 0x400
# What Finder and Explorer leave in a folder that they open or pack.
_LITTER = re.compile(r"(.*/)?(\.DS_Store|\._[^/]*|Thumbs\.db|desktop\.ini)|__MACOSX/.*", re.IGNORECASE)
_AGAIN = "zip the folder again, as `zip -r` and file managers do (Deflate, no password), or verify the folder itself"
_LINK = "is a link or a device"
# What a broken archive makes of being read: each module has errors of its own.
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, struct.error, zlib.error, EOFError, RuntimeError, ValueError, OSError)

# A file as its packing tells of it: name, size, what speaks against it, and how it is opened.
Member = tuple[str, int, str, Callable[[], Any]]


class Source(Mapping[str, bytes]):
    """The files of a bundle. Reading one is bounded by its declared size; nothing is cached but hashes.

    aside: how many files of a file manager were left out.
    """

    def __init__(self, where: str, members: Iterable[Member]) -> None:
        self.where, self.aside, problems = where, 0, []
        self._opened = contextlib.ExitStack()
        found: dict[str, tuple[int, Callable[[], Any]]] = {}
        folded: dict[str, str] = {}
        for name, size, problem, opening in members:
            if len(found) + self.aside >= MAX_FILES:
                raise _refused([f"more than {MAX_FILES} files"])
            if _LITTER.fullmatch(name):
                self.aside += 1
                continue
            other = folded.setdefault(name.casefold(), name)
            wrong = {
                f"{name[:200]!r} {problem}": bool(problem),
                f"{name!r} stands twice": name in found,
                f"{name!r} and {other!r} differ only in case": other != name,
                f"unsafe name {name[:200]!r}": not is_safe(name),
                f"{name!r} has {memory(size)}, over {memory(MAX_FILE_BYTES)}": size > MAX_FILE_BYTES,
            }
            problems += [words for words, is_so in wrong.items() if is_so]
            found[name] = size, opening
        if sum(size for size, _ in found.values()) > MAX_TOTAL_BYTES:
            problems.append(f"more than {memory(MAX_TOTAL_BYTES)} in all")
        if problems:
            raise _refused(problems)
        # Packing may put the folder's name before every file.
        top = next((name for name in found if re.fullmatch(rf"[^/]+/{re.escape(MANIFEST)}", name)), MANIFEST)
        prefix = top.removesuffix(MANIFEST) if where != "folder" and MANIFEST not in found else ""
        prefix = prefix if all(name.startswith(prefix) for name in found) else ""
        self._members = {name.removeprefix(prefix): member for name, member in found.items()}
        self.sizes = {name: size for name, (size, _) in self._members.items()}
        self.entry = functools.cache(self._entry)

    def close(self) -> None:
        self._opened.close()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.sizes))

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, name: str) -> bytes:
        return b"".join(self._blocks(name))

    def _entry(self, name: str) -> Entry:
        """The file's size and hash, read in blocks once."""
        digest = hashlib.sha256()
        for block in self._blocks(name):
            digest.update(block)
        return Entry(name, self.sizes[name], digest.hexdigest())

    def json(self, name: str) -> object:
        """The file as strict JSON within the limits. Raises ValueError with what is wrong."""
        data = self[name]
        check_json_size(data)
        return loads(data.decode("utf-8"))

    def _blocks(self, name: str) -> Iterator[bytes]:
        """The file's bytes, and an error where it has more or fewer than it says."""
        left, opening = self._members[name]
        try:
            with opening() as file:
                for block in _bounded(file, left):
                    left -= len(block)
                    yield block
        except _BROKEN as error:
            raise _refused([f"{name!r} cannot be read ({error})"]) from None
        if left:
            raise _refused([f"{name!r} is not as long as it says"])


def open_source(path: Path) -> Source:
    """The bundle at `path`. Raises BundleInvalid where it is unsafe, or no folder, zip or tar."""
    info = path.lstat()
    if _is_link(info) or not (stat.S_ISDIR(info.st_mode) or stat.S_ISREG(info.st_mode)):
        raise _refused([f"it {_LINK}"])
    with contextlib.ExitStack() as opened:
        try:
            if stat.S_ISDIR(info.st_mode):
                return Source("folder", _in_folder(path, ""))
            file = opened.enter_context(_Short(path))
            is_tar = file.read(2) == b"\x1f\x8b"
            source = Source(*(("tar.gz", _tar(path, opened)) if is_tar else ("zip", _zip(file))))
        except _BROKEN as error:
            raise BundleInvalid(
                f"{path.name} is not a bundle: not a folder and not a zip or tar.gz that can be read ({error})",
                expected="a folder or a zip that `kit report` wrote",
            ) from None
        source._opened = opened.pop_all()
        return source


def is_safe(name: str) -> bool:
    """Whether `name` is a plain relative path on every system; whether it belongs here is told later."""
    part = r'(?!\.\.?/|\.\.?$)[^/\\:*?"<>|\x00-\x1f\x7f]*[^/\\:*?"<>|\x00-\x1f\x7f. ]'
    return len(name) <= 240 and re.fullmatch(rf"{part}(/{part}){{0,4}}", name) is not None


def _in_folder(folder: Path, prefix: str) -> Iterator[Member]:
    with os.scandir(folder) as rows:
        for row in rows:
            name, info = prefix + row.name, row.stat(follow_symlinks=False)
            is_link = _is_link(info) or not (stat.S_ISDIR(info.st_mode) or stat.S_ISREG(info.st_mode))
            if is_link or stat.S_ISREG(info.st_mode):
                problem = _LINK if is_link else "has a second hard link" if info.st_nlink > 1 else ""
                yield name, info.st_size, problem, functools.partial(_regular, folder / row.name)
            elif name.count("/") >= 4:
                raise _refused([f"{name!r} is nested too deeply"])
            else:
                yield from _in_folder(folder / row.name, name + "/")


def _regular(path: Path) -> IO[bytes]:
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = open(os.open(path, flags), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        raise ValueError("it changed while it was read")
    return file


def _is_link(info: os.stat_result) -> bool:
    """A symbolic link, or on Windows a junction or another reparse point."""
    return stat.S_ISLNK(info.st_mode) or bool(getattr(info, "st_file_attributes", 0) & _REPARSE_POINT)


class _Short(io.FileIO):
    """A file of which nobody reads much at once: `zipfile` would load a list of files of any length."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > 4 * MiB:
            raise ValueError("its list of files is too long")
        return super().read(size) or b""


def _zip(file: IO[bytes]) -> Iterator[Member]:
    archive = zipfile.ZipFile(file)
    for info in archive.infolist():
        name = info.orig_filename.removeprefix("./")
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            odd = f"{name[:200]!r} is encrypted or packed in an unusual way"
            raise BundleInvalid(odd, expected="a plain zip", todo=_AGAIN)
        if not info.is_dir():
            problem = _LINK if info.external_attr >> 28 not in (0, 8) else ""
            yield name, info.file_size, problem, functools.partial(archive.open, info)


def _tar(path: Path, opened: contextlib.ExitStack) -> Iterator[Member]:
    """Unpacked once into a nameless temporary file, so that its members can be read in any order."""
    unpacked = opened.enter_context(tempfile.TemporaryFile())
    with gzip.open(path) as file:
        unpacked.writelines(_bounded(file, MAX_TOTAL_BYTES + MAX_FILES * 1024 + MiB))
    unpacked.seek(0)
    archive = tarfile.open(fileobj=unpacked, mode="r:")
    for info in archive:
        if not info.isdir():
            opening = functools.partial(archive.extractfile, info)
            yield info.name.removeprefix("./"), info.size, "" if info.isfile() else _LINK, opening


def _bounded(file: Any, most: int) -> Iterator[bytes]:
    """Blocks of `file`, and an error where it has more than `most` bytes."""
    while block := file.read(MiB):
        most -= len(block)
        if most < 0:
            raise ValueError("it is longer than it says")
        yield block


def _refused(problems: list[str]) -> BundleInvalid:
    more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
    return BundleInvalid(
        f"the bundle is unsafe: {'; '.join(problems[:5])}{more}",
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
