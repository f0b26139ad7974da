"""A short run of benchmarks/fuzz.py: damaged files and specs end in a result or an error of this package."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import fuzz

KINDS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


@pytest.fixture(scope="module")
def found():
    return fuzz.fuzz(600, seed=5)


def test_every_case_ends_in_a_result_or_an_error_of_this_package(found):
    assert found.finds == {}
    assert found.outcomes.total() == 600


def test_the_cases_reach_behind_the_first_check(found):
    assert all(found.outcomes[f"{kind}: read"] and found.outcomes[f"{kind}: refused"] for kind in KINDS)
    assert found.outcomes["spec: valid"] and found.outcomes["spec: SpecError"]


def test_a_case_can_be_run_again_alone(found):
    assert fuzz.fuzz(1, seed=5, first=42).outcomes == fuzz.fuzz(1, seed=5, first=42).outcomes


def test_what_should_not_happen_is_found(monkeypatch):
    monkeypatch.setattr(fuzz, "read_image", lambda path: 1 / 0)
    broken = fuzz.fuzz(3, seed=5)
    assert [key.partition(" at ")[0] for key in broken.finds] == ["ZeroDivisionError"]
    assert broken.outcomes.total() == 3
