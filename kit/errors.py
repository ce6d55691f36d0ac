"""The errors that a person can cause, and the exit code each one ends in.

    KitError                  5  our own mistake, unless a subclass says otherwise
    ├── UsageError            2  a wrong argument, parameter, path or file
    ├── GpuNotUsable          1  the GPU was asked for and cannot be used
    ├── SetupFailed           1  the packages could not be installed
    ├── TrainingFailed        1  training broke: out of memory, a loss that is not finite
    └── BundleInvalid         4  a bundle that is broken, edited or unsafe

Every message has three parts: what was found, what was expected, what to do.
"""

import errno
from typing import Any

EXIT_PASS = 0
EXIT_FAIL = 1
EXIT_USAGE = 2
EXIT_INCONCLUSIVE = 3
EXIT_INVALID = 4
EXIT_INTERNAL = 5
EXIT_SIGINT = 130


class KitError(Exception):
    """An error with a cause, an expectation and a remedy; `str()` joins the three.

    diagnosis: one word of `kit.gpu.diagnose.DIAGNOSES` where the error is such a finding.
    """

    exit_code = EXIT_INTERNAL

    def __init__(self, found: str, *, expected: str = "", todo: str = "", diagnosis: str | None = None) -> None:
        self.found, self.expected, self.todo, self.diagnosis = found, expected, todo, diagnosis
        parts = [found, f"Expected: {expected}" if expected else "", f"To do: {todo}" if todo else ""]
        super().__init__("\n".join(part for part in parts if part))

    @property
    def record(self) -> dict[str, Any]:
        """The one JSON object that --json prints for it: the verdict where the error is one, and the three parts."""
        verdict = {EXIT_FAIL: "FAIL", EXIT_INCONCLUSIVE: "INCONCLUSIVE", EXIT_INVALID: "INVALID"}.get(self.exit_code)
        error = {"found": self.found, "expected": self.expected, "todo": self.todo}
        return {"verdict": verdict, "diagnosis": self.diagnosis, "error": error}

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows in place of a traceback: the three parts."""
        return [type(self).__name__, *str(self).splitlines()]


class UsageError(KitError):
    exit_code = EXIT_USAGE


class GpuNotUsable(KitError):
    exit_code = EXIT_FAIL


class SetupFailed(KitError):
    exit_code = EXIT_FAIL


class TrainingFailed(KitError):
    exit_code = EXIT_FAIL


class BundleInvalid(KitError):
    exit_code = EXIT_INVALID


# A full or read-only disk, a folder of somebody else, a path that leads through a file.
_UNWRITABLE = {"ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "ENOTDIR", "EISDIR", "EEXIST", "ENAMETOOLONG"}


def is_unwritable(error: OSError) -> bool:
    """Whether it is the person's disk that refuses, and no mistake of the kit."""
    return errno.errorcode.get(error.errno or 0) in _UNWRITABLE


def unwritable(path: object, error: OSError) -> UsageError:
    """What every part of the kit says where it cannot write."""
    return UsageError(
        f"{path} cannot be written: {error.strerror}",
        expected="a place you may write to",
        todo="free space there or name another place",
    )
