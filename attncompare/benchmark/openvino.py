"""OpenVINO for the forward passes of scores: the same float32 network, its layers fused for the CPU. An extra, opt-in.

A network is exported (torch.export), not traced: control flow that depends on an image is refused instead of frozen.
"""

import sys
import warnings
from collections.abc import Callable
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from attncompare.errors import SpecError, UnsupportedModelError, reason_of
from attncompare.models.adapter import ModelAdapter
from attncompare.state import LOCK, preserve_state

LARGEST_BATCH = 1 << 16


def openvino_forward(model: ModelAdapter) -> Callable[[Tensor], Tensor]:
    """What `model.forward` is, without gradients: images (n,3,H,W) in [0, 1] -> (n,K); any n.

    Converted once per adapter and number of torch's threads; weights that change after that are not seen. SpecError when
    the package is missing or the model is not on the CPU, UnsupportedModelError when it cannot be converted.
    """
    if model.device.type != "cpu":
        raise SpecError(f"backend openvino runs on the CPU and {model.name} is on {model.device}; use backend torch")
    library, threads = openvino_library(), torch.get_num_threads()
    with LOCK:
        if ("openvino", threads) not in model.cache:
            model.cache["openvino", threads] = _converted(model, library, threads)
        compiled: _Compiled = model.cache["openvino", threads]
        return compiled


def openvino_library() -> Any:
    """The package, or SpecError; without the telemetry that it would start on import: nothing is sent anywhere."""
    unwanted = "openvino" not in sys.modules and "openvino_telemetry" not in sys.modules
    if unwanted:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # as if it were not installed
    try:
        import openvino
    except ImportError:
        raise SpecError("backend openvino needs openvino; pip install 'attncompare[openvino]'") from None
    finally:
        if unwanted:
            del sys.modules["openvino_telemetry"]
    return openvino


class _Forward(nn.Module):
    """The adapter's forward pass, preprocessing included, as a module of its own."""

    def __init__(self, adapter: ModelAdapter) -> None:
        super().__init__()
        self.adapter, self.module = adapter, adapter.module

    def forward(self, images: Tensor) -> Tensor:
        return self.adapter.forward(images)


class _Compiled:
    """A compiled network that serves one caller at a time."""

    def __init__(self, request: Any) -> None:
        self.request, self.lock = request, Lock()

    def __call__(self, images: Tensor) -> Tensor:
        with self.lock:
            outputs = self.request.infer([images.detach().contiguous().numpy()], share_inputs=True)
        return torch.from_numpy(outputs[0])  # a copy already: inputs are shared, outputs are not


def _converted(model: ModelAdapter, library: Any, threads: int) -> _Compiled:
    """Exported with any batch size and compiled in float32 for this CPU."""
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # other processes of a shared machine would get the same cores
    }
    try:
        with torch.no_grad(), preserve_state(model.module), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the converter's own calls of torch deprecate
            example = torch.full((2, 3, *model.size), 0.5)
            model.forward(example)  # fills what the adapter caches: not with the tensors of an export
            batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
            exported = torch.export.export(_Forward(model), (example,), dynamic_shapes=({0: batch},))
            network = library.convert_model(exported)
            return _Compiled(library.Core().compile_model(network, "CPU", settings).create_infer_request())
    except Exception as error:  # whatever the export, the converter or the plug-in says
        raise UnsupportedModelError(
            f"{model.name} cannot be converted for backend openvino: {reason_of(error)}; use backend torch"
        ) from error
