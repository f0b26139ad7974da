"""Train the three demo models from a seed: `python benchmarks/demo_models/train.py cnn|se_cnn|vit`.

Checkpoints go to --work; a killed training goes on from the last one. The weights (safetensors) and a model card (JSON)
are written where the package ships them. Rendering an image costs more than training on it, so a pool of images is drawn
once and multiplied by the set's own symmetries: rotation by 90 degrees, reflection, permuted and inverted colors.

Training starts on easy images (bright, central, upright, plain) and meets the full set after RAMP steps: without that the
ViT was still at chance after the 500 steps tried. bf16 autocast takes 0.53 of a ViT step where the CPU has it. On the ramp
Muon was ahead of AdamW (loss 0.15 against 0.65 after 500 steps).
"""

import argparse
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from attncompare.data.shapes import render_shape
from attncompare.models.sources.demo import BUILDERS, WEIGHTS
from attncompare.training.loop import train
from attncompare.training.recipes import WarmupCosine

POOL, RAMP_POOL = 50_000, 16_000
RAMP = {"cnn": 400, "se_cnn": 400, "vit": 2_000}
SPECS = {
    "cnn": WarmupCosine(steps=2_500, batch_size=64, learning_rate=3e-3, precision="bf16"),
    "se_cnn": WarmupCosine(steps=2_500, batch_size=64, learning_rate=3e-3, precision="bf16"),
    # Stopped before the end of its decay, at more than 98 %: 45 minutes on one core.
    "vit": WarmupCosine(
        steps=5_750, schedule_steps=12_000, batch_size=64, learning_rate=1.5e-3, precision="bf16", optimizer="muon"
    ),
}


def draw(split: str, start: int, count: int, ramp: bool, cache: Path) -> tuple[Tensor, Tensor]:
    """(count,64,64,3) uint8 images and labels, kept in a file; with `ramp` the difficulty rises from 0 to 1."""
    path = cache / f"{split}-{start}-{count}-{'ramp' if ramp else 'full'}.npz"
    if not path.exists():
        samples = [render_shape(start + i, split, difficulty=i / count if ramp else 1.0) for i in range(count)]
        np.savez(path, images=np.stack([s.image for s in samples]), labels=np.array([s.label for s in samples]))
    stored = np.load(path)
    return torch.from_numpy(stored["images"]), torch.from_numpy(stored["labels"])


def normalized(images: Tensor) -> Tensor:
    """(n,64,64,3) uint8 -> (n,3,64,64) as the demo models' adapters feed them."""
    return (images.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """The symmetries of the set, drawn anew for every eighth of the batch."""
    parts = []
    for part in normalized(images).chunk(8):
        turns, mirror, invert = (int(torch.randint(0, k, (1,), generator=generator)) for k in (4, 2, 2))
        part = torch.rot90(part, turns, (2, 3))[:, torch.randperm(3, generator=generator)]
        part = part.flip(3) if mirror else part
        parts.append(-part if invert else part)
    return torch.cat(parts).contiguous()


def sine_cosine(width: int, side: int) -> Tensor:
    """(side * side, width) 2-D sine-cosine position embedding."""
    rows, columns = torch.meshgrid(torch.arange(side).float(), torch.arange(side).float(), indexing="ij")
    frequency = 10_000 ** -(torch.arange(width // 4) / (width // 4))
    waves = [axis.flatten()[:, None] * frequency for axis in (columns, rows)]
    return torch.cat([f(wave) for wave in waves for f in (torch.sin, torch.cos)], dim=1)


def prepare_vit(model: nn.Module) -> None:
    """Sine-cosine positions as the start, and un-fused attention: its backward is faster at this size."""
    with torch.no_grad():
        width = model.pos_embed.shape[2]
        model.pos_embed.copy_(0.5 * torch.cat([torch.zeros(1, width), sine_cosine(width, 8)])[None])
    for block in model.blocks:
        block.attn.fused_attn = False


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of right answers in float32."""
    model.eval()
    with torch.no_grad():
        hits = [
            (model(normalized(x)).argmax(1) == y).float().sum()
            for x, y in zip(images.split(250), labels.split(250), strict=True)
        ]
    return float(sum(hits)) / len(labels)


def main() -> None:
    """Train one model and write its weights and card."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=sorted(SPECS))
    parser.add_argument("--work", type=Path, default=Path("runs/demo_models"))
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    spec = SPECS[options.model]
    options.work.mkdir(parents=True, exist_ok=True)
    images, labels = draw("train", 0, POOL, False, options.work)
    easy, easy_labels = draw("train", POOL, RAMP_POOL, True, options.work)
    ramp = RAMP[options.model]

    def batches(step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(spec.seed * 1_000_003 + step)
        if step < ramp:
            level = (step + 1) / ramp
            low, high = max(0, int((level - 0.35) * RAMP_POOL)), max(200, int(min(1.0, level + 0.05) * RAMP_POOL))
            chosen = torch.randint(low, high, (spec.batch_size,), generator=generator)
            return normalized(easy[chosen]), easy_labels[chosen]
        chosen = torch.randint(0, POOL, (spec.batch_size,), generator=generator)
        return augmented(images[chosen], generator), labels[chosen]

    torch.manual_seed(spec.seed)
    model = BUILDERS[options.model]()
    if options.model == "vit":
        prepare_vit(model)
    else:
        model = model.to(memory_format=torch.channels_last)
    held_out = draw("val", 0, 1_000, False, options.work)
    row: dict[str, float] = {}
    checkpoint = options.work / f"{options.model}.safetensors"
    for row in train(model, batches, spec, checkpoint, validate=lambda m: accuracy(m, *held_out), every=250):
        print(options.model, json.dumps({key: round(value, 4) for key, value in row.items()}), flush=True)

    options.out.mkdir(parents=True, exist_ok=True)
    weights = options.out / f"{options.model}.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, weights)
    test = draw("test", 0, 2_000, False, options.work)
    card = {
        "model": f"demo/{options.model}",
        "recipe": f"python benchmarks/demo_models/train.py {options.model}",
        "spec": vars(spec) | {"ramp_steps": ramp, "pool": POOL},
        "epochs": round(spec.steps * spec.batch_size / POOL, 2),
        "parameters": sum(p.numel() for p in model.parameters()),
        "val_accuracy": round(accuracy(model, *held_out), 4),
        "test_accuracy": round(accuracy(model, *test), 4),
        "test_images": "render_shape(0..1999, 'test')",
        "training_seconds": math.ceil(row["seconds"]),
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    (options.out / f"{options.model}.json").write_text(json.dumps(card, indent=2) + "\n")
    print(json.dumps(card, indent=2))


if __name__ == "__main__":
    main()
