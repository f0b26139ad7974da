"""Which memory layout suits which network on a CPU: `python benchmarks/layout.py`.

Every model is forwarded with four images in torch's layout and in NHWC, interleaved in one process: CPU time of the process,
2 threads, passive OpenMP; median, minimum and maximum of the ratio over the rounds, the largest difference of the outputs as
a share of the largest output, and whether `benchmark.layout` takes NHWC for it. Writes benchmarks/results/layout.csv.
"""

import os

os.environ.update(OMP_WAIT_POLICY="passive", KMP_BLOCKTIME="0", OMP_NUM_THREADS="2")

import argparse
import statistics
import time
from pathlib import Path

import pandas as pd
import torch

import attncompare as ac
from attncompare.adapters.base import ModelAdapter
from attncompare.benchmark.layout import layer_counts, takes_channels_last

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
    " visformer_tiny vit_tiny_patch16_224 volo_d1_224 vovnet39a xcit_tiny_12_p16_224"
)
MODELS = [f"torchvision/{name}@random" for name in TORCHVISION.split()] + [
    f"timm/{name}@random" for name in TIMM.split()
]
IMAGES = 4


def measure(model: ModelAdapter, rounds: int) -> dict[str, object]:
    """One row: times per image in ms of CPU time."""
    convolutions, linear = layer_counts(model)
    plain = torch.rand(IMAGES, 3, *model.size, generator=torch.Generator().manual_seed(0))
    layouts = {"nchw": plain, "nhwc": plain.contiguous(memory_format=torch.channels_last)}
    times: dict[str, list[float]] = {name: [] for name in layouts}
    with torch.no_grad():
        exact, found = (model.forward(images) for images in layouts.values())
        for _ in range(rounds):
            for name, images in layouts.items():
                start = time.process_time()
                model.forward(images)
                times[name].append((time.process_time() - start) / IMAGES * 1e3)
    ratios = [b / a for a, b in zip(*times.values(), strict=True)]
    return {
        "model": model.name, "convolutions": convolutions, "linear": linear, "nhwc": takes_channels_last(model),
        "rounds": rounds, "nchw_ms": statistics.median(times["nchw"]), "nhwc_ms": statistics.median(times["nhwc"]),
        "ratio": statistics.median(ratios), "min": min(ratios), "max": max(ratios),
        "difference": float((exact - found).abs().max() / exact.abs().max()),
    }  # fmt: skip


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
    table = pd.DataFrame(rows)
    table.to_csv(
        Path(__file__).parent / "results" / "layout.csv", index=False, float_format="%.3g", lineterminator="\n"
    )
    print(table.groupby("nhwc").ratio.describe()[["count", "min", "50%", "max"]])


if __name__ == "__main__":
    main()
