import pytest

from attncompare import errors
from attncompare.errors import AttnCompareError, Failure, UnknownNameError, unknown_name

NAMES = ["grad_cam", "saliency", "attention_rollout", "gradient_rollout"]
KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]


@pytest.mark.parametrize(
    ("typed", "meant"), [("gradcam", "grad_cam"), ("GradCAM", "grad_cam"), ("salency", "saliency")]
)
def test_a_misspelled_name_is_answered_with_the_right_one(typed, meant):
    message = str(unknown_name("method", typed, NAMES))
    assert message.startswith(f"unknown method {typed!r}; did you mean ")
    assert meant in message


def test_several_near_names_are_all_offered():
    message = str(unknown_name("method", "rollout", NAMES))
    assert "attention_rollout" in message and "gradient_rollout" in message


def test_a_name_near_nothing_is_answered_with_all_names_sorted():
    assert str(unknown_name("metric", "zzz", NAMES)) == f"unknown metric 'zzz'; known: {', '.join(sorted(NAMES))}"


def test_a_name_with_a_line_break_still_gives_one_line():
    assert "\n" not in str(unknown_name("method", "a\nb", NAMES))


def test_an_unknown_name_is_of_its_own_kind():
    assert type(unknown_name("method", "x", NAMES)) is UnknownNameError


def test_every_error_is_caught_as_the_packages_own():
    assert len(KINDS) >= 8
    assert all(issubclass(kind, AttnCompareError) for kind in KINDS)


OWN = {
    "AttnCompareError": ("error", True), "UnknownNameError": ("unknown_name", False),
    "UnsupportedModelError": ("unsupported_model", False), "UnsupportedMethodError": ("unsupported", False),
    "CaptureError": ("capture", False), "SpecError": ("spec", False), "ImageError": ("image", False),
    "ResultFormatError": ("format", True), "StorageError": ("storage", True),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_what_our_errors_come_to_is_told_by_their_class(kind):
    word, retry = OWN[kind.__name__]
    assert Failure.of(kind("ValueError: no")) == Failure(word, "ValueError: no", retry)


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (ValueError("sizes do not match\nat all"), "error", "sizes do not match (ValueError)"),
        (ValueError(), "error", "no message (ValueError)"),
        (RuntimeError("CaptureError: no"), "error", "CaptureError: no (RuntimeError)"),
        (MemoryError(), "memory", "no message (MemoryError)"),
        (RuntimeError("CUDA out of memory. Tried"), "memory", "CUDA out of memory. Tried (RuntimeError)"),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"), "memory", "CUBLAS_STATUS_ALLOC_FAILED (RuntimeError)"),
        (ValueError("out of memory"), "error", "out of memory (ValueError)"),
    ],
)
def test_an_error_from_elsewhere_may_not_come_up_again(error, kind, reason):
    assert Failure.of(error) == Failure(kind, reason, retry=True)
