"""The maps of a chunk, image by image: a map, or the reason why there is none."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from attncompare.benchmark.plan import Cell
from attncompare.capture.target import Target
from attncompare.errors import Failure
from attncompare.explain import explain_together
from attncompare.maps import AttributionMap
from attncompare.models.adapter import ModelAdapter


@dataclass(frozen=True)
class Explained:
    """The map (h,w) of one image, and the numbers that its method reports beside it, such as a convergence delta."""

    values: Tensor
    detail: Mapping[str, float] = field(default_factory=dict)


def explain_cells(
    model: ModelAdapter, cells: Sequence[Cell], images: Tensor, target: Target, tick: Callable[[int, str], None]
) -> dict[str, list[Explained | Failure]]:
    """Key -> per image its map or the reason why there is none; what shares the pass is explained together."""
    together = [cell for cell in cells if not cell.method.own_passes]
    found: dict[str, list[Explained | Failure]] = {}
    groups = [together] if together else []
    groups += [[cell] for cell in cells if cell.method.own_passes]
    for group in groups:
        found |= _explain_group(model, group, images, target)
        tick(len(group) * len(images), f"{model.name} {group[-1].method.name}")
    return found


def _explain_group(
    model: ModelAdapter, cells: Sequence[Cell], images: Tensor, target: Target
) -> dict[str, list[Explained | Failure]]:
    """Explain; on a fault split first by method, then by halves of the images, down to the one that is at fault."""
    try:
        maps = explain_together(model, [(cell.method.name, cell.options) for cell in cells], images, target)
    except Exception as error:  # every fault of a method becomes a record
        if len(cells) > 1:
            parts = [_explain_group(model, [cell], images, target) for cell in cells]
            return {key: values for part in parts for key, values in part.items()}
        if len(images) > 1:
            middle = len(images) // 2
            halves = [
                _explain_group(model, cells, images[piece], target[piece] if isinstance(target, Tensor) else target)
                for piece in (slice(0, middle), slice(middle, None))
            ]
            return {cells[0].key: halves[0][cells[0].key] + halves[1][cells[0].key]}
        return {cells[0].key: [Failure.of(error)]}
    return {cell.key: _image_by_image(maps[cell.method.name]) for cell in cells}


def _image_by_image(maps: AttributionMap) -> list[Explained | Failure]:
    details = {name: numbers.tolist() for name, numbers in maps.detail.items()}
    return [
        Explained(values, {name: numbers[i] for name, numbers in details.items()})
        for i, values in enumerate(maps.values.cpu())
    ]


def maps_of(found: Mapping[str, Sequence[Explained | Failure]]) -> dict[str, list[Tensor | Failure]]:
    """Key -> per image the map (h,w) alone, or the reason."""
    return {key: [one if isinstance(one, Failure) else one.values for one in rows] for key, rows in found.items()}
