"""How far a reader must go to follow one call: the package's own functions that it runs, and the files they lie in."""

import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import attncompare as ac

PACKAGE = Path(ac.__file__).parent
MOST_CALLS, MOST_CHANGES, MOST_FILES = 55, 28, 13


def steps(run):
    """The files of the package's named functions, in the order of their calls."""
    files = []

    def note(frame, event, argument):
        code = frame.f_code
        if event == "call" and PACKAGE in Path(code.co_filename).parents and not code.co_name.startswith("<"):
            files.append(code.co_filename)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(before)
    return files


@pytest.mark.parametrize("name", ["demo/cnn", "demo/vit"])
def test_a_reader_can_follow_one_grad_cam(name):
    model = ac.load_model(name)
    images = torch.rand(2, 3, *model.size)
    ac.explain_together(model, ["grad_cam"], images)  # the first call checks the logits, and imports
    files = steps(lambda: ac.explain_together(model, ["grad_cam"], images))
    changes = sum(one != other for one, other in pairwise(files))
    assert len(files) <= MOST_CALLS
    assert changes <= MOST_CHANGES
    assert len(set(files)) <= MOST_FILES
