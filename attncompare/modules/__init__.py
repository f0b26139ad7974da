"""Parts to build into a CNN: channel attention, behind any of its layers."""

from attncompare.modules.insertion import Gated as Gated
from attncompare.modules.insertion import insert as insert
from attncompare.modules.squeeze_excite import SqueezeExcite as SqueezeExcite

__all__ = ["Gated", "SqueezeExcite", "insert"]
