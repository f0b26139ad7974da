"""One signal on its own, whatever it costs."""

from attncompare.capture.counting_forward import CountingForward
from attncompare.capture.extra_pass import ExtraPass
from attncompare.capture.forward_pass import record
from attncompare.state import frozen_eval


def supply(model, signal, images, target):
    """The value of an extra signal, and the forward and backward passes per image that it made."""
    taken = signal.takes(model, target)
    recorded = record(model, images, taken, target)
    counted = CountingForward(model, recorded.score)
    extra = ExtraPass(model, images, recorded, counted)
    with frozen_eval(model.module, graph=True):
        value = signal.run(extra)
    return value, counted.seen_forward / len(images), counted.seen_backward / len(images)
