"""Windowed attention of transformers' Swin, from the attentions that it returns itself, as dense matrices in float64."""

import torch
from torch import Tensor

from references.peers import own_attentions


def dense(attention: Tensor, side: int, window: int) -> Tensor:
    """(B*W,heads,k,k) of windows side by side on a side x side grid -> (B,N,N) head mean."""
    per_image = (side // window) ** 2
    count = len(attention) // per_image
    found = torch.zeros(count, side * side, side * side, dtype=torch.float64)
    for image in range(count):
        for number in range(per_image):
            row, column = divmod(number, side // window)
            places = [(row * window + i) * side + column * window + j for i in range(window) for j in range(window)]
            weights = attention[image * per_image + number].double().mean(dim=0)
            for query, place in enumerate(places):
                found[image, place, places] = weights[query]
    return found


def blocks(adapter, images) -> list[Tensor]:
    """Every block's (B,N,N); the model has one block per stage, and none of them is shifted."""
    module = adapter.module.config
    side, found = images.shape[2] // module.patch_size, []
    for attention in own_attentions(adapter, images):
        found.append(dense(attention, side, module.window_size))
        side //= 2
    return found


def window_attention(adapter, images, target):
    """What each place of the last block receives, mean over the queries of its window."""
    last = blocks(adapter, images)[-1]
    side = round(last.shape[-1] ** 0.5)
    return (last.sum(dim=1) / adapter.module.config.window_size**2).reshape(-1, side, side)


def hierarchical_rollout(adapter, images, target):
    """The mean row of the last grid, back through (A + I) / 2; a coarse cell is the mean of four fine ones."""
    flow = None
    for step in reversed(blocks(adapter, images)):
        count = step.shape[-1]
        if flow is None:
            flow = torch.full((len(images), count), 1 / count, dtype=torch.float64)
        elif flow.shape[1] != count:
            side = round(flow.shape[1] ** 0.5)
            coarse = flow.reshape(-1, side, side) / 4
            flow = coarse.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2).flatten(1)
        flow = torch.einsum("bq,bqk->bk", flow, (step + torch.eye(count, dtype=torch.float64)) / 2)
    side = round(flow.shape[1] ** 0.5)
    return flow.reshape(-1, side, side)
