"""Is this checkout slower than a start commit? Both in one process, interleaved, on the same weights and images.

    OMP_NUM_THREADS=2 python benchmarks/speed/editions.py --base 7ac20f4 --rounds 7

CPU time of explain_together with the target given, 2 threads. The ratio of this checkout to the base is taken round by
round.
"""

import argparse
import sys
from pathlib import Path

import torch
from rounds import Job, measure, row_of

sys.path.insert(0, str(Path(__file__).parents[1]))

from editions import ROOT, Edition, worktree

CNNS = ("torchvision/resnet18@random", "torchvision/resnet50@random")
VITS = ("timm/vit_tiny_patch16_224@random", "timm/vit_base_patch16_224@random")
METHODS = {
    **dict.fromkeys(CNNS, ("grad_cam",)),
    **dict.fromkeys(VITS, ("grad_cam", "class_attention", "attention_rollout", "gradient_rollout")),
}
BATCHES = (1, 8)
THREADS = 2


def jobs_of(edition: Edition, name: str, which: str, batch: int) -> list[Job]:
    """One job for each method on a model, and its first run, which imports what it needs and checks the logits."""
    with edition.active() as load:
        package = load("attncompare")
        model, explain = package.load_model(name), package.explain_together
        images = torch.rand(batch, 3, *model.size, generator=torch.Generator().manual_seed(0))
        target = torch.arange(batch)
        jobs = []
        for method in METHODS[name]:
            run = lambda method=method: explain(model, [method], images, target)  # noqa: E731
            run()
            jobs.append(Job(f"{which} {method}", run))
        return jobs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="7ac20f4", help="the commit to compare with")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    print("model batch method: ratio of CPU time to the base, median [min, max], n; base in ms")
    with worktree(options.base) as folder:
        new, old = Edition(ROOT), Edition(folder)
        for name in METHODS:
            for batch in BATCHES:
                before, after = jobs_of(old, name, "base", batch), jobs_of(new, name, "this", batch)
                for one, other in zip(before, after, strict=True):
                    other.reference = one.name
                    measure([one, other], options.rounds)
                    assert "attncompare" not in sys.modules, "a timed run imported the package anew"
                    row = row_of(other, [one, other])
                    print(
                        f"{name} {batch} {other.name.removeprefix('this ')}: {row['ratio_median']:.3f} "
                        f"[{row['ratio_min']:.3f}, {row['ratio_max']:.3f}], {row['n']}; {row['reference_ms']:.0f} ms",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
