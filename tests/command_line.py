"""The command line, run by tests."""

import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest

from attncompare.cli import main


def run(*arguments):
    """The command line in this process: importing torch anew for every call would take most of the time."""
    out, errors = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, ["attncompare", *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(errors), pytest.raises(SystemExit) as stopped:
            main()
    finally:
        sys.argv = before
    return subprocess.CompletedProcess(arguments, stopped.value.code, out.getvalue(), errors.getvalue())
