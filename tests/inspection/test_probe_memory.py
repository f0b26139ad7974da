"""The probe's memory: of what goes through a model the trace keeps notes, and one image's pass is kept for its gradients."""

import gc

import torch
from torch import Tensor, nn

from attncompare.inspection.calls import BATCH
from attncompare.inspection.features import find_candidates
from attncompare.inspection.graph import Graph
from attncompare.inspection.spatial import Changes
from attncompare.inspection.trace import Trace
from attncompare.models.adapter import ModelSource
from attncompare.models.preprocessing import Preprocessing
from attncompare.models.sources import timm as timm_source


def _held() -> int:
    """Bytes of all tensors that are alive; those that an export of another test leaves stand for shapes and hold nothing."""
    gc.collect()
    alive = (found for found in gc.get_objects() if type(found) in (Tensor, nn.Parameter))
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in alive}
    return sum(storages.values())


def _returned(source: ModelSource) -> int:
    """Bytes of all that the modules return for the images of the probe."""
    sizes: list[int] = []

    def note(module: nn.Module, args: object, output: Tensor) -> None:
        sizes.append(output.numel() * output.element_size())

    handles = [module.register_forward_hook(note) for module in source.module.modules()]
    with torch.no_grad():
        source.module(torch.zeros(BATCH, 3, *source.preprocessing.size))
    for handle in handles:
        handle.remove()
    return sum(sizes)


def test_the_trace_and_the_changes_hold_a_small_share_of_what_went_through():
    source = timm_source.load("resnet18", random=True)
    total, before = _returned(source), _held()
    trace = Trace(source)
    assert len(trace.calls) > 60
    assert _held() - before < total / 50
    changes = Changes(trace, find_candidates(trace))
    assert changes.shares
    assert _held() - before < total / 50


def test_the_graph_is_that_of_one_image_and_agrees_with_the_trace():
    source = timm_source.load("test_vit", random=True)
    trace = Trace(source)
    graph = Graph(trace)
    assert graph.logits.shape == (1, 1000)
    for call in trace.calls:
        assert graph.steps[call.path, call.run].output.shape == (1, *call.output.shape[1:])
    assert torch.allclose(graph.logits, trace.logits[:1], atol=1e-5)


class _Rewritten(nn.Module):
    """Writes into its input, twice through the same module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.head = nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(inplace=True), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(x))
        return self.head(self.act(x - 0.1).mean((2, 3)))


def test_a_tensor_keeps_its_number_when_something_is_written_into_it_and_a_run_its_own():
    torch.manual_seed(0)
    trace = Trace(ModelSource("mine", _Rewritten().eval(), Preprocessing((16, 16))))
    conv, first, second, head = trace.calls
    assert [call.path for call in trace.calls] == ["conv", "act", "act", "head"]
    assert conv.output.number == first.output.number
    assert first.output.number != second.output.number
    assert (first.run, second.run, trace.runs["act"]) == (0, 1, 2)
    assert head.input is not None and head.input.values is not None and head.input.shape == (BATCH, 4)
