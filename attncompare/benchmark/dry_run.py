"""What a spec would cost, without running it: cells, passes, and an estimate of the time."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from attncompare.benchmark.execution import Execution
from attncompare.benchmark.plan import (
    ModelPlan,
    check_names,
    check_target,
    chosen_methods,
    chosen_metrics,
    chunk_indices,
    chunk_names,
    options_of,
    read_chunk,
    support,
)
from attncompare.benchmark.spec import BenchmarkSpec
from attncompare.benchmark.store import ResultStore
from attncompare.data.datasets import Dataset, open_dataset
from attncompare.data.images import fit_image, to_tensor
from attncompare.errors import AttnCompareError
from attncompare.explain import explain_together
from attncompare.methods._base import Method
from attncompare.metrics._base import FROM_METHOD, Evidence
from attncompare.metrics.perturbation import ends_of
from attncompare.metrics.user_protocols import get_protocol
from attncompare.models.adapter import ModelAdapter
from attncompare.models.load import load_model
from attncompare.state import preserve_state
from attncompare.storage.folder import Location

BACKWARD = 2.0
"""What a backward pass is taken to cost, in forward passes."""
FEW, MORE = 4, 6
"""Two small settings of the option that counts a method's passes; the count at its real setting lies on their line."""


@dataclass(frozen=True)
class ModelCost:
    """What one model costs. Passes are of single images, for the whole plan, finished cells included.

    uncounted: methods and metrics whose passes are not in the sums, which are lower bounds then.
    seconds: estimate for the cells that are not done, without the timing pass.
    """

    model: str
    methods: list[str]
    refused: list[str]
    uncounted: list[str]
    cells: int
    done: int
    explanation_forward: float
    explanation_backward: float
    scoring_forward: float
    seconds: float


@dataclass(frozen=True)
class DryRun:
    """What a spec comes to."""

    images: int
    cells: int
    done: int
    seconds: float
    models: list[ModelCost]

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def dry_run(spec: BenchmarkSpec, out: Location | None = None, execution: Execution = Execution()) -> DryRun:  # noqa: B008
    """Count the cells and passes of a spec, or of one shard of it, and the cells that a run folder holds already.

    Each model makes one plain forward pass to be timed, and methods whose number of passes is only known by running them
    explain one image. Nothing is written, except that damaged record files are set aside, as a run would.
    """
    check_names(spec)
    dataset = open_dataset(spec.data, spec.limit)
    models = [load_model(name, device=spec.device) for name in spec.models]
    check_target(spec, dataset, models)
    chunks = [chunk_names(spec, dataset, index) for index in chunk_indices(spec, dataset, execution)]
    done = _finished(spec, dataset, chunks, models, out)
    costs = [_cost(spec, dataset, chunks, model, done[model.name]) for model in models]
    return DryRun(
        len(dataset.names) if spec.timing_only else sum(map(len, chunks)),
        sum(cost.cells for cost in costs),
        sum(cost.done for cost in costs),
        sum(cost.seconds for cost in costs),
        costs,
    )


def _finished(
    spec: BenchmarkSpec,
    dataset: Dataset,
    chunks: Sequence[Sequence[str]],
    models: Sequence[ModelAdapter],
    out: Location | None,
) -> dict[str, int]:
    """Model -> how many of its cells are done; images are only read where there are records."""
    store = None if out is None else ResultStore(out)
    counts = {model.name: 0 for model in models}
    if store is None or not chunks or not store.files.names("records"):
        return counts
    plans = [ModelPlan(spec, model) for model in models]
    for names in chunks:
        chunk = read_chunk(dataset, names)
        for plan in plans:
            counts[plan.model.name] += len(store.held([cell.key for cell in plan.cells(chunk)]))
    return counts


def _cost(
    spec: BenchmarkSpec, dataset: Dataset, chunks: Sequence[Sequence[str]], model: ModelAdapter, done: int
) -> ModelCost:
    options = {method.name: options_of(spec, method) for method in chosen_methods(spec)}
    usable = [method for method in chosen_methods(spec) if not support(model, method, options[method.name])]
    image = _one_image(dataset, model, spec.seed)
    images = sum(map(len, chunks))
    cells = len(chunks) * len(options)
    counted = {method.name: _passes(model, method, options[method.name], image) for method in usable}
    shared = [method.name for method in usable if not method.own_passes]
    known = {name: passes for name, passes in counted.items() if passes is not None and name not in shared}
    together = [passes for name, passes in counted.items() if passes is not None and name in shared]
    # what shares the pass costs one forward and at most one backward in all, like the dearest of them
    forward = sum(one for one, _ in known.values()) + max((one for one, _ in together), default=0.0)
    backward = sum(one for _, one in known.values()) + max((one for _, one in together), default=0.0)
    scoring = _scoring(spec, model, sum(method.space == "image" for method in usable))
    share = (cells - done) / max(cells, 1)
    seconds = _plain_seconds(model, image, spec.batch_size) * images * share
    again = {*FROM_METHOD, Evidence.TARGET_SCORE}
    return ModelCost(
        model.name,
        [method.name for method in usable],
        [name for name in options if name not in counted],
        [name for name, passes in counted.items() if passes is None]
        + [metric.name for metric in chosen_metrics(spec) if again & set(metric.needs)],
        cells,
        done,
        images * forward,
        images * backward,
        images * scoring,
        seconds * (forward + scoring + BACKWARD * backward),
    )


def _scoring(spec: BenchmarkSpec, model: ModelAdapter, maps: int) -> int:
    """Scoring passes for each image: the clean one, the ends of curves, which all maps share, and between them each map's.

    Maps that order an image's pixels alike share those too, so that a run may make fewer.
    """
    protocol = get_protocol(spec.protocol)
    curves = {curve for metric in chosen_metrics(spec) for curve in metric.curves}
    if not maps:
        return 1
    count, last = protocol.count(model.size), protocol.last(model.size)
    ends = {ends_of(protocol, curve)[0] for curve in curves}
    ends |= {ends_of(protocol, curve)[1] for curve in curves if last == count}
    return 1 + len(ends) + maps * len(curves) * min(count - 1, last)


def _one_image(dataset: Dataset, model: ModelAdapter, seed: int) -> Tensor:
    """(1,3,H,W) the first readable image, or noise."""
    for name in dataset.names[:8]:
        for sample in read_chunk(dataset, [name]).samples:
            return to_tensor(fit_image(sample.image, model.source.preprocessing))[None].to(model.device)
    return torch.rand(1, 3, *model.size, generator=torch.Generator().manual_seed(seed)).to(model.device)


def _passes(
    model: ModelAdapter, method: Method, options: Mapping[str, object], image: Tensor
) -> tuple[float, float] | None:
    """Forward and backward passes of one image; None where only the whole explanation would tell, or where it fails."""
    option = method.passes_option
    if method.expensive and not option:
        return None
    wanted = options.get(option)
    counts = [FEW, MORE] if isinstance(wanted, int) and wanted > MORE else [None]
    measured = []
    for count in counts:
        given = dict(options) if count is None else {**options, option: count}
        try:
            found = explain_together(model, [(method.name, given)], image)[method.name]
        except (AttnCompareError, RuntimeError):
            return None
        measured.append((found.passes_forward, found.passes_backward))
    if len(measured) == 1:
        return measured[0]
    forward, backward = (
        few + (more - few) / (MORE - FEW) * (float(str(wanted)) - FEW) for few, more in zip(*measured, strict=True)
    )
    return forward, backward


def _plain_seconds(model: ModelAdapter, image: Tensor, batch_size: int) -> float:
    """Seconds for one image in a plain forward pass of a whole batch, after one that warms up."""
    batch = image.expand(batch_size, -1, -1, -1).contiguous()
    with torch.no_grad(), preserve_state(model.module):
        model.forward(batch).sum().item()
        start = time.perf_counter()
        model.forward(batch).sum().item()  # reading a number waits for the device
        return (time.perf_counter() - start) / batch_size


def describe(found: DryRun, spec: BenchmarkSpec, out: Location) -> str:
    """The same as lines to read."""
    width = max(len("model"), *(len(cost.model) for cost in found.models))
    heads = ("cells", "done", "explaining: forward", "backward", "scoring: forward")
    lines = [
        f"{found.images} images of {spec.data!r}, protocol {spec.protocol}: {found.cells} cells, "
        f"{found.done} of them done in {out}",
        "",
        "  ".join([f"{'model':<{width}}", *heads]),
    ]
    for cost in found.models:
        bound = ">= " if cost.uncounted else ""
        numbers = (
            str(cost.cells), str(cost.done), f"{bound}{cost.explanation_forward:.0f}",
            f"{bound}{cost.explanation_backward:.0f}", f"{bound}{cost.scoring_forward:.0f}",
        )  # fmt: skip
        cells = [f"{number:>{len(head)}}" for number, head in zip(numbers, heads, strict=True)]
        lines.append("  ".join([f"{cost.model:<{width}}", *cells]))
    for cost in found.models:
        lines += [f"{cost.model} cannot supply: {', '.join(cost.refused)}"] if cost.refused else []
        lines += [f"{cost.model}, passes not counted: {', '.join(cost.uncounted)}"] if cost.uncounted else []
    bound = "at least " if any(cost.uncounted for cost in found.models) else ""
    lines += [
        "",
        f"estimate for what is missing: {bound}{_clock(found.seconds)}, without the timing pass "
        f"(from one plain forward per model; a backward counted as {BACKWARD:g})",
    ]
    return "\n".join(lines)


def _clock(seconds: float) -> str:
    """A time in the unit that fits.

    >>> _clock(3.21), _clock(200), _clock(9000)
    ('3.2 s', '3.3 min', '2.5 h')
    """
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60)):
        if seconds < limit:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 3600:.1f} h"
