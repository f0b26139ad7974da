"""A run that no model made, shared by the tests of figures and tables."""

from pathlib import Path

import pytest
from references.synthetic_run import synthetic_run


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory) -> Path:
    """The folder of a run from formulas alone: leave it as found."""
    return synthetic_run(tmp_path_factory.mktemp("synthetic"))
