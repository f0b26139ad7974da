"""Scores batch by batch, in the way of torchmetrics."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from attncompare.benchmark.records import Record
from attncompare.benchmark.scoring import MetricRequest, choose_metrics
from attncompare.benchmark.single import score
from attncompare.explain import Explainer
from attncompare.maps import AttributionMap
from attncompare.metrics.user_protocols import get_protocol
from attncompare.models.adapter import ModelAdapter


class Meter:
    """`update` with each batch, `compute` the means; a thin wrapper of attncompare.score.

    Every value is kept as a record, so that failures are counted and intervals can be had (benchmark.statistics). Images
    are named by their place among those of all updates: to compare methods, give each a meter and the same batches.

    >>> import torch, attncompare as ac
    >>> model = ac.load_model("demo/cnn")
    >>> meter = ac.Meter(model, ["sparseness", "complexity"])
    >>> for batch in torch.rand(2, 3, 3, 64, 64):
    ...     meter.update(batch, ac.make_explainer(model, "cam").explain(batch))
    >>> sorted(meter.compute()), len(meter.records)
    (['complexity', 'sparseness'], 12)
    """

    def __init__(
        self,
        model: ModelAdapter,
        metrics: Sequence[MetricRequest] = ("deletion", "insertion"),
        protocol: str = "rise",
        *,
        explainer: Explainer | None = None,
    ) -> None:
        choose_metrics(metrics, get_protocol(protocol))
        self.model, self.metrics, self.protocol, self.explainer = model, tuple(metrics), protocol, explainer
        self.records: list[Record] = []
        self._images = 0

    def update(self, images: Tensor, attribution: AttributionMap, masks: Tensor | None = None) -> None:
        """Score one batch: images (B,3,H,W), their maps, and where a metric needs them masks (B,H,W) bool."""
        found = score(
            self.model,
            images,
            attribution,
            metrics=self.metrics,
            protocol=self.protocol,
            masks=masks,
            explainer=self.explainer,
        )
        self.records += [replace(record, image=str(self._images + int(record.image))) for record in found]
        self._images += len(images)

    def compute(self) -> dict[str, float | None]:
        """Mean of every metric over the images that have a value; None where none has."""
        values: dict[str, list[float]] = defaultdict(list)
        for record in self.records:
            values[record.measure] += [] if record.value is None else [record.value]
        return {name: sum(found) / len(found) if found else None for name, found in values.items()}

    def failed(self) -> dict[str, int]:
        """How many images of each metric have no value."""
        counts: dict[str, int] = defaultdict(int)
        for record in self.records:
            counts[record.measure] += record.value is None
        return dict(counts)

    def reset(self) -> None:
        """Forget everything."""
        self.records.clear()
        self._images = 0
