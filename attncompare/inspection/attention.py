"""Find what a model can supply of attention: over one grid of tokens, of a class token, or inside windows."""

from dataclasses import replace
from itertools import pairwise

from attncompare.inspection.attention_calls import AttentionCalls
from attncompare.inspection.calls import BATCH, AttentionCall
from attncompare.inspection.features import HEADS
from attncompare.inspection.graph import Graph
from attncompare.inspection.layout import TokenLayout
from attncompare.inspection.structure import Family, ModelStructure, Part, WindowBlock
from attncompare.inspection.trace import Trace
from attncompare.inspection.windows import attends_to_tokens, find_windows

FLOW: tuple[Part, ...] = ("attention",)
GLOBAL: tuple[Part, ...] = ("attention", "class_attention")
WINDOWED: tuple[Part, ...] = ("windows", "hierarchy")
NO_ATTENTION = "it has no softmax attention between image positions"
UNSEEN = (
    "its attention cannot be seen: it is not a softmax over positions, or folds the heads into the batch; for a model of "
    "your own, give wrap_model(attention=...) a recorder"
)
UNREPORTED = "the recorder given as attention= reports no attention that leads to the score"
SIDE_BY_SIDE = "attention blocks run side by side, so their attention does not multiply; use "
USE_GLOBAL = "its attention is global on one grid; use class_attention, attention_rollout or gradient_rollout"
USE_WINDOWS = (
    "its attention lies in windows or on several grids, so plain rollout is not defined; "
    "use window_attention or hierarchical_rollout"
)
SEVERAL = "one attention module runs several softmaxes in a pass; which of them is meant is not defined"


def find_attention(graph: Graph, token_layouts: list[TokenLayout]) -> ModelStructure:
    """A ModelStructure with only the family, the parts of attention and the missing ones filled in.

    token_layouts: how sequences of tokens were seen to lie on the image, or what the user says of it.
    """
    trace = graph.trace
    modules = [call for path in dict.fromkeys(c.path for c in trace.attention) if (call := trace.call_of(path))]
    leading = {call.path for call in graph.leading_to_score(modules)}
    # What leads to no score is left out: SigLIP's pooling head runs in its classifier too.
    calls = [c for c in trace.attention if c.path in leading or trace.call_of(c.path) is None]
    if not calls and trace.network.attention is not AttentionCalls:
        return _none(UNREPORTED)
    if not calls:
        hidden = any(hasattr(call.module, name) for call in trace.calls for name in HEADS)
        return _none(UNSEEN) if hidden else _none(NO_ATTENTION, "cnn")
    pooling = [c for c in calls if c.is_global and c.queries == 1 and c.keys > 3]
    square = [c for c in calls if c.is_global and c.queries == c.keys and _is_over_tokens(trace, c)]
    layout = _layout_of(square[-1].keys, token_layouts) if square else None
    rest = [c for c in calls if c not in pooling and c not in square]
    if layout is not None:
        cells = layout.grid[0] * layout.grid[1]
        rest = [c for c in rest if c.shape[0] != BATCH * cells]  # attention within one patch stays within its token
    alike = [c for c in square if layout is not None and c.keys == layout.length]
    paths = [c.path for c in (*alike, *pooling)]
    if len(set(paths)) != len(paths):
        return _none(SEVERAL)
    if layout is not None and not rest and len(alike) == len(square) and _attend_to_all(pooling, layout):
        return _over_one_grid(graph, layout, alike, pooling)
    if pooling:
        return _pooled(pooling, token_layouts)
    if layout is not None and layout.prefix and square[-1] is calls[-1]:
        return _in_the_last_stage(graph, layout, alike)
    return _in_windows(graph, token_layouts, calls)


def _none(reason: str, family: Family = "hierarchical") -> ModelStructure:
    return ModelStructure(family, None, missing=dict.fromkeys((*GLOBAL, *WINDOWED), reason))


def _paths(calls: list[AttentionCall]) -> tuple[str, ...]:
    return tuple(call.path for call in calls)


def _is_over_tokens(trace: Trace, attention: AttentionCall) -> bool:
    """Whether as many tokens go into the module as its weights have rows: attention between channels looks alike."""
    tokens = trace.input_of(attention.path)
    if tokens is None or len(tokens.shape) not in (3, 4):
        return False
    shape, heads = tokens.shape, attention.shape[1]
    if len(shape) == 4:
        cells = (shape[2] * shape[3], shape[1] * shape[2])
        return attention.keys in cells or attention.keys - 1 in cells  # a pool may add the mean as a token
    if shape[-1] == attention.keys * heads:  # as many channels per head as tokens
        return attends_to_tokens(trace, attention)
    return attention.keys in shape[:2]


def _attend_to_all(pooling: list[AttentionCall], layout: TokenLayout) -> bool:
    """Whether every pooling query attends to all the tokens, and to itself or not."""
    return all(c.keys in (layout.length, layout.length + 1) for c in pooling)


def _layout_of(tokens: int, token_layouts: list[TokenLayout]) -> TokenLayout | None:
    """The layout of a sequence of that many tokens."""
    return next((layout for layout in token_layouts if layout.length == tokens), None)


def _are_chained(graph: Graph, blocks: tuple[str, ...]) -> bool:
    """Whether what goes into each block depends on what came out of the one before."""
    call_of = graph.trace.call_of
    return all(graph.follows(call_of(before), call_of(after)) for before, after in pairwise(blocks))


def _takes_a_sequence(trace: Trace, block: AttentionCall) -> bool:
    tokens = trace.input_of(block.path)
    return tokens is not None and len(tokens.shape) == 3


def _over_one_grid(
    graph: Graph, layout: TokenLayout, square: list[AttentionCall], pooling: list[AttentionCall]
) -> ModelStructure:
    """Every attention of the model is over the same tokens, except that pooling blocks may follow."""
    family: Family = "vit" if _takes_a_sequence(graph.trace, square[-1]) else "hierarchical" if pooling else "cnn"
    missing: dict[Part, str] = dict.fromkeys(WINDOWED, USE_GLOBAL)
    blocks = _paths([*square, *pooling])
    if not _are_chained(graph, blocks):
        missing |= dict.fromkeys(FLOW, SIDE_BY_SIDE + "class_attention")
    attention_tokens = None
    if pooling:
        attention_tokens = TokenLayout(layout.prefix + 1, layout.grid, 0)
    elif layout is not graph.trace.network.overrides.get("tokens"):
        class_token, reason = _class_token(graph, layout)
        layout = replace(layout, class_token=class_token)
        missing |= dict.fromkeys(GLOBAL, reason) if reason else {}
    return ModelStructure(family, None, layout, blocks, _paths(pooling), attention_tokens, missing=missing)


def _pooled(pooling: list[AttentionCall], token_layouts: list[TokenLayout]) -> ModelStructure:
    """The score is read by class attention, behind blocks whose own attention has no flow between tokens."""
    reason = "only its last blocks attend globally; what flows before them is no softmax over these tokens"
    if len({c.keys for c in pooling}) != 1:
        return _none("several class tokens attend to several grids; no one of them is the attention of the score")
    layout = _layout_of(pooling[-1].keys, token_layouts)
    if layout is None:
        return _none(f"the {pooling[-1].keys} tokens that its class attention reads do not lie on the image row by row")
    missing: dict[Part, str] = dict.fromkeys(FLOW, reason)
    missing |= dict.fromkeys(WINDOWED, f"{reason}; use class_attention")
    attention_tokens = TokenLayout(max(layout.prefix, 1), layout.grid, 0)
    paths = _paths(pooling)
    return ModelStructure("hierarchical", None, None, paths, paths, attention_tokens, missing=missing)


def _in_the_last_stage(graph: Graph, layout: TokenLayout, blocks: list[AttentionCall]) -> ModelStructure:
    """A class token that walks through several grids: on the last of them its attention is defined, the flow is not."""
    reason = "not all of its blocks have one plain attention over the same tokens; use class_attention"
    class_token, unread = _class_token(graph, layout)
    missing: dict[Part, str] = dict.fromkeys((*FLOW, *WINDOWED), reason)
    missing |= dict.fromkeys(GLOBAL, unread) if unread else {}
    family: Family = "vit" if _takes_a_sequence(graph.trace, blocks[-1]) else "cnn"
    return ModelStructure(family, None, replace(layout, class_token=class_token), _paths(blocks), missing=missing)


def _in_windows(graph: Graph, token_layouts: list[TokenLayout], calls: list[AttentionCall]) -> ModelStructure:
    """Attention inside windows, or global at several resolutions."""
    token_layouts = [layout for layout in token_layouts if not layout.prefix]
    windows: list[WindowBlock] = []
    refused: list[str] = []
    for call in calls:
        block = find_windows(graph.trace, call, token_layouts)
        if isinstance(block, WindowBlock):
            windows.append(block)
            token_layouts.append(TokenLayout(0, block.geometry.query_grid))  # how the output of a reducing block lies
        else:
            refused.append(block)
    paths = tuple(block.path for block in windows)
    if len(set(paths)) != len(paths):
        return _none(SEVERAL)
    if not windows:
        return _none(f"plain attention maps are not defined: {refused[0]}")
    missing: dict[Part, str] = dict.fromkeys(GLOBAL, USE_WINDOWS)
    if refused:
        share = f"{len(refused)} of its {len(calls)} attention blocks have no place on the image"
        missing["hierarchy"] = f"{share}; of the first of them, {refused[0]}"
    elif not _are_chained(graph, paths):
        missing["hierarchy"] = SIDE_BY_SIDE + "window_attention"
    return ModelStructure("hierarchical", None, windows=tuple(windows), missing=missing)


def _class_token(graph: Graph, layout: TokenLayout) -> tuple[int | tuple[int, ...] | None, str]:
    """(class_token, reason why there is none): the rows of the last token tensor that the output depends on."""
    last = next(
        (
            call
            for call in reversed(graph.trace.calls)
            if len(call.output.shape) == 3 and call.output.shape[1] == layout.length and graph.output(call) is not None
        ),
        None,
    )
    if last is None:
        return None, "no module returns the token sequence"
    gradient = graph.score_gradients([last], lambda arrived: arrived)[0]
    if gradient is None:
        return None, "the output does not depend on the tokens"
    strength = gradient.abs().sum(dim=(0, 2))
    used = (strength > 1e-6 * strength.max()).nonzero().flatten().tolist()
    if max(used) < layout.prefix:
        return (used[0] if len(used) == 1 else tuple(used)), ""
    mean, largest = gradient[:, layout.prefix :].mean(1, keepdim=True), gradient.abs().max()
    is_mean = (gradient - mean).abs().amax((0, 2)) <= 1e-3 * largest  # (N,) whether a row counts as the mean patch does
    if not bool(is_mean[layout.prefix :].all()):
        return None, "its score is read from the tokens by neither a class token, a mean nor attention"
    if not layout.prefix or used[0] != 0:
        return None, ""
    if bool(is_mean.all()):
        return tuple(range(layout.length)), ""  # the mean over all tokens, class token included
    return 0, ""  # class token and patch mean side by side (DINOv2's linear head): the class row
