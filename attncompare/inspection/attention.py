"""How a model's attention lies on the image, from the attention calls of one probing pass."""

from dataclasses import dataclass, field, replace
from itertools import pairwise

from attncompare.inspection.graph import Graph
from attncompare.inspection.layout import TokenLayout
from attncompare.inspection.structure import Part, WindowBlock
from attncompare.inspection.trace import BATCH, AttentionCall, Network, Trace
from attncompare.inspection.windows import attends_to_tokens, find_windows
from attncompare.state import preserve_state

FLOW: tuple[Part, ...] = ("attention",)
GLOBAL: tuple[Part, ...] = ("attention", "class_attention")
WINDOWED: tuple[Part, ...] = ("windows", "hierarchy")
HEADS = ("num_heads", "num_attention_heads")  # what modules of attention call themselves
NO_ATTENTION = "it has no softmax attention between image positions"
UNSEEN = (
    "its attention cannot be seen: it is no softmax over positions, or folds the heads into the batch; for a model of your "
    "own, give wrap_model(attention=...) a recorder"
)
SIDE_BY_SIDE = "attention blocks run side by side, so their attention does not multiply; use "
USE_GLOBAL = "its attention is global on one grid; use class_attention, attention_rollout or gradient_rollout"
SEVERAL = "one attention module runs several softmaxes in a pass; which of them is meant is not defined"


@dataclass(frozen=True)
class AttentionLayout:
    """What a model can supply of attention, as in ModelStructure, and why it cannot supply the rest."""

    tokens: TokenLayout | None = None
    attention_tokens: TokenLayout | None = None
    blocks: tuple[str, ...] = ()
    pooling_blocks: tuple[str, ...] = ()
    windows: tuple[WindowBlock, ...] = ()
    missing: dict[Part, str] = field(default_factory=dict)


def _none(reason: str) -> AttentionLayout:
    return AttentionLayout(missing=dict.fromkeys((*GLOBAL, *WINDOWED), reason))


def find_attention(
    seen: Trace, graph: Graph, source: Network, given: TokenLayout | None, sequences: list[TokenLayout]
) -> AttentionLayout:
    """Global attention on one grid, class attention behind something else, windows, or none.

    given: the layout of the token sequence, if the user states it. sequences: how sequences were seen to lie; with
    `given` among them.
    """
    calls = _on_the_scores_path(seen, graph)
    if not calls:
        hidden = any(hasattr(call.module, name) for call in seen.calls for name in HEADS)
        return _none(UNSEEN if hidden else NO_ATTENTION)
    readers = [c for c in calls if _is_global(c) and c.queries == 1 and c.keys > 3]
    square = [c for c in calls if _is_global(c) and c.queries == c.keys and _over_tokens(seen, source, c)]
    layout = _sequence(square[-1].keys, sequences) if square else None
    rest = [c for c in calls if c not in readers and c not in square]
    if layout is not None:
        cells = layout.grid[0] * layout.grid[1]
        rest = [c for c in rest if c.shape[0] != BATCH * cells]  # attention within one patch stays within its token
    alike = [c for c in square if layout is not None and c.keys == layout.length]
    ours = [c.path for c in (*alike, *readers)]
    if len(set(ours)) != len(ours):
        return _none(SEVERAL)
    if layout is not None and not rest and len(alike) == len(square) and _fits(readers, layout):
        return _whole(seen, graph, layout, alike, readers, given)
    if readers:
        return _read_by_class_attention(readers, sequences)
    if layout is not None and layout.prefix and square[-1] is calls[-1]:
        return _last_stage(seen, graph, layout, alike)
    return _windowed(seen, graph, source, sequences, calls)


def _on_the_scores_path(seen: Trace, graph: Graph) -> list[AttentionCall]:
    """The attentions whose module's output leads to the score: SigLIP's pooling head runs in its classifier too."""
    calls = [call for path in dict.fromkeys(c.path for c in seen.attention) if (call := seen.call_of(path))]
    aside = {call.path for call, leads in zip(calls, graph.leads_to_score(calls), strict=True) if not leads}
    return [c for c in seen.attention if c.path not in aside]


def _is_global(call: AttentionCall) -> bool:
    return len(call.shape) == 4 and call.shape[0] == BATCH


def _over_tokens(seen: Trace, source: Network, attention: AttentionCall) -> bool:
    """Whether as many tokens go into the module as its weights have rows: attention between channels looks alike."""
    call = seen.call_of(attention.path)
    fed = None if call is None else call.fed
    if fed is None or len(fed.shape) not in (3, 4):
        return False
    if (
        len(fed.shape) == 3 and fed.shape[-1] == attention.keys * attention.shape[1]
    ):  # as many channels per head as tokens
        with preserve_state(source.model):
            return attends_to_tokens(seen, source.model, attention)
    if len(fed.shape) == 3:
        return attention.keys in fed.shape[:2]
    cells = (fed.shape[2] * fed.shape[3], fed.shape[1] * fed.shape[2])  # a pool may add the mean as a token
    return attention.keys in cells or attention.keys - 1 in cells


def _fits(readers: list[AttentionCall], layout: TokenLayout) -> bool:
    """Whether every reader attends to all the tokens, and to itself or not."""
    return all(c.keys in (layout.length, layout.length + 1) for c in readers)


def _sequence(tokens: int, sequences: list[TokenLayout]) -> TokenLayout | None:
    """The layout of a sequence of N tokens, as seen or given."""
    return next((layout for layout in sequences if layout.length == tokens), None)


def _whole(
    seen: Trace,
    graph: Graph,
    layout: TokenLayout,
    square: list[AttentionCall],
    readers: list[AttentionCall],
    given: TokenLayout | None,
) -> AttentionLayout:
    """Every attention of the model is over the same tokens, but for readers at the end."""
    missing = dict.fromkeys(WINDOWED, USE_GLOBAL)
    blocks = tuple(c.path for c in (*square, *readers))
    if not _one_after_the_other(seen, graph, blocks):
        missing |= dict.fromkeys(FLOW, SIDE_BY_SIDE + "class_attention")
    if readers:
        around = TokenLayout(layout.prefix + 1, layout.grid, 0)
        return AttentionLayout(layout, around, blocks, tuple(c.path for c in readers), missing=missing)
    if layout is not given:
        class_token, reason = read_out(seen, graph, layout)
        layout = replace(layout, class_token=class_token)
        missing |= dict.fromkeys(GLOBAL, reason) if reason else {}
    return AttentionLayout(layout, None, blocks, missing=missing)


def _one_after_the_other(seen: Trace, graph: Graph, blocks: tuple[str, ...]) -> bool:
    """Whether what goes into each block depends on what came out of the one before."""
    return all(graph.follows(seen.call_of(before), seen.call_of(after)) for before, after in pairwise(blocks))


def _read_by_class_attention(readers: list[AttentionCall], sequences: list[TokenLayout]) -> AttentionLayout:
    """The score is read by class attention, behind blocks whose own attention has no flow between tokens."""
    reason = "only its last blocks attend globally; what flows before them is no softmax over these tokens"
    if len({c.keys for c in readers}) != 1:
        return _none("several class tokens attend to several grids; no one of them is the attention of the score")
    layout = _sequence(readers[-1].keys, sequences)
    if layout is None:
        return _none(f"the {readers[-1].keys} tokens that its class attention reads do not lie on the image row by row")
    around = layout if layout.prefix else TokenLayout(1, layout.grid)
    missing = dict.fromkeys(FLOW, reason) | dict.fromkeys(WINDOWED, f"{reason}; use class_attention")
    paths = tuple(c.path for c in readers)
    return AttentionLayout(None, replace(around, class_token=0), paths, paths, missing=missing)


def _last_stage(seen: Trace, graph: Graph, layout: TokenLayout, blocks: list[AttentionCall]) -> AttentionLayout:
    """A class token that walks through several grids: on the last of them its attention is defined, the flow is not."""
    reason = "not all of its blocks have one plain attention over the same tokens; use class_attention"
    class_token, unread = read_out(seen, graph, layout)
    missing = dict.fromkeys((*FLOW, *WINDOWED), reason)
    missing |= dict.fromkeys(GLOBAL, unread) if unread else {}
    return AttentionLayout(
        replace(layout, class_token=class_token), None, tuple(c.path for c in blocks), missing=missing
    )


def _windowed(
    seen: Trace, graph: Graph, source: Network, sequences: list[TokenLayout], calls: list[AttentionCall]
) -> AttentionLayout:
    """Attention inside windows, or global at several resolutions."""
    reason = (
        "its attention lies in windows or on several grids, so plain rollout is not defined; "
        "use window_attention or hierarchical_rollout"
    )
    layouts = [layout for layout in sequences if not layout.prefix]
    found: list[WindowBlock | str] = []
    with preserve_state(source.model):
        for call in calls:
            block = find_windows(seen, source.model, call, source.size, layouts)
            found.append(block)
            if isinstance(block, WindowBlock):  # what a reducing block gives lies on its query grid
                layouts.append(TokenLayout(0, block.geometry.query_grid))
    windows = tuple(block for block in found if isinstance(block, WindowBlock))
    refused = [text for text in found if isinstance(text, str)]
    paths = [block.path for block in windows]
    if len(set(paths)) != len(paths):
        return _none(SEVERAL)
    if not windows:
        return _none(f"plain attention maps are not defined: {refused[0]}")
    missing = dict.fromkeys(GLOBAL, reason)
    if refused:
        share = f"{len(refused)} of its {len(found)} attention blocks have no place on the image"
        missing["hierarchy"] = f"{share}; of the first of them, {refused[0]}"
    elif not _one_after_the_other(seen, graph, tuple(paths)):
        missing["hierarchy"] = SIDE_BY_SIDE + "window_attention"
    return AttentionLayout(windows=windows, missing=missing)


def read_out(seen: Trace, graph: Graph, layout: TokenLayout) -> tuple[int | tuple[int, ...] | None, str]:
    """(class_token, reason why there is none): the rows of the last token tensor that the output depends on."""
    sequences = (c for c in reversed(seen.calls) if len(c.output.shape) == 3 and c.output.shape[1] == layout.length)
    last = next((c for c in sequences if graph.output(c) is not None), None)
    if last is None:
        return None, "no module returns the token sequence"
    gradient = graph.score_gradients([last], lambda arrived: arrived)[0]
    if gradient is None:
        return None, "the output does not depend on the tokens"
    strength = gradient.abs().sum(dim=(0, 2))
    used = (strength > 1e-6 * strength.max()).nonzero().flatten().tolist()
    if max(used) < layout.prefix:
        return (used[0] if len(used) == 1 else tuple(used)), ""
    patches = gradient[:, layout.prefix :]
    largest = gradient.abs().max()
    even = (patches - patches.mean(1, keepdim=True)).abs().max() <= 1e-3 * largest
    if even and used[0] == 0 and layout.prefix:
        alike = (gradient - patches.mean(1, keepdim=True)).abs().max() <= 1e-3 * largest
        if alike:
            return tuple(range(layout.length)), ""  # the mean over all tokens, class token included
        return 0, ""  # class token and patch mean side by side (DINOv2's linear head): the class row
    return None, "" if bool(
        even
    ) else "its score is read from the tokens by neither a class token, a mean nor attention"
