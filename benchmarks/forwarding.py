"""Which way of forwarding suits which network on a CPU: `python benchmarks/forwarding.py`.

Every model is forwarded with four images by torch's own way and in the NHWC layout, interleaved in one process: CPU time of
the process, 2 threads, passive OpenMP; of the ratio to torch's own way the median, minimum and maximum over the rounds, the
largest difference of the outputs as a share of the largest output, and which way `benchmark.forwarding` takes. Writes
benchmarks/results/forwarding.csv, where models that are not measured keep their rows.
"""

import os

os.environ.update(OMP_WAIT_POLICY="passive", KMP_BLOCKTIME="0", OMP_NUM_THREADS="2")

import argparse
import statistics
import time
from pathlib import Path

import pandas as pd
import torch
from torch import nn

import attncompare as ac
from attncompare.benchmark.forwarding import Way, forward_by, suitable_way
from attncompare.models.adapter import ModelAdapter

TORCHVISION = (
    "alexnet convnext_tiny densenet121 efficientnet_b0 googlenet inception_v3 maxvit_t mnasnet1_0 mobilenet_v2"
    " mobilenet_v3_large regnet_y_400mf resnet18 resnet50 resnext50_32x4d shufflenet_v2_x1_0 squeezenet1_1 swin_t vgg11_bn"
    " vgg16 vit_b_32"
)
TIMM = (
    "coatnet_0_rw_224 convmixer_768_32 convnext_nano convnextv2_atto crossvit_9_240 cspdarknet53 davit_tiny dla34"
    " eca_botnext26ts_256 edgenext_xx_small efficientvit_b0 fastvit_t8 focalnet_tiny_srf ghostnet_100 gcvit_xxtiny"
    " hrnet_w18 inception_next_tiny levit_128s mambaout_femto mobilevit_s nextvit_small poolformer_s12 pvt_v2_b0"
    " repvit_m1 res2net50_26w_4s rexnet_100 seresnet50 starnet_s1 swin_tiny_patch4_window7_224 tiny_vit_5m_224"
    " visformer_tiny vit_base_patch16_224 vit_tiny_patch16_224 volo_d1_224 vovnet39a xcit_tiny_12_p16_224"
)
MODELS = [f"torchvision/{name}@random" for name in TORCHVISION.split()] + [
    f"timm/{name}@random" for name in TIMM.split()
]
IMAGES = 4
OTHER: Way = "channels_last"


def measure(model: ModelAdapter, rounds: int) -> dict[str, object]:
    """One row: times per image in ms of CPU time."""
    images = torch.rand(IMAGES, 3, *model.size, generator=torch.Generator().manual_seed(0))
    times: dict[Way, list[float]] = {"contiguous": [], OTHER: []}
    with torch.no_grad():
        found = {way: forward_by(model, images, way) for way in times}
        for _ in range(rounds):
            for way, spent in times.items():
                start = time.process_time()
                forward_by(model, images, way)
                spent.append((time.process_time() - start) / IMAGES * 1e3)
    exact = found["contiguous"]
    row: dict[str, object] = {
        "model": model.name, "convolutions": count(model, nn.Conv2d), "linear": count(model, nn.Linear),
        "way": suitable_way(model), "rounds": rounds,
        "torch_ms": statistics.median(times["contiguous"]),
    }  # fmt: skip
    ratios = [b / a for a, b in zip(times["contiguous"], times[OTHER], strict=True)]
    return row | {
        OTHER: statistics.median(ratios), f"{OTHER}_min": min(ratios), f"{OTHER}_max": max(ratios),
        f"{OTHER}_difference": float((exact - found[OTHER]).abs().max() / exact.abs().max()),
    }  # fmt: skip


def count(model: ModelAdapter, kind: type[nn.Module]) -> int:
    """How many layers of a kind it has."""
    return sum(isinstance(module, kind) for module in model.module.modules())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    rows = []
    for name in arguments.models:
        rows.append(measure(ac.load_model(name), arguments.rounds))
        print(rows[-1], flush=True)
    table, path = pd.DataFrame(rows), Path(__file__).parent / "results" / "forwarding.csv"
    if path.exists():
        before = pd.read_csv(path)
        table = pd.concat([before[~before.model.isin(table.model)], table])
    table.to_csv(path, index=False, float_format="%.3g", lineterminator="\n")
    print(table.groupby("way")[[OTHER]].describe().T.to_string())


if __name__ == "__main__":
    main()
