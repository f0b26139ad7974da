"""What a layer returns, whatever its shape: recorded, or in the graph that leads to it from the images."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

from torch import Tensor, nn

from attncompare.errors import CaptureError
from attncompare.inspection.trace import first_tensor
from attncompare.models.adapter import ModelAdapter, resolve_layer
from attncompare.state import frozen_eval


class _Reached(BaseException):
    """Ends a forward pass at a layer; no `except Exception` of a model's own may catch it."""


def _tensor_of(path: str, output: object, alone: bool = False) -> Tensor:
    found = first_tensor(output)
    if found is None or (alone and found is not output):
        raise CaptureError(f"layer {path!r} returns {type(output).__name__}, a tensor of floats is needed")
    return found


def layer_outputs(
    adapter: ModelAdapter, images: Tensor, paths: Sequence[str], *, alone: bool = False
) -> dict[str, Tensor]:
    """Layer -> its output on images (B,3,H,W), detached; one forward pass for all of them.

    Of a layer that returns several tensors, the first, unless it must return one `alone`. Raises UnknownNameError for a
    layer that does not exist, CaptureError for one that does not run exactly once or returns no tensor.
    """
    found: dict[str, Tensor] = {}
    with ExitStack() as stack:
        stack.enter_context(frozen_eval(adapter.module, graph=False))
        for path in paths:

            def keep(module: nn.Module, args: object, output: object, path: str = path) -> None:
                if path in found:
                    raise CaptureError(
                        f"layer {path!r} runs several times in a pass; which run is meant is not defined"
                    )
                found[path] = _tensor_of(path, output, alone).clone()  # what comes next may write into it

            layer = adapter.module.get_submodule(resolve_layer(adapter, path))
            stack.callback(layer.register_forward_hook(keep).remove)
        adapter.forward(images)
    for path in paths:
        if path not in found:
            raise CaptureError(f"layer {path!r} did not run in the forward pass")
    return found


@contextmanager
def run_up_to(adapter: ModelAdapter, path: str) -> Iterator[Callable[[Tensor], Tensor]]:
    """A function of images (B,3,H,W) that runs the model up to a layer and returns the layer's output with its graph.

    The model is in evaluation mode with frozen parameters inside the block, and left as found after it.

    >>> import torch; import attncompare as ac
    >>> with run_up_to(ac.load_model("demo/vit"), "blocks.2") as features:
    ...     features(torch.rand(1, 3, 64, 64)).shape
    torch.Size([1, 65, 128])
    """
    layer = adapter.module.get_submodule(resolve_layer(adapter, path))
    reached: list[Tensor] = []

    def stop(module: nn.Module, args: object, output: object) -> None:
        reached.append(_tensor_of(path, output))
        raise _Reached

    def features(images: Tensor) -> Tensor:
        with suppress(_Reached):
            adapter.forward(images)
        if not reached:
            raise CaptureError(f"layer {path!r} did not run in the forward pass")
        return reached.pop()

    with frozen_eval(adapter.module, graph=True):
        handle = layer.register_forward_hook(stop)
        try:
            yield features
        finally:
            handle.remove()
