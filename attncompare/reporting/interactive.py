"""Maps to play with: plotly figures with sliders and buttons, in a notebook or as an HTML file."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from attncompare.benchmark.layer_maps import LayerMap
from attncompare.errors import SpecError
from attncompare.maps import AttributionMap
from attncompare.reporting.gallery import enlarged
from attncompare.reporting.overlay import is_signed

if TYPE_CHECKING:
    import plotly.graph_objects as go

WIDTH, PICTURE, SLIDER = 620, 410, 78  # pixels; a slider with its value above and its labels below
OPACITIES = [number / 10 for number in range(11)]


def interactive(attribution: AttributionMap, image: Tensor, *, opacity: float = 0.6) -> "go.Figure":
    """A map over its image, with an opacity slider and buttons for the overlay, the map alone and the image alone.

    attribution: of one image. image: (3,H,W) or (1,3,H,W) in [0, 1]. Raises SpecError for maps of several images.

    >>> import attncompare as ac, torch
    >>> model, images = ac.load_model("demo/vit"), torch.rand(1, 3, 64, 64)
    >>> figure = ac.figures.interactive(ac.make_explainer(model, "saliency").explain(images), images)
    >>> [trace.name for trace in figure.data]
    ['image', 'saliency']
    """
    picture = _picture(image)
    values = enlarged(_one_map(attribution), (picture.shape[0], picture.shape[1]))
    figure = _over(picture, [(attribution.method or "map", values)], opacity)
    start = _nearest(opacity)
    shown = {"overlay": ([True, True], opacity), "map": ([False, True], 1.0), "image": ([True, False], opacity)}
    buttons = [
        {
            "label": name,
            "method": "update",
            "args": [{"visible": seen, "opacity": [1, cover]}, {"sliders[0].active": start if cover < 1 else 10}],
        }
        for name, (seen, cover) in shown.items()
    ]
    menu = {"type": "buttons", "direction": "right", "x": 0, "xanchor": "left", "y": 1.12, "buttons": buttons}
    return _laid_out(figure, [_opacity_slider([1], opacity)]).update_layout(updatemenus=[menu])


def interactive_attention(
    layers: Sequence[LayerMap | AttributionMap], image: Tensor, *, opacity: float = 0.6
) -> "go.Figure":
    """What every layer and head attends to, over the image: sliders for the layer, the head and the opacity.

    layers: as `record_layers` gives them, or an AttributionMap of one image per block, such as `class_attention` with
    its option `block`. Every layer needs as many heads as the others, else SpecError.
    """
    picture = _picture(image)
    named = [_layer(one, number) for number, one in enumerate(layers)]
    if not named or len({len(maps) for _, maps in named}) != 1:
        raise SpecError("interactive_attention needs at least one layer, and as many heads in each")
    figure = _over(picture, [(name, maps[0]) for name, maps in named], opacity)
    traces = list(range(1, len(named) + 1))
    by_layer = [
        {"label": name, "method": "restyle", "args": [{"visible": [trace == one for one in traces]}, traces]}
        for trace, (name, _) in zip(traces, named, strict=True)
    ]
    by_head = [
        {"label": str(head), "method": "restyle", "args": [{"z": [maps[head] for _, maps in named]}, traces]}
        for head in range(len(named[0][1]))
    ]
    sliders = [_slider("layer ", by_layer, 0), _slider("head ", by_head, 0), _opacity_slider(traces, opacity)]
    figure.for_each_trace(lambda trace: trace.update(visible=trace.name in ("image", named[0][0])))
    return _laid_out(figure, sliders)


def _picture(image: Tensor) -> NDArray[np.uint8]:
    pixels = image[0] if image.ndim == 4 else image
    return np.asarray((pixels.detach().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy(), dtype=np.uint8)


def _one_map(attribution: AttributionMap) -> NDArray[np.float32]:
    if not attribution.spatial or len(attribution.values) != 1:
        raise SpecError(f"one map on one image can be shown, not values of shape {tuple(attribution.values.shape)}")
    return np.asarray(attribution.values[0].detach().cpu().numpy(), dtype=np.float32)


def _layer(one: LayerMap | AttributionMap, number: int) -> tuple[str, NDArray[np.float32]]:
    """A layer's name and its maps (heads,h,w)."""
    if isinstance(one, LayerMap):
        return one.layer, one.maps
    return f"block {one.options.get('block', number)}", _one_map(one)[None]


def _over(picture: NDArray[np.uint8], maps: Sequence[tuple[str, NDArray[np.float32]]], opacity: float) -> "go.Figure":
    """The image as trace 0 and a heat map per name above it; coarse maps are stretched, their cells stay visible."""
    import plotly.graph_objects as go

    height, width = picture.shape[:2]
    figure = go.Figure(go.Image(z=picture, name="image"))
    for name, values in maps:
        rows, columns = values.shape
        look: dict[str, Any] = {"colorscale": "RdBu_r", "zmid": 0} if is_signed(values) else {"colorscale": "Inferno"}
        figure.add_trace(
            go.Heatmap(
                z=values,
                name=name,
                opacity=opacity,
                x0=width / columns / 2 - 0.5,
                dx=width / columns,
                y0=height / rows / 2 - 0.5,
                dy=height / rows,
                **look,
            )
        )
    figure.update_xaxes(visible=False, range=[-0.5, width - 0.5], constrain="domain")
    figure.update_yaxes(visible=False, range=[height - 0.5, -0.5], scaleanchor="x", constrain="domain")
    return figure


def _nearest(opacity: float) -> int:
    return int(np.abs(np.array(OPACITIES) - opacity).argmin())


def _opacity_slider(traces: list[int], opacity: float) -> dict[str, Any]:
    """Moves the maps only; the image stays as it is."""
    steps = [{"label": f"{v:g}", "method": "restyle", "args": [{"opacity": v}, traces]} for v in OPACITIES]
    return _slider("opacity ", steps, _nearest(opacity))


def _slider(prefix: str, steps: list[dict[str, Any]], active: int) -> dict[str, Any]:
    return {"currentvalue": {"prefix": prefix}, "steps": steps, "active": active, "len": 0.9, "x": 0.05}


def _laid_out(figure: "go.Figure", sliders: list[dict[str, Any]]) -> "go.Figure":
    """Sliders below each other, in pixels: shares of the figure's height would let them overlap."""
    placed = [one | {"y": 0, "pad": {"t": 15 + SLIDER * place}} for place, one in enumerate(sliders)]
    margin = {"l": 20, "r": 20, "t": 60, "b": 25 + SLIDER * len(sliders)}
    height = margin["t"] + PICTURE + margin["b"]
    return figure.update_layout(sliders=placed, width=WIDTH, height=height, margin=margin)
