"""The table of gradient rules in docs/autodiff.md, from the rules themselves and what the oracles said of them.

python -m tests.oracles.table    # writes the table anew
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from onnx import defs

from edgeml.autodiff import RULES
from edgeml.autodiff.rules import REFUSED
from edgeml.autodiff.step import OLDEST
from tests.oracles.compare import RESULT

PAGE = Path(__file__).parents[2] / "docs/autodiff.md"
BEGIN, END = "<!-- rules: python -m tests.oracles.table -->\n", "<!-- end of rules -->\n"
LOOPS = "a number of turns that the values decide; what Scan refuses"


def since() -> dict[str, int]:
    """Return the first opset of every operator of ONNX."""
    found: dict[str, int] = {}
    for schema in defs.get_all_schemas_with_history():
        if schema.domain == "":
            found[schema.name] = min(schema.since_version, found.get(schema.name, schema.since_version))
    return found


def table() -> str:
    """Return the table as Markdown."""
    first, measured = since(), json.loads(RESULT.read_text(encoding="utf-8"))["operators"]
    lines = [
        "| operator | opset | cases | off torch, 64-bit | 32-bit | off onnx-ad | refused |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for name in sorted({*RULES, "Loop"}):
        figures = measured["Scan" if name == "Loop" else name]
        errors = " | ".join(said(figures.get(key)) for key in ("torch_64", "torch_32", "onnx_ad"))
        if figures["onnx_ad_wrong"]:
            errors += f" ({figures['onnx_ad_wrong']} of its own)"
        refused = LOOPS if name == "Loop" else REFUSED[name]
        lines.append(f"| {name} | {max(first[name], OLDEST)} | {figures['cases']} | {errors} | {refused} |")
    return "\n".join(lines) + "\n"


def said(error: Any) -> str:
    """Return an error as the table has it; nothing where there is no kernel, or the oracle has no rule."""
    return "" if error is None else "0" if error == 0 else f"{error:.0e}"


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    head, rest = page.split(BEGIN)
    PAGE.write_text(head + BEGIN + table() + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
