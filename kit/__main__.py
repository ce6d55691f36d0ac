"""`python3 -m kit`: starts on any Python 3, sets the environment up where it must, and runs the command.

This file and kit/__init__.py stay readable for old Pythons, which otherwise would
show a syntax error in place of the one sentence they need.
"""

import os
import sys

# `-m` puts the current folder first, where a bundle from a stranger may hold a json.py: nothing is imported from it.
_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if sys.path and os.path.abspath(sys.path[0] or os.curdir) != _HERE and sys.path[0] in ("", os.getcwd()):
    del sys.path[0]


def main(argv=None):
    """Runs one command line and returns its exit code."""
    if sys.version_info < (3, 11):
        found = ".".join(str(part) for part in sys.version_info[:3])
        sys.stderr.write(
            "Python %s was found (%s).\nExpected: Python 3.11 or newer.\n"
            "To do: install one and run it by name, for example `python3.12 -m kit report`.\n" % (found, sys.executable)
        )
        return 2
    from kit.cli import main as run
    from kit.process import begin_proof

    begin_proof()
    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
