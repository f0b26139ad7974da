"""nn.MultiheadAttention in functions that a backward rule can meet one by one."""

import inspect
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from attncompare.errors import UnsupportedMethodError

SIGNATURE = inspect.signature(F.multi_head_attention_forward)
UNUSED = ("bias_k", "bias_v", "add_zero_attn", "key_padding_mask", "attn_mask", "static_k", "static_v", "is_causal")


def multi_head_attention(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """What F.multi_head_attention_forward computes, (N,B,E) -> (N,B,E), by linear layers, softmax and products.

    The kernel and softmax are looked up when they are called, so that who stands in for them is met.
    """
    bound = SIGNATURE.bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    if used := [name for name in UNUSED if given[name] is not None and given[name] is not False]:
        raise UnsupportedMethodError(f"no backward rules for nn.MultiheadAttention with {', '.join(used)}")
    heads, inputs = given["num_heads"], (given["query"], given["key"], given["value"])
    biases = (None,) * 3 if given["in_proj_bias"] is None else given["in_proj_bias"].chunk(3)
    apart = given["use_separate_proj_weight"]
    weights = [given[f"{part}_proj_weight"] for part in "qkv"] if apart else given["in_proj_weight"].chunk(3)
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
    return F.linear(joined, given["out_proj_weight"], given["out_proj_bias"]), attention
