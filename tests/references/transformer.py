"""Methods of attention, derived on the hand-written ViT in float64: (adapter, images, target) -> (B,h,w)."""

import torch
from torch import Tensor

from references import vit
from references.plain import Plain


def _attention(adapter, images: Tensor, target: Tensor):
    w = vit.weights_of(adapter)
    logits, attention = vit.run(w, Plain(adapter).normalized(images))
    gradients = torch.autograd.grad(vit.scores_of(logits, target).sum(), attention)
    return w, [a.detach() for a in attention], list(gradients)


def class_attention(adapter, images, target, block=-1):
    w, attention, _ = _attention(adapter, images, target)
    return vit.patch_grid(w, vit.row_of_score(w, attention[block].mean(dim=1)), adapter.tokens.grid)


def attention_rollout(adapter, images, target):
    w, attention, _ = _attention(adapter, images, target)
    flow = torch.eye(attention[0].shape[-1], dtype=torch.float64)
    for one in attention:
        flow = (0.5 * one.mean(dim=1) + 0.5 * torch.eye(one.shape[-1], dtype=torch.float64)) @ flow
    return vit.patch_grid(w, vit.row_of_score(w, flow), adapter.tokens.grid)


def gradient_rollout(adapter, images, target):
    w, attention, gradients = _attention(adapter, images, target)
    relevance = torch.eye(attention[0].shape[-1], dtype=torch.float64).repeat(len(images), 1, 1)
    for one, gradient in zip(attention, gradients, strict=True):
        relevance = relevance + (one * gradient).clamp(min=0).mean(dim=1) @ relevance
    gained = relevance - torch.eye(relevance.shape[-1], dtype=torch.float64)  # the identity is the same for every patch
    return vit.patch_grid(w, vit.row_of_score(w, gained), adapter.tokens.grid)


def attention_x_gradient(adapter, images, target, block=-1):
    w, attention, gradients = _attention(adapter, images, target)
    product = (attention[block] * gradients[block]).clamp(min=0).mean(dim=1)
    return vit.patch_grid(w, vit.row_of_score(w, product), adapter.tokens.grid)


def legrad_gradients(adapter, images, target, cut=True) -> list[Tensor]:
    """Per block (B,heads,N,N): the score read from the tokens behind the block, back through that block only.

    cut=False lets the sum of all scores go back through everything at once, which is another formula.
    """
    w = vit.weights_of(adapter)
    x = vit.embed(w, Plain(adapter).normalized(images)).requires_grad_(True)
    attention, scores = [], []
    for block in w.blocks:
        x, one = vit.run_block(w, block, x.detach().requires_grad_(True) if cut else x)
        attention.append(one)
        scores.append(vit.scores_of(vit.read_out(w, x), target).sum())
    if cut:
        return [torch.autograd.grad(score, one)[0] for score, one in zip(scores, attention, strict=True)]
    return list(torch.autograd.grad(torch.stack(scores).sum(), attention))


def legrad(adapter, images, target, cut=True):
    w, maps = vit.weights_of(adapter), []
    for gradient in legrad_gradients(adapter, images, target, cut):
        images_, heads, queries, keys = gradient.shape
        total = torch.zeros(images_, keys, dtype=torch.float64)
        for head in range(heads):
            for query in range(queries):
                total += gradient[:, head, query].clamp(min=0)
        maps.append(total / (heads * queries))
    return vit.patch_grid(w, sum(maps) / len(maps), adapter.tokens.grid)
