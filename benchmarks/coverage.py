"""Does every model work without configuration, or say what it cannot supply? `python benchmarks/coverage.py`.

Each model of the sweep is built with seeded random weights, which are then stirred, since a head that starts at zero hides
mistakes. It is opened as a user would open it, in a process of its own, and every signal is tried. A cell of coverage.csv
is `ok`, `refused: reason` (said by the library before anything ran) or `failed: error`. Four columns look for maps that
are wrong without an error: `localised` changes one quadrant of the image at a time and asks where the features move,
`attention_reference` compares attention with what the model's own library returns, `logits_difference` compares the
logits with those before the probe, and `classifier` asks that CAM's mean plus the bias is the logit.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import resource
import textwrap
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
import torch
from coverage_checks import CHECKS, COLUMNS, examine
from coverage_models import Case
from coverage_table import CAPABILITIES, README, read_rows, summary, write_capabilities, write_readme, write_rows
from torch import nn

from attncompare.models.sources import torchvision as torchvision_source

HERE = Path(__file__).parent
LIBRARIES = ("transformers", "torchvision", "timm")
PRELOADED = ["torch", "timm", "torchvision", "transformers", "captum.attr", "pandas", "attncompare.explain"]


def _words(text: str) -> list[str]:
    return text.split()


SMALLEST = _words(
    """
    beit_base_patch16_224 halonet_h1 mobileone_s1 cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32
    convnext_zepto_rms cpubone_nano crossvit_tiny_240 csatv2 cs3darknet_focus_s cspnext_tiny davit_tiny
    deepseek_vit_412m deit_tiny_patch16_224 densenet121 dla46x_c dpn48b edgenext_xx_small efficientformer_l1
    efficientformerv2_s0 mobilenetv2_035 efficientvim_m1 efficientvit_b0 efficientvit_m0 vit_tiny_patch16_dinov3_qkvb
    fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny gemma4_vit_167m ghostnet_050 hardcorenas_b hgnetv2_b0
    hiera_tiny_224 sam2_hiera_tiny hrnet_w18_small iformer_t inception_next_atto inception_resnet_v2 inception_v3
    inception_v4 lcnetv2_small levit_128s lowformer_b0 mambaout_femto maxvit_pico_rw_256 poolformerv2_s12
    gmlp_ti16_224 mobilenetv3_small_050 mobilenetv5_base mobilevit_xxs mvitv2_tiny naflexvit_base_patch16_parfac_gap
    nasnetalarge nest_tiny nextvit_small nf_regnet_b0 pit_ti_224 pnasnet5large pvt_v2_b0 qwen3_vit_88m rdnet_tiny
    regnetx_002 repghostnet_050 repvit_m1 res2next50 resnest14d resnet10t resnetv2_18 rexnet_100 selecsls42
    legacy_seresnet18 sequencer2d_s shvit_s1 skresnet18 starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224
    swinv2_tiny_window16_256 swinv2_cr_tiny_224 tiny_vit_5m_224 tnt_s_legacy_patch16_224 tresnet_m twins_svt_small
    vgg11 visformer_tiny vit_tiny_patch16_224 vit_tiny_r_s16_p8_224 vit_srelpos_small_patch16_224
    samvit_base_patch16_224 vitamin_small_224 volo_d1_224 ese_vovnet19b_slim_dw legacy_xception xception41p
    xcit_nano_12_p8_224
    """
)
"""The architecture with the fewest parameters of each timm model file, printed by `--choose`."""

USUAL = _words(
    """
    resnet18 resnet50 resnext50_32x4d legacy_seresnet50 seresnet50 ecaresnet26t eca_resnet33ts gcresnet33ts
    gcresnext26ts bat_resnext26ts lambda_resnet26t botnet26t_256 halonet26t sehalonet33ts skresnet18 repvgg_a0
    gernet_s efficientnet_b0 efficientnet_lite0 tf_efficientnetv2_b0 mnasnet_100 mobilenetv2_100 mobilenetv3_large_100
    mobilenetv4_conv_small mobilenetv4_hybrid_medium lcnet_050 tinynet_e convnext_tiny convnextv2_atto regnety_002
    regnetx_002 densenet121 vgg11 inception_v3 inception_v4 inception_next_tiny nfnet_l0 eca_nfnet_l0 nf_resnet26
    nf_regnet_b0 vit_tiny_patch16_224 vit_small_patch16_224 vit_base_patch32_clip_224 vit_base_patch16_siglip_224
    vit_base_patch16_siglip_gap_224 vit_small_patch14_dinov2 vit_small_patch14_reg4_dinov2 vit_small_patch16_dinov3
    vit_medium_patch16_gap_240 vit_small_patch16_18x2_224 vit_small_r26_s32_224 vit_pe_core_tiny_patch16_384
    vit_relpos_small_patch16_224 flexivit_small deit_tiny_patch16_224 deit_tiny_distilled_patch16_224
    deit3_small_patch16_224 beit_base_patch16_224 beitv2_base_patch16_224 eva02_tiny_patch14_224 cait_xxs24_224
    xcit_nano_12_p16_224 swin_tiny_patch4_window7_224 swinv2_cr_tiny_224 swinv2_tiny_window8_256 pvt_v2_b0
    maxvit_tiny_tf_224 maxvit_rmlp_pico_rw_256 coatnet_0_rw_224 mobilevit_xxs mobilevitv2_050 levit_128s
    levit_conv_128s efficientformer_l1 hiera_tiny_224 mixer_s32_224 mixer_b16_224 gmlp_s16_224 resmlp_12_224
    poolformer_s12 convformer_s18 caformer_s18 mambaout_femto twins_pcpvt_small coat_lite_tiny
    """
)
"""Architectures that papers compare, whatever file they are in."""

SLOW = _words(
    """
    efficientnet_b5 efficientnet_b6 efficientnet_b7 efficientnet_v2_l efficientnet_v2_m vit_l_32 wide_resnet101_2
    regnet_x_16gf regnet_x_32gf regnet_y_16gf regnet_y_32gf samvit_base_patch16_224 sam2_hiera_tiny deepseek_vit_412m
    qwen3_vit_88m gemma4_vit_167m mobilenetv5_base nasnetalarge pnasnet5large convnext_large vit_l_16 vit_h_14
    regnet_y_128gf
    """
)
"""They come last and may take three times as long."""


def list_cases(library: str = "*", patterns: Sequence[str] = ("*",)) -> list[Case]:
    """The models of the sweep whose "library/name" matches one of the shell patterns, slow ones last."""
    parts = {pattern.partition("/")[0] for pattern in patterns}
    asked = [name for name in LIBRARIES if fnmatch(name, library) and any(fnmatch(name, part) for part in parts)]
    found = [case for name in asked for case in sorted(LISTED[name](), key=lambda case: case.key)]
    chosen = [case for case in found if any(fnmatch(case.key, pattern) for pattern in patterns)]
    return sorted(chosen, key=lambda case: SLOW.index(case.name) if case.name in SLOW else -1)


def _torchvision_cases() -> list[Case]:
    from torchvision.models import get_model_builder

    files = {name: get_model_builder(name).__module__.rpartition(".")[2] for name in torchvision_source.names()}
    return [Case("torchvision", name, file) for name, file in files.items()]


def _timm_cases() -> list[Case]:
    import timm
    from timm.models._registry import _model_to_module

    chosen = {*SMALLEST, *USUAL, *timm.list_models("test_*")}
    return [Case("timm", name, _model_to_module[name]) for name in chosen]


def _transformers_cases() -> list[Case]:
    import transformers
    from tiny_transformers import BACKBONES, CLASSIFIERS, DUALS

    classes = {name: getattr(transformers, name) for name in (*CLASSIFIERS, *BACKBONES, *DUALS)}
    return [Case("transformers", name, kind.config_class.model_type) for name, kind in classes.items()]


LISTED = {"timm": _timm_cases, "torchvision": _torchvision_cases, "transformers": _transformers_cases}


def choose() -> list[str]:
    """The smallest architecture of each timm model file; counted without memory for the weights (some minutes)."""
    import timm
    from timm.models._registry import _module_to_models

    def parameters(name: str) -> float:
        try:
            with torch.device("meta"):
                model: nn.Module = timm.create_model(name, pretrained=False)
            return sum(value.numel() for value in model.parameters())
        except (RuntimeError, NotImplementedError):  # some need real numbers, or are mere aliases
            return float("inf")

    current = {name for name in timm.list_models() if not name.startswith("test_")}
    return [min(sorted(names & current), key=parameters) for _, names in sorted(_module_to_models.items())]


# The sweep: a process for each model, rows written as they come


def _work(case: Case, pipe: Connection, gigabytes: float, checks: Sequence[str]) -> None:
    """The worker: one thread, a limit to its memory, every cell sent at once so that a crash loses nothing."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    limit = int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    for item in examine(case, checks):
        pipe.send(item)
    pipe.close()


@dataclass
class Job:
    """A model being examined."""

    case: Case
    process: BaseProcess
    pipe: Connection
    row: dict[str, str]
    started: float

    def read(self) -> bool:
        """Take what has arrived; False once the worker has nothing more to say."""
        try:
            while self.pipe.poll():
                column, text = self.pipe.recv()
                self.row[column] = text
        except (EOFError, OSError):
            return False
        return True

    def close(self, reason: str) -> dict[str, str]:
        """The row, with the reason in every cell that is still empty."""
        self.process.kill()
        self.process.join()
        for column in CHECKS:
            self.row.setdefault(column, f"failed: {reason}")
        self.row.setdefault("seconds", f"{time.monotonic() - self.started:.1f}")
        return self.row


def start(case: Case, context: Any, gigabytes: float, checks: Sequence[str], known: Mapping[str, str]) -> Job:
    """Begin to examine a model in a process of its own. known: its row so far, of which the checks are measured again."""
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(case, theirs, gigabytes, checks))
    process.start()
    theirs.close()
    facts = {"library": case.library, "model": case.name, "file": case.file}
    kept = {column: text for column, text in known.items() if column not in checks}
    return Job(case, process, ours, kept | facts, time.monotonic())


def sweep(
    cases: Sequence[Case],
    workers: int,
    limit: float,
    gigabytes: float,
    checks: Sequence[str] = tuple(CHECKS),
    known: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
) -> Iterator[dict[str, str]]:
    """The row of each case, in the order in which they are done; checks and known as for `start`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    waiting, running = list(reversed(cases)), list[Job]()
    while waiting or running:
        while waiting and len(running) < workers:
            case = waiting.pop()
            running.append(start(case, context, gigabytes, checks, known.get(case.key, {})))
        wait([job.pipe for job in running], timeout=1)
        for job in list(running):
            alive = job.read()
            allowed = 3 * limit if job.case.name in SLOW else limit
            late = time.monotonic() - job.started > allowed
            if alive and not late:
                continue
            running.remove(job)
            if not late:
                job.process.join()
            yield job.close(f"over {allowed:.0f} s" if late else f"the process ended with code {job.process.exitcode}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=["*"], nargs="+", help="shell patterns of library/model; other rows stay")
    parser.add_argument("--library", default="*", help=f"one of {', '.join(LIBRARIES)}")
    parser.add_argument("--workers", type=int, default=1, help="models at a time, one thread each")
    parser.add_argument("--limit-seconds", type=float, default=300, help="time for one model")
    parser.add_argument("--limit-gigabytes", type=float, default=12, help="memory for one model")
    parser.add_argument(
        "--checks", nargs="+", choices=list(CHECKS), help="measure only these cells of rows that exist; others stay"
    )
    parser.add_argument("--resume", action="store_true", help="skip models that have a row")
    parser.add_argument("--out", type=Path, default=HERE / "coverage.csv", help="the table")
    parser.add_argument(
        "--capabilities", action="store_true", help=f"write {CAPABILITIES.name} from the table and stop"
    )
    parser.add_argument("--readme", action="store_true", help="write the table of README.md from the table and stop")
    parser.add_argument("--choose", action="store_true", help="print SMALLEST anew and stop")
    return parser.parse_args()


def main() -> None:
    options = _arguments()
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", HF_HUB_OFFLINE="1")  # before the libraries are loaded
    if options.choose:
        print(textwrap.fill(" ".join(choose()), 118))
        return
    if options.capabilities:
        write_capabilities(CAPABILITIES, read_rows(options.out).values())
        return
    if options.readme:
        write_readme(README, read_rows(options.out).values(), list_cases())
        return
    cases = list_cases(options.library, options.only)
    rows = read_rows(options.out)
    known = rows if options.checks else {}
    if options.checks:
        cases = [case for case in cases if case.key in rows]
    if not options.resume:
        rows = {key: row for key, row in rows.items() if key not in {case.key for case in cases}}
    cases = [case for case in cases if case.key not in rows]
    write_rows(options.out, rows)
    limits = options.workers, options.limit_seconds, options.limit_gigabytes
    found = sweep(cases, *limits, options.checks or tuple(CHECKS), known)
    for done, row in enumerate(found, 1):
        rows[f"{row['library']}/{row['model']}"] = row
        with options.out.open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(row)
        failed = [column for column in CHECKS if row[column].startswith("failed")]
        print(f"{done}/{len(cases)} {row['library']}/{row['model']} {row['seconds']} s {failed or ''}", flush=True)
    write_rows(options.out, rows)
    print(summary(pd.read_csv(options.out, dtype=str, keep_default_na=False)))


if __name__ == "__main__":
    main()
