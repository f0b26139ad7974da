"""Put channel attention behind named modules of any CNN, without changing its code."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from attncompare.errors import SpecError, UnsupportedModelError, reason_of, unknown_name
from attncompare.inspection.layout import find_layout
from attncompare.modules.squeeze_excite import SqueezeExcite
from attncompare.state import device_of, preserve_state

Size = tuple[int, int]


class Gated(nn.Module):
    """A module with channel attention behind it; it takes the module's place, so that the code around it is unchanged."""

    def __init__(self, module: nn.Module, squeeze_excite: SqueezeExcite) -> None:
        super().__init__()
        self.module = module
        self.squeeze_excite = squeeze_excite.train(module.training)
        self.training = module.training

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        """What the module returns, its channels weighted."""
        gated: Tensor = self.squeeze_excite(self.module(*inputs, **options))
        return gated


def insert(model: nn.Module, layers: str | Sequence[str], reduction: int = 16, *, size: Size = (224, 224)) -> nn.Module:
    """A copy of a CNN with a `SqueezeExcite` behind each of the named modules; the model given stays as it is.

    layers: module paths, such as "layer1" or "features.4". Their channels are read off a probing pass on images of `size`
    (height, width): each must run once in it and return one (B,C,h,w) tensor. A second pass makes sure that every new
    layer runs. Their weights are PyTorch's defaults, drawn from the global generator.
    Checkpoints: module L becomes L.module, beside L.squeeze_excite. So load pretrained weights before the insertion; what
    was trained after it is loaded by building, inserting and `load_state_dict`, in this order.
    Raises UnknownNameError for a path that does not exist, UnsupportedModelError for a model or a module that does not
    fit, SpecError for a place that has channel attention inserted already.

    >>> net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2))
    >>> list(insert(net, ["1"], size=(32, 32)).state_dict())[2:4]
    ['1.squeeze_excite.reduce.weight', '1.squeeze_excite.reduce.bias']
    """
    if not isinstance(model, nn.Module):
        hint = "; pass its .module, and wrap_model what comes back" if hasattr(model, "module") else ""
        raise UnsupportedModelError(f"{type(model).__name__} is not an nn.Module{hint}")
    paths = [layers] if isinstance(layers, str) else list(layers)
    _check(model, paths)
    outputs = _outputs(model, paths, size)
    changed = deepcopy(model)
    # Before any insertion, because one inside another changes the paths of what it goes around.
    places = [(changed.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2], path) for path in paths]
    for parent, name, path in places:
        host, seen = parent.get_submodule(name), outputs[path]
        new = SqueezeExcite(seen.shape[1], reduction, device=seen.device, dtype=seen.dtype)
        setattr(parent, name, Gated(host, new))
    _verify(changed, size)
    return changed


def inserted(model: nn.Module) -> dict[str, str]:
    """The layers as they were named to `insert`, each with the path at which its `SqueezeExcite` is now.

    >>> net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), nn.Flatten())
    >>> inserted(insert(net, ["0", "0.1"], size=(32, 32)))
    {'0': '0.squeeze_excite', '0.1': '0.module.1.squeeze_excite'}
    """
    found: dict[str, str] = {}
    for path, part in model.named_modules():
        if isinstance(part, Gated):
            names, around = [], model
            for name in path.split("."):
                names += [] if isinstance(around, Gated) else [name]
                around = around.get_submodule(name)
            found[".".join(names)] = f"{path}.squeeze_excite"
    return found


def _check(model: nn.Module, paths: list[str]) -> None:
    """Raise where a path is no place for channel attention, before anything runs."""
    if not paths:
        raise SpecError("layers: name at least one module to put squeeze-and-excitation behind")
    known = dict(model.named_modules(remove_duplicate=False))
    for path in paths:
        if not isinstance(path, str):
            raise SpecError(f"layers: {path!r} is no module path")
        if not path or path not in known:
            raise unknown_name("layer", path, (name for name in known if name))
        around = known[path.rpartition(".")[0]]
        if paths.count(path) > 1:
            raise SpecError(f"layer {path!r} is listed twice; squeeze-and-excitation goes behind a module once")
        if isinstance(known[path], Gated) or isinstance(around, Gated):
            raise SpecError(f"layer {path!r} has squeeze-and-excitation inserted already")


def _outputs(model: nn.Module, paths: list[str], size: Size) -> Mapping[str, Tensor]:
    """What each module returns in one pass; UnsupportedModelError unless it runs once and gives a map (B,C,h,w)."""
    seen: dict[str, list[object]] = {path: [] for path in paths}
    _run(model, {model.get_submodule(path): seen[path].append for path in paths}, size)
    outputs: dict[str, Tensor] = {}
    for path, returned in seen.items():
        kind = type(model.get_submodule(path)).__name__
        if len(returned) != 1:
            raise UnsupportedModelError(
                f"layer {path!r} ({kind}) runs {len(returned)} times in a pass; name a module that runs once"
            )
        output = returned[0]
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        if not isinstance(output, Tensor) or find_layout(output.shape, size) != "nchw":
            raise UnsupportedModelError(
                f"layer {path!r} ({kind}) returns {found} for images of {size[0]} x {size[1]}; "
                "squeeze-and-excitation needs a feature map (B, C, h, w)"
            )
        outputs[path] = output
    return outputs


def _verify(changed: nn.Module, size: Size) -> None:
    """Raise UnsupportedModelError where the model's code goes past what was inserted."""
    runs: dict[str, list[object]] = {path: [] for path, part in changed.named_modules() if isinstance(part, Gated)}
    _run(changed, {changed.get_submodule(path): runs[path].append for path in runs}, size)
    for path, returned in runs.items():
        if len(returned) != 1:
            raise UnsupportedModelError(
                f"layer {path!r}: the model does not call it as a module, so nothing can be put behind it; name another"
            )


def _run(model: nn.Module, watched: Mapping[nn.Module, Callable[[object], None]], size: Size) -> None:
    """One pass over noise, in evaluation mode, that hands the outputs of some modules to functions."""
    first = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)).to(device_of(model), first.dtype)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(preserve_state(model))
        for module, note in watched.items():
            stack.callback(module.register_forward_hook(lambda m, i, output, note=note: note(output)).remove)
        try:
            model(images)
        except Exception as error:  # a user's module may do anything
            raise UnsupportedModelError(
                f"{type(model).__name__} does not run on images of {size[0]} x {size[1]}; give size=(height, width): "
                f"{reason_of(error)}"
            ) from error
