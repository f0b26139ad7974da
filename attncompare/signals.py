"""The words a method may ask for, and the layout of a token sequence on the image grid."""

from enum import StrEnum

from attncompare.registry import Option


class Signal(StrEnum):
    """What a model can supply to a method. B images, C channels, h w grid, N tokens, K classes, L blocks.

    A method asks for a signal by naming a parameter after it.
    """

    IMAGES = "images"  # (B,3,H,W) float32 RGB in [0, 1]
    TARGET = "target"  # (B,) int64, index of the explained output of `forward`
    FORWARD = "forward"  # nn.Module: images -> (B,K) scores, for Captum
    TARGET_SCORE = "target_score"  # callable: altered images (n,3,H,W), image index (n,) -> (n,) target's probability
    FEATURE_LAYER = "feature_layer"  # nn.Identity whose output is the features (B,C,h,w), for Captum
    FEATURES = "features"  # (B,C,h,w) output of the feature layer
    FEATURE_GRADIENTS = "feature_gradients"  # (B,C,h,w) d target score / d features
    CLASSIFIER_WEIGHTS = "classifier_weights"  # (B,C) the target's row of a linear classifier on pooled features
    POOLED_FEATURES = "pooled_features"  # (B,C,h,w) what global average pooling reads, before that classifier
    CHANNEL_ATTENTION = "channel_attention"  # (B,C) gate values of a squeeze-and-excitation layer, in [0, 1]
    GATED_FEATURES = "gated_features"  # (B,C,h,w) the features those gates multiply
    ATTENTION = "attention"  # L x (B,heads,N,N) after softmax
    ATTENTION_GRADIENTS = "attention_gradients"  # L x (B,heads,N,N) d target score / d attention
    FUSED_ATTENTION = "fused_attention"  # L x (B,N,N) attention, heads fused by `head_fusion`
    CLASS_ATTENTION = "class_attention"  # L x (B,heads,N) the attention row(s) that the class score is read from
    TOKENS = "tokens"  # TokenLayout
    WINDOW_ATTENTION = "window_attention"  # L x WindowAttention, the blocks whose windows lie on the image
    ATTENTION_HIERARCHY = "attention_hierarchy"  # the same, of a model all of whose attention lies in them
    IMAGE_GRADIENTS = "image_gradients"  # (B,3,H,W) d target score / d images
    MEAN_COLOUR = "mean_colour"  # (3,) RGB in [0, 1], the colour that the model's normalisation maps to zero
    SUPERPIXELS = "superpixels"  # (B,H,W) int64 labels of SLIC segments, 0 to count - 1 in each image
    SCORES = "scores"  # (B,K) every output of `forward` on the clean images
    CLASS_SCORES = "class_scores"  # the same where the outputs are classes
    ABLATED_SCORES = "ablated_scores"  # (B,C) target score with one channel of the features set to 0
    BLOCK_GRADIENTS = "block_gradients"  # L x (B,heads,N,N) d score read from a block's own tokens / d its attention
    GUIDED_GRADIENTS = "guided_gradients"  # (B,3,H,W) d target score / d images, ReLUs passing positive gradients only
    ATTENTION_RELEVANCE = "attention_relevance"  # L x (B,heads,N,N) relevance of the target score (LRP)


GRADIENTS = {
    Signal.FEATURE_GRADIENTS: Signal.FEATURES,
    Signal.ATTENTION_GRADIENTS: Signal.ATTENTION,
    Signal.IMAGE_GRADIENTS: Signal.IMAGES,
}
"""Each gradient signal and the signal it is taken with respect to."""

CALLABLES = frozenset({Signal.FORWARD, Signal.TARGET_SCORE, Signal.FEATURE_LAYER})
"""Signals for methods that run the model themselves."""

FREE = frozenset({Signal.IMAGES, Signal.TARGET, Signal.TOKENS, Signal.MEAN_COLOUR, Signal.SUPERPIXELS})
"""Signals that cost no pass."""

ALTERED = frozenset(
    {Signal.ABLATED_SCORES, Signal.BLOCK_GRADIENTS, Signal.GUIDED_GRADIENTS, Signal.ATTENTION_RELEVANCE}
)
"""Signals that come from passes whose forward or backward rules are not the model's own."""

OWN_PASSES = CALLABLES | ALTERED
"""Signals that never join the shared pass."""


LAYER = Option("layer", None, None, "module path of the feature layer; the model's default when not given", str)

SIGNAL_OPTIONS: dict[Signal, tuple[Option, ...]] = {
    Signal.FUSED_ATTENTION: (
        Option(
            "fusion", "mean", ("mean", "max", "min"), "how the heads of a block are fused; the paper's is mean", str
        ),
    ),
    Signal.SUPERPIXELS: (Option("segments", 50, None, "how many superpixels are wanted", int, (2, 10_000)),),
    **dict.fromkeys((Signal.FEATURES, Signal.FEATURE_GRADIENTS, Signal.FEATURE_LAYER, Signal.ABLATED_SCORES), (LAYER,)),
    **dict.fromkeys(
        (Signal.CHANNEL_ATTENTION, Signal.GATED_FEATURES),
        (Option("gate", -1, None, "which channel-attention layer, counted from the input; -1 is the last", int),),
    ),
}
