"""The tables of methods in README.md and docs/methods.md, from the registry: `python benchmarks/method_table.py`."""

from pathlib import Path

from attncompare.methods._base import Method, methods

ROOT = Path(__file__).parents[1]
ATTENTION = {
    "fused_attention", "class_attention", "window_attention", "attention_hierarchy", "attention", "attention_relevance",
    "block_gradients",
}  # fmt: skip
FEATURES = {"features", "feature_layer", "pooled_features", "gated_features", "channel_attention"}
GROUPS = {
    "nothing of the model (controls)": "image only",
    "features": "a CNN's or a transformer's feature layer, and gradients there",
    "pixels": "gradients at the pixels, or scores of altered images",
    "attention": "attention after the softmax",
}


def group(method: Method) -> str:
    """What a method reads."""
    if method.control:
        return "nothing of the model (controls)"
    if ATTENTION & set(method.needs):
        return "attention"
    return "features" if FEATURES & set(method.needs) else "pixels"


def short_table() -> str:
    """Names by what they read; those that do not depend on the target in italics."""
    lines = ["| reads | methods (*blind to the target*) |", "|---|---|"]
    for name in GROUPS:
        found = [m for m in methods if group(m) == name]
        lines.append(
            f"| {name} | {', '.join(f'`{m.name}`' if m.class_sensitive else f'*`{m.name}`*' for m in found)} |"
        )
    return "\n".join(lines)


def long_table() -> str:
    """One row per method."""
    lines = ["| method | what it is | reads | of the target | options | source |", "|---|---|---|---|---|---|"]
    for name in GROUPS:
        for m in (m for m in methods if group(m) == name):
            cells = [f"`{m.name}`", m.summary, ", ".join(m.needs), "yes" if m.class_sensitive else "no",
                     ", ".join(f"`{o.name}`" for o in m.options) or "none", m.reference]  # fmt: skip
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def put(text: str, mark: str, table: str) -> str:
    """The text with the table between its marks; ValueError without exactly one pair of them."""
    first, last = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    if text.count(first) != 1 or text.count(last) != 1:
        raise ValueError(f"one line {first} before the table and one {last} behind it are needed")
    before, rest = text.split(first)
    return f"{before}{first}\n{table}\n{last}{rest.split(last)[1]}"


def main() -> None:
    for name, table in (("README.md", short_table()), ("docs/methods.md", long_table())):
        path = ROOT / name
        path.write_text(put(path.read_text(encoding="utf-8"), "methods", table), encoding="utf-8")


if __name__ == "__main__":
    main()
