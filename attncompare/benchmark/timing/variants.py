"""The precisions and compilers that models are timed under, beside plain float32."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attncompare.benchmark.records import Variant
from attncompare.methods._base import Method
from attncompare.models.adapter import ModelAdapter
from attncompare.registry import signals


def refusal(variant: Variant, method: Method) -> str:
    """Why a method cannot run under a variant, or "".

    Hooks that are set after torch.compile never run (torch._dynamo.config.skip_nnmodule_hook_guards), so what reads
    inside the model would silently get nothing, or what an earlier call recorded.
    """
    inside = sorted(name for name in method.needs if signals.get(name).inside)
    if variant == "compile" and inside:
        return f"{method.name} reads {', '.join(inside)} inside the model, where torch.compile leaves nothing to read"
    return ""


def in_variant(model: ModelAdapter, variant: Variant) -> ModelAdapter:
    """The model under a variant, its outputs float32. The module itself is changed for good: for a process of its own.

    bf16 is autocast around the model's forward pass, not around a method's formula. compile is torch.compile with its
    defaults and fixed shapes.
    """
    if variant == "fp32":
        return model
    if variant == "bf16":
        model.module.forward = torch.autocast(model.device.type, torch.bfloat16)(model.module.forward)
    else:
        model.module.compile(dynamic=False)
    plain = model.source.output_fn

    def output_fn(output: Any) -> Tensor:
        return plain(output).float()

    return replace(model, source=replace(model.source, output_fn=output_fn), checked_recordings=set())
