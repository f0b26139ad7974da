import dataclasses

import pytest

from attncompare.errors import UnknownNameError
from attncompare.metrics.protocols import PROTOCOLS
from attncompare.metrics.user_protocols import fingerprint, get_protocol

PUBLISHED = {
    "rise": (1, "df4701ed"),
    "rise-fast": (1, "8c841e84"),
    "grid14": (1, "d6cf3f27"),
    "chefer": (1, "eb0e49da"),
    "srg": (1, "bc0e1704"),
}


@pytest.mark.parametrize(
    ("name", "size", "steps"),
    [
        ("rise", (224, 224), 224),
        ("rise", (64, 64), 19),  # 4096 / 224 = 18.3
        ("rise", (384, 224), 384),
        ("rise", (8, 8), 1),
        ("rise-fast", (224, 224), 28),
        ("rise-fast", (64, 64), 19),
        ("grid14", (224, 224), 28),
        ("grid14", (64, 64), 28),
        ("chefer", (224, 224), 10),
        ("srg", (64, 64), 28),
    ],
)
def test_number_of_steps(name, size, steps):
    assert get_protocol(name).count(size) == steps


@pytest.mark.parametrize(
    ("name", "cells", "deletion", "insertion"),
    [
        ("rise", None, "mean", "blur"),
        ("rise-fast", None, "mean", "blur"),
        ("grid14", 14, "blur", "blur"),
        ("chefer", None, "black", None),
        ("srg", 14, "mean", None),
    ],
)
def test_units_and_baselines(name, cells, deletion, insertion):
    protocol = get_protocol(name)
    assert (protocol.cells, protocol.deletion, protocol.insertion) == (cells, deletion, insertion)


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_a_protocol_cannot_be_changed(name):
    protocol = get_protocol(name)
    with pytest.raises(dataclasses.FrozenInstanceError):
        protocol.steps = 3


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_a_description_holds_every_choice(name):
    protocol = get_protocol(name)
    assert protocol.describe() == {field.name: getattr(protocol, field.name) for field in dataclasses.fields(protocol)}
    assert protocol.describe()["name"] == name


def test_no_two_protocols_are_described_alike():
    described = [{k: v for k, v in p.describe().items() if k != "name"} for p in PROTOCOLS.values()]
    assert all(described.count(one) == 1 for one in described)


def test_an_unknown_protocol_is_refused_with_the_nearest_names():
    with pytest.raises(UnknownNameError, match=r"^unknown protocol 'risefast'; did you mean rise-fast"):
        get_protocol("risefast")


def test_chefers_points_are_the_first_ten_tenths():
    assert get_protocol("chefer").shares((224, 224)).tolist() == [k / 10 for k in range(10)]
    assert get_protocol("chefer").score == "argmax"
    assert {protocol.score for name, protocol in PROTOCOLS.items() if name != "chefer"} == {"probability"}


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_a_published_protocol_keeps_its_definition(name):
    """Fails when a choice changes: then raise the version, say so in docs/protocols.md, and store the new fingerprint."""
    assert (PROTOCOLS[name].version, fingerprint(PROTOCOLS[name])) == PUBLISHED[name]
