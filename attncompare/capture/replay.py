"""The part of a model behind one of its modules, run on other outputs of that module: what came before is kept."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from attncompare.errors import CaptureError
from attncompare.models.adapter import ModelAdapter
from attncompare.models.same_outputs import check_same_outputs
from attncompare.state import disable_mha_fastpath


def modules_before(model: nn.Module, path: str) -> list[str]:
    """The largest modules beside the way from the root to `path`; a pass that has left `path` has run some of them."""
    found: list[str] = []
    module, prefix = model, ""
    for name in path.split("."):
        found += [
            inner for child, part in module.named_children() if child != name for inner in _called(part, prefix + child)
        ]
        module, prefix = module.get_submodule(name), f"{prefix}{name}."
    return found


def _called(module: nn.Module, path: str) -> list[str]:
    """A container that is never called stands for its children."""
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        return [inner for name, child in module.named_children() for inner in _called(child, f"{path}.{name}")]
    return [path]


def select_images(output: object, which: Tensor, count: int, copy: bool = False) -> object:
    """The rows of images `which` (n,) in whatever a module returned for `count` images.

    Where all are one image they are a view, unless `copy`: for outputs that are written into.
    """
    if isinstance(output, tuple | list):
        return type(output)(select_images(part, which, count, copy) for part in output)
    if not isinstance(output, Tensor) or output.ndim == 0 or len(output) % count:
        return output.clone() if isinstance(output, Tensor) and copy else output
    per = len(output) // count
    grouped = output.reshape(count, per, *output.shape[1:])
    same = bool((which == which[0]).all())
    picked = grouped[int(which[0])].expand(len(which), *grouped.shape[1:]) if same else grouped[which]
    picked = picked[:, 0] if per == 1 else picked.flatten(0, 1)
    return picked.clone() if copy and same else picked


def _copied(output: object) -> object:
    """The output without its graph, in memory of its own: what follows may write into it."""
    if isinstance(output, tuple | list):
        return type(output)(_copied(part) for part in output)
    return output.detach().clone() if isinstance(output, Tensor) else output


def _versions(output: object) -> list[int]:
    """How often each tensor in an output was written into."""
    if isinstance(output, tuple | list):
        return [version for part in output for version in _versions(part)]
    return [output._version] if isinstance(output, Tensor) and not output.is_inference() else []


class Replay:
    """Record one pass, then run what comes behind `path` on other outputs of it.

    Everything that had finished when `path` had is answered from memory; what follows, and functions between modules, run
    as they are. The first time a model is replayed the recorded output is put back and must give the recorded logits.
    """

    def __init__(self, adapter: ModelAdapter, path: str) -> None:
        self.adapter, self.path = adapter, path
        self.module = adapter.module.get_submodule(path)
        self.before = {adapter.module.get_submodule(one): one for one in modules_before(adapter.module, path)}
        self.kept: dict[nn.Module, list[object]] = {}
        self.rewritten: set[nn.Module] = set()
        self.output: object = None
        self.images: Tensor | None = None

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keep, during the one pass that runs inside, what `path` and the modules before it return."""
        running: list[nn.Module] = []
        seen: list[tuple[nn.Module, object, list[int]]] = []

        def enter(module: nn.Module, args: object) -> None:
            running.append(module)

        def leave(module: nn.Module, args: object, output: object) -> None:
            running.pop()
            if module is self.module and self.output is not None:
                raise CaptureError(
                    f"layer {self.path!r} runs several times in a pass; which run is meant is not defined"
                )
            if module is self.module:
                self.output = _copied(output)
            elif self.output is None and not running:  # a module shared with one that is kept whole runs inside it
                self.kept.setdefault(module, []).append(_copied(output))
                seen.append((module, output, _versions(output)))

        with ExitStack() as stack:
            for module in (*self.before, self.module):
                stack.callback(module.register_forward_pre_hook(enter).remove)
                stack.callback(module.register_forward_hook(leave, always_call=True).remove)
            yield
        self.rewritten = {module for module, output, versions in seen if _versions(output) != versions}

    def record(self, images: Tensor) -> Tensor:
        """Run the model on (B,3,H,W) images and return its outputs (B,K)."""
        self.images = images
        with disable_mha_fastpath(), self.recording():
            return self.adapter.forward(images)

    @property
    def tensor(self) -> Tensor:
        """What `path` returned, or the first part of it."""
        first = self.output[0] if isinstance(self.output, tuple | list) else self.output
        if not isinstance(first, Tensor):
            raise CaptureError(
                f"layer {self.path!r} returned {type(first).__name__} or did not run; a tensor is needed"
            )
        return first

    def run(self, tensor: Tensor, which: Tensor) -> Tensor:
        """Outputs (n,K) with the rows of `tensor` (n,...), altered outputs of images `which` (n,), in place of its own."""
        assert self.images is not None
        count, output = len(self.images), self.output
        if isinstance(output, tuple | list):
            output = type(output)((tensor, *(select_images(part, which, count, True) for part in output[1:])))
        else:
            output = tensor
        images = select_images(self.images, which, count, False)
        assert isinstance(images, Tensor)
        with ExitStack() as stack:
            stack.enter_context(disable_mha_fastpath())
            for module, outputs in self.kept.items():
                answers = [select_images(one, which, count, module in self.rewritten) for one in outputs]
                stack.enter_context(_answering(module, answers))
            left = stack.enter_context(_answering(self.module, [output]))
            found = self.adapter.forward(images)
        if left:
            raise CaptureError(f"layer {self.path!r} of {self.adapter.name} is passed over when it is run on its own")
        return found

    def verify(self, logits: Tensor) -> None:
        """Put the recorded output back: CaptureError unless the recorded logits (B,K) come out.

        With rows repeated and out of order, so that what has a row for each image is seen to; once for each batch size.
        """
        mark = f"replay of {self.path} for {len(logits)} images"
        if mark in self.adapter.checked_recordings:
            return
        last = torch.full((len(logits) + 1,), len(logits) - 1, device=logits.device)
        scale = max(1.0, float(logits.abs().max()))
        what = f"what follows {self.path!r} in {self.adapter.name} cannot run on its own"
        for which in (last, torch.arange(len(logits), device=logits.device).flip(0)):
            rows = select_images(self.tensor, which, len(logits), True)
            assert isinstance(rows, Tensor)
            try:
                with torch.no_grad():
                    again = self.run(rows, which)
                check_same_outputs(logits[which], again, f"{what}: logits differ", scale=scale)
            except RuntimeError as error:  # shapes: something without a row for each image was taken for rows
                raise CaptureError(f"{what}: it takes no other number of images ({error})") from error
        self.adapter.checked_recordings.add(mark)


@contextmanager
def _answering(module: nn.Module, answers: list[object]) -> Iterator[list[object]]:
    """Let a module return the given outputs, one per call, and run as it is from then on; yields those not yet asked for."""
    own, previous = "forward" in vars(module), module.forward
    left = list(answers)

    def answer(*args: object, **options: object) -> object:
        return left.pop(0) if left else previous(*args, **options)

    module.forward = answer
    try:
        yield left
    finally:
        if own:
            module.forward = previous
        else:
            del module.forward
