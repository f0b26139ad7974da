"""For `make docs`: examples in docstrings become code blocks, as plain Markdown takes >>> for quotes."""

from typing import Any

import griffe


def fenced(text: str) -> str:
    """The text with each doctest, up to the next empty line, between fences."""
    blocks = text.split("\n\n")
    return "\n\n".join(f"```pycon\n{block.strip()}\n```" if block.startswith(">>> ") else block for block in blocks)


class FencedExamples(griffe.Extension):
    """Fences the examples of every object."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by griffe for each object that it has read."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)
