"""A vision transformer written out by hand in float64, with the weights of timm's, transformers' or torchvision's."""

import copy
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Block:
    """Weights of one block; `qkv` and `proj` and the two of the MLP are (weight, bias)."""

    norm1: tuple[Tensor, Tensor]
    qkv: tuple[Tensor, Tensor]
    proj: tuple[Tensor, Tensor]
    norm2: tuple[Tensor, Tensor]
    fc1: tuple[Tensor, Tensor]
    fc2: tuple[Tensor, Tensor]


@dataclass
class Weights:
    """A whole ViT. pooled: whether the patch tokens are averaged, and only then normalized, as timm does it."""

    patch: tuple[Tensor, Tensor]
    class_token: Tensor | None
    positions: Tensor
    blocks: list[Block]
    norm: tuple[Tensor, Tensor]
    head: tuple[Tensor, Tensor]
    heads: int
    eps: float
    pooled: bool


def weights_of(adapter) -> Weights:
    """The weights of a model of one of the three libraries, in float64."""
    module = copy.deepcopy(adapter.module).double()
    read = {"timm": _timm, "transformers": _transformers, "torchvision": _torchvision}
    return read[type(module).__module__.partition(".")[0]](dict(module.state_dict()), module)


def _pair(state, name):
    return state[f"{name}.weight"], state[f"{name}.bias"]


def _timm(state, module) -> Weights:
    parts = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    blocks = [Block(*(_pair(state, f"blocks.{i}.{part}") for part in parts)) for i in range(len(module.blocks))]
    pooled = module.global_pool == "avg"
    return Weights(
        _pair(state, "patch_embed.proj"), state.get("cls_token"), state["pos_embed"], blocks,
        _pair(state, "fc_norm" if pooled else "norm"), _pair(state, "head"), module.blocks[0].attn.num_heads, 1e-6,
        pooled,
    )  # fmt: skip


def _transformers(state, module) -> Weights:
    blocks = []
    for i in range(len(module.vit.layers)):
        at = f"vit.layers.{i}"
        three = [_pair(state, f"{at}.attention.{one}_proj") for one in "qkv"]
        qkv = torch.cat([w for w, b in three]), torch.cat([b for w, b in three])
        rest = ("attention.o_proj", "layernorm_after", "mlp.fc1", "mlp.fc2")
        blocks.append(
            Block(_pair(state, f"{at}.layernorm_before"), qkv, *(_pair(state, f"{at}.{one}") for one in rest))
        )
    inside = "vit.embeddings"
    return Weights(
        _pair(state, f"{inside}.patch_embeddings.projection"), state[f"{inside}.cls_token"],
        state[f"{inside}.position_embeddings"], blocks, _pair(state, "vit.layernorm"), _pair(state, "classifier"),
        module.config.num_attention_heads, module.config.layer_norm_eps, False,
    )  # fmt: skip


def _torchvision(state, module) -> Weights:
    blocks = []
    for i in range(len(module.encoder.layers)):
        at = f"encoder.layers.encoder_layer_{i}"
        qkv = state[f"{at}.self_attention.in_proj_weight"], state[f"{at}.self_attention.in_proj_bias"]
        rest = ("self_attention.out_proj", "ln_2", "mlp.0", "mlp.3")
        blocks.append(Block(_pair(state, f"{at}.ln_1"), qkv, *(_pair(state, f"{at}.{one}") for one in rest)))
    heads = module.encoder.layers[0].self_attention.num_heads
    return Weights(
        _pair(state, "conv_proj"), state["class_token"], state["encoder.pos_embedding"], blocks,
        _pair(state, "encoder.ln"), _pair(state, "heads.head"), heads, 1e-6, False,
    )  # fmt: skip


def embed(w: Weights, normalized: Tensor) -> Tensor:
    """(B,3,H,W) -> (B,N,C) tokens in front of the first block."""
    weight, bias = w.patch
    side = weight.shape[-1]
    patches = F.unfold(normalized, side, stride=side).transpose(1, 2)
    tokens = patches @ weight.flatten(1).T + bias
    if w.class_token is not None:
        tokens = torch.cat([w.class_token.expand(len(tokens), -1, -1), tokens], dim=1)
    return tokens + w.positions


def layer_norm(x: Tensor, weights: tuple[Tensor, Tensor], eps: float) -> Tensor:
    mean = x.mean(dim=-1, keepdim=True)
    spread = ((x - mean) ** 2).mean(dim=-1, keepdim=True)
    return (x - mean) / (spread + eps).sqrt() * weights[0] + weights[1]


def linear(x: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
    return x @ weights[0].T + weights[1]


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B,N,C) -> (B,heads,N,C/heads)."""
    return torch.stack(x.chunk(heads, dim=-1), dim=1)


def attend(w: Weights, block: Block, x: Tensor) -> tuple[Tensor, Tensor]:
    """(B,N,C) normalized tokens -> what the attention branch adds, and the attention (B,heads,N,N) in its graph."""
    query, key, value = (split_heads(part, w.heads) for part in linear(x, block.qkv).chunk(3, dim=-1))
    attention = (query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])).softmax(dim=-1)
    mixed = attention @ value
    return linear(torch.cat(list(mixed.unbind(dim=1)), dim=-1), block.proj), attention


def run_block(w: Weights, block: Block, x: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens behind the block, and its attention."""
    added, attention = attend(w, block, layer_norm(x, block.norm1, w.eps))
    x = x + added
    return x + linear(F.gelu(linear(layer_norm(x, block.norm2, w.eps), block.fc1)), block.fc2), attention


def read_out(w: Weights, x: Tensor) -> Tensor:
    """(B,N,C) tokens -> (B,K) logits, by the final norm and head."""
    if w.pooled:
        return linear(layer_norm(x.mean(dim=1), w.norm, w.eps), w.head)
    return linear(layer_norm(x, w.norm, w.eps)[:, 0], w.head)


def run(w: Weights, normalized: Tensor) -> tuple[Tensor, list[Tensor]]:
    """(B,K) logits and the attention of every block, in their graph."""
    x, attention = embed(w, normalized).requires_grad_(True), []
    for block in w.blocks:
        x, one = run_block(w, block, x)
        attention.append(one)
    return read_out(w, x), attention


def scores_of(logits: Tensor, target: Tensor) -> Tensor:
    """(B,) logit of each image's target."""
    return torch.stack([row[int(index)] for row, index in zip(logits, target, strict=True)])


def patch_grid(w: Weights, rows: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B,N) one value per token -> (B,h,w) of the patches."""
    return rows[:, 0 if w.class_token is None else 1 :].reshape(-1, *grid)


def row_of_score(w: Weights, flow: Tensor) -> Tensor:
    """(B,N,N) -> (B,N): the class row, or the mean over the patch rows of a pooled model."""
    return flow.mean(dim=1) if w.pooled else flow[:, 0]
