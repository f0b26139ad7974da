"""Relevance of a transformer, layer by layer in float64: Chefer et al. (arXiv:2012.09838) and AttnLRP (arXiv:2402.05602)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from references import vit
from references.plain import Plain
from references.transformer import _attention

EPSILON = 0.0
"""What every divisor is moved away from 0 by; the paper has none, the authors' code 1e-9."""


def divided(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is."""
    moved = b + EPSILON * b.sign()
    return torch.where(b == 0, torch.zeros_like(b), a / torch.where(b == 0, torch.ones_like(b), moved))


def positive_linear(x: Tensor, weight: Tensor, relevance: Tensor) -> Tensor:
    """x (..., i), weight (o, i), relevance (..., o): each output's goes to its positive contributions x_i w_oi."""
    contributions = (x[..., None, :] * weight).clamp(min=0)  # (..., o, i)
    return (divided(relevance, contributions.sum(dim=-1))[..., None] * contributions).sum(dim=-2)


def product(a: Tensor, b: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Out = a @ b: half to each factor, in the share of each term a_ij b_jk of the output."""
    terms = a[..., :, :, None] * b[..., None, :, :]  # (..., i, j, k)
    shares = divided(relevance, terms.sum(dim=-2))[..., :, None, :] * terms
    return shares.sum(dim=-1) / 2, shares.sum(dim=-3) / 2


def residual(a: Tensor, b: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """a + b of ONE image: shares of each value, then scaled to |sum a| : |sum b|, whose whole is kept."""
    share = divided(relevance, a + b)
    one, other = a * share, b * share
    size = one.sum().abs() + other.sum().abs()
    whole = relevance.sum()
    parts = [part * divided(divided(part.sum().abs(), size) * whole, part.sum()) for part in (one, other)]
    return parts[0], parts[1]


def attention_relevance(adapter, image: Tensor, target: int) -> list[Tensor]:
    """Per block (heads,N,N) relevance of the attention of one image (1,3,H,W)."""
    w = vit.weights_of(adapter)
    x = vit.embed(w, Plain(adapter).normalized(image))
    inputs = []
    for block in w.blocks:
        inputs.append(x)
        x, _ = vit.run_block(w, block, x)
    relevance = torch.zeros(w.head[0].shape[0], dtype=torch.float64)
    relevance[target] = 1
    if w.pooled:
        mean = x.mean(dim=1)
        at_mean = positive_linear(vit.layer_norm(mean, w.norm, w.eps), w.head[0], relevance[None])  # norm passes it
        count = x.shape[1]
        relevance = divided(at_mean, mean)[:, None] * x / count
    else:
        read = vit.layer_norm(x, w.norm, w.eps)[:, 0]
        relevance = torch.zeros_like(x)
        relevance[:, 0] = positive_linear(read, w.head[0], torch.eye(w.head[0].shape[0], dtype=torch.float64)[target])
    found = []
    for block, x in zip(reversed(w.blocks), reversed(inputs), strict=True):
        relevance, of_attention = _block_relevance(w, block, x, relevance)
        found.append(of_attention[0])
    return found[::-1]


def _block_relevance(w: vit.Weights, block: vit.Block, x: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Relevance in front of the block, and of its attention."""
    normed = vit.layer_norm(x, block.norm1, w.eps)
    query, key, value = (vit.split_heads(part, w.heads) for part in vit.linear(normed, block.qkv).chunk(3, dim=-1))
    logits = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    attention = logits.softmax(dim=-1)
    mixed = torch.cat(list((attention @ value).unbind(dim=1)), dim=-1)
    added = vit.linear(mixed, block.proj)
    middle = x + added
    hidden = vit.linear(vit.layer_norm(middle, block.norm2, w.eps), block.fc1)
    activated = F.gelu(hidden)
    # the MLP and its residual
    to_middle, to_mlp = residual(middle, vit.linear(activated, block.fc2), relevance)
    to_mlp = positive_linear(activated, block.fc2[0], to_mlp)
    to_mlp = positive_linear(vit.layer_norm(middle, block.norm2, w.eps), block.fc1[0], to_mlp)
    # attention and its residual
    to_x, to_attention = residual(x, added, to_middle + to_mlp)
    to_mixed = vit.split_heads(positive_linear(mixed, block.proj[0], to_attention), w.heads)
    of_attention, of_value = product(attention, value, to_mixed)
    of_query, of_key = product(query, key.transpose(-2, -1), of_attention)  # softmax passes it
    parts = [torch.cat(list(p.unbind(dim=1)), dim=-1) for p in (of_query, of_key.transpose(-2, -1), of_value)]
    return to_x + positive_linear(normed, block.qkv[0], torch.cat(parts, dim=-1)), of_attention


def transformer_lrp(adapter, images: Tensor, target: Tensor) -> Tensor:
    w, _, gradients = _attention(adapter, images, target)
    maps = []
    for index in range(len(images)):
        relevances = attention_relevance(adapter, images[index : index + 1], int(target[index]))
        count = relevances[0].shape[-1]
        flow = torch.eye(count, dtype=torch.float64)
        for relevance, gradient in zip(relevances, gradients, strict=True):
            step = (relevance * gradient[index]).clamp(min=0).mean(dim=0)
            flow = (torch.eye(count, dtype=torch.float64) + step) @ flow
        moved = flow - torch.eye(count, dtype=torch.float64)  # the identity is the same for every patch
        maps.append(vit.patch_grid(w, vit.row_of_score(w, moved[None]), adapter.tokens.grid)[0])
    return torch.stack(maps)


def gamma_linear(x: Tensor, weights: tuple[Tensor, Tensor], gamma: float) -> Tensor:
    """A linear layer whose value is its own and whose input x gradient is LRP-gamma.

    Where the output is positive, positive contributions x_i w_oi (and a positive bias) count 1 + gamma fold; where it is
    negative, negative ones do. Shares of the bias are lost.
    """
    weight, bias = weights
    value = vit.linear(x, weights).detach()
    contributions = x[..., None, :] * weight  # (..., o, i)
    same_sign = (contributions.detach() * value[..., None]) > 0
    weighted = torch.where(same_sign, (1 + gamma) * contributions, contributions)
    bias_part = torch.where(bias * value > 0, (1 + gamma) * bias, bias.expand_as(value))
    total = weighted.detach().sum(dim=-1) + bias_part
    scaled = weighted.sum(dim=-1) * (value / total)
    return scaled + (value - scaled).detach()


def half(x: Tensor) -> Tensor:
    """x, whose gradient counts half: one of two factors."""
    return x / 2 + x.detach() / 2


def fixed_norm(x: Tensor, weights: tuple[Tensor, Tensor], eps: float) -> Tensor:
    """Layer norm whose divisor is a constant."""
    centered = x - x.mean(dim=-1, keepdim=True)
    divisor = ((centered.detach() ** 2).mean(dim=-1, keepdim=True) + eps).sqrt()
    return centered / divisor * weights[0] + weights[1]


def gelu(x: Tensor) -> Tensor:
    """GELU as its input times a constant, value / input."""
    return x * (F.gelu(x) / x).detach()


def attn_lrp_logits(w, normalized: Tensor, gamma: float = 0.05, conv_gamma: float = 0.25, positions=None, kept=None):
    """Logits of a ViT modified so that input times gradient is AttnLRP's relevance.

    positions: in place of the model's, to ask for their relevance too. kept: a list for (scores, attention) per block.
    """
    side = w.patch[0].shape[-1]
    patches = F.unfold(normalized, side, stride=side).transpose(1, 2)
    x = gamma_linear(patches, (w.patch[0].flatten(1), w.patch[1]), conv_gamma)
    if w.class_token is not None:
        x = torch.cat([w.class_token.expand(len(x), -1, -1), x], dim=1)
    x = x + (w.positions if positions is None else positions)
    for block in w.blocks:
        normed = fixed_norm(x, block.norm1, w.eps)
        query, key, value = (
            vit.split_heads(part, w.heads) for part in gamma_linear(normed, block.qkv, gamma).chunk(3, dim=-1)
        )
        scores = half(query) @ half(key).transpose(-2, -1) / math.sqrt(query.shape[-1])
        attention = scores.softmax(dim=-1)
        if kept is not None:
            kept.append((scores, attention))
        mixed = torch.cat(list((half(attention) @ half(value)).unbind(dim=1)), dim=-1)
        x = x + gamma_linear(mixed, block.proj, gamma)
        hidden = gamma_linear(fixed_norm(x, block.norm2, w.eps), block.fc1, gamma)
        x = x + gamma_linear(gelu(hidden), block.fc2, gamma)
    read = fixed_norm(x.mean(dim=1), w.norm, w.eps) if w.pooled else fixed_norm(x, w.norm, w.eps)[:, 0]
    return gamma_linear(read, w.head, gamma)


def attn_lrp(adapter, images, target, conv_gamma=0.25, linear_gamma=0.05):
    w = vit.weights_of(adapter)
    x = Plain(adapter).normalized(images).requires_grad_(True)
    score = vit.scores_of(attn_lrp_logits(w, x, linear_gamma, conv_gamma), target).sum()
    return (x * torch.autograd.grad(score, x)[0]).detach().sum(dim=1)
