"""nn.MultiheadAttention in functions that a backward rule can meet one by one."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from attncompare.errors import UnsupportedMethodError

NAMES = (
    "query", "key", "value", "embed_dim_to_check", "num_heads", "in_proj_weight", "in_proj_bias", "bias_k", "bias_v",
    "add_zero_attn", "dropout_p", "out_proj_weight", "out_proj_bias", "training", "key_padding_mask", "need_weights",
    "attn_mask", "use_separate_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "static_k", "static_v",
    "average_attn_weights", "is_causal",
)  # fmt: skip
UNUSED = ("bias_k", "bias_v", "add_zero_attn", "key_padding_mask", "attn_mask", "static_k", "static_v", "is_causal")


def multi_head_attention(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """What F.multi_head_attention_forward computes, (N,B,E) -> (N,B,E), by linear layers, softmax and products.

    The kernel and softmax are looked up when they are called, so that who stands in for them is met.
    """
    given = {"need_weights": True, "average_attn_weights": True, **dict(zip(NAMES, args, strict=False)), **kwargs}
    if used := [name for name in UNUSED if given.get(name) is not None and given.get(name) is not False]:
        raise UnsupportedMethodError(f"no backward rules for nn.MultiheadAttention with {', '.join(used)}")
    heads, inputs = given["num_heads"], (given["query"], given["key"], given["value"])
    biases = (None,) * 3 if given["in_proj_bias"] is None else given["in_proj_bias"].chunk(3)
    if given.get("use_separate_proj_weight"):
        weights = tuple(given[f"{part}_proj_weight"] for part in "qkv")
    else:
        weights = given["in_proj_weight"].chunk(3)
    length, batch, width = inputs[0].shape

    def by_head(x: Tensor) -> Tensor:
        return x.reshape(len(x), batch, heads, width // heads).permute(1, 2, 0, 3)

    query, key, value = (by_head(F.linear(x, w, b)) for x, w, b in zip(inputs, weights, biases, strict=True))
    attention = None
    if given["need_weights"]:
        scores = (query * (width // heads) ** -0.5).flatten(0, 1) @ key.flatten(0, 1).transpose(1, 2)
        attention = F.softmax(scores, dim=-1)
        mixed = (attention @ value.flatten(0, 1)).reshape(batch, heads, length, width // heads)
        attention = attention.reshape(batch, heads, length, -1)
        attention = attention.mean(1) if given["average_attn_weights"] else attention
    else:
        mixed = F.scaled_dot_product_attention(query, key, value)
    joined = mixed.permute(2, 0, 1, 3).reshape(length, batch, width)
    output: Tensor = F.linear(joined, given["out_proj_weight"], given["out_proj_bias"])
    return output, attention
