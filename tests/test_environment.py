import json

import pytest
import torch

import attncompare as ac
from attncompare.environment import LIBRARIES, commit, environment, gpu_name, thread_count


def test_the_environment_is_what_json_can_hold_and_names_every_library():
    found = environment("cpu")
    assert json.loads(json.dumps(found)) == found
    assert set(LIBRARIES) <= set(found["versions"]) and found["versions"]["torch"][0].isdecimal()
    assert (found["device"], found["gpu"], found["threads"]) == ("cpu", "", torch.get_num_threads())


def test_a_library_that_is_not_installed_is_named_as_such(monkeypatch):
    monkeypatch.setattr("attncompare.environment.LIBRARIES", ("no-such-library",))
    assert environment("cpu")["versions"]["no-such-library"] == "not installed"


def test_only_cuda_devices_are_asked_for_their_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"name of {device}")
    assert (gpu_name("cpu"), gpu_name("mps"), gpu_name("cuda:1")) == ("", "", "name of cuda:1")


def test_the_package_names_its_own_version_and_commit():
    found = environment("cpu")
    assert (found["versions"]["attncompare"], found["commit"]) == (ac.__version__, commit())


@pytest.mark.parametrize("threads", [None, 1, 3])
def test_the_number_of_threads_is_restored_after_an_error_too(threads):
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), thread_count(threads):
        assert torch.get_num_threads() == (threads or before)
        raise ZeroDivisionError
    assert torch.get_num_threads() == before
