"""attncompare study: one command per study."""

from collections.abc import Callable
from typing import Any

import typer

from attncompare.cli.study.channel_attention import channel_attention
from attncompare.cli.study.cheating import cheating
from attncompare.cli.study.invert import invert
from attncompare.cli.study.layers import layers
from attncompare.cli.study.tcav import tcav

study = typer.Typer(
    help="Study one question: layers, inversion, concepts, channel attention, cheating.", no_args_is_help=True
)

COMMANDS: tuple[Callable[..., Any], ...] = (channel_attention, cheating, invert, layers, tcav)

for command in COMMANDS:
    study.command(name=command.__name__.strip("_").replace("_", "-"))(command)
