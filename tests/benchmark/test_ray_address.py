"""An address where no Ray cluster listens is refused at once; Ray itself would try for minutes."""

import socket

import pytest

from attncompare.benchmark.engines.ray import _check_answers
from attncompare.errors import SpecError


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_an_address_that_nobody_answers_at_is_refused(form):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused, and nobody else can take it
        with pytest.raises(SpecError, match=r"no Ray cluster answers .*ray start --head"):
            _check_answers(form.format(taken.getsockname()[1]))


def test_an_address_that_answers_passes():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        _check_answers(f"127.0.0.1:{listening.getsockname()[1]}")
    _check_answers("auto")


def test_a_port_that_does_not_exist_is_refused():
    with pytest.raises(SpecError, match="no Ray cluster answers"):
        _check_answers("127.0.0.1:99999")
