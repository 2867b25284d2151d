"""Every benchmark, one after the other, and docs/benchmarks.md from the tables they printed.

`--page` runs none and writes the pages only. Another page shows a table between two comments,
`<!-- results/NAME.md: HEADING -->` (without a heading: all of it) and `<!-- end -->`; a test compares them.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs/benchmarks.md"
SCRIPTS = {  # script -> what it shows
    "startup": "What a command costs before it works",
    "session_overhead": "What the runtime adds to a prediction",
    "agent": "The agent while it serves",
    "transfer": "Ten megabytes to a device",
    "training_step": "Training compiled to ONNX",
    "exact_statistics": "Estimators learned by sums over devices",
    "conv_gradient": "Gradients of convolutions",
    "federated_round": "A federated round",
    "flower_peers": "A federation beside Flower's",
    "compression": "Compressed updates: bytes against accuracy",
    "secure_sum": "What secure aggregation costs",
    "federated_shapes": "Published shapes of federated learning",
    "federated_fields": "Real data, divided as it was collected",
    "federated_movielens": "Ratings and recommendations, one user a device",
    "federated_scale": "Simulated fleets as they grow",
    "boosting": "Trees boosted over a fleet",
    "passes": "What graph passes gain",
    "smaller": "Variants with fewer parts",
    "recurrent": "Recurrent layers",
    "numpy_program": "Numpy programs beside onnxruntime",
    "predict_published": "The latency prior against published measurements",
    "predict_recipes": "Recipes ranked by counted instructions",
}
OTHER_PYTHON = {"flower_peers"}  # runs peers in an environment of its own, which its docstring says how to make
EXCERPT = re.compile(r"<!-- results/(\w+)\.md(?:: ([^>]+))? -->\n.*?<!-- end -->", re.DOTALL)
HEAD = """\
# Benchmarks

Each table was printed by the script named above it; `make bench` runs them all again and writes this page. The machine
is small and shared: read the ratios, not the seconds. The JSON beside each table (`benchmarks/results/`) has every
figure and the environment. Scripts about published data read it from the folder that the environment variable
`EDGEML_DATA` names, with one subfolder or file for each data set, as the script's docstring and code name them.
"""


def page() -> str:
    """Return the page made of the tables in results/."""
    parts = [HEAD]
    for name, title in SCRIPTS.items():
        table = (HERE / f"results/{name}.md").read_text(encoding="utf-8").strip()
        lines = [line for line in table.splitlines() if not line.startswith("# ")]
        parts.append(f"\n## {title}\n\n`python benchmarks/{name}.py`\n\n" + "\n".join(lines).strip() + "\n")
    return "".join(parts)


def with_excerpts(text: str) -> str:
    """Return a page with the tables between its comments as they are in results/."""

    def shown(found: re.Match[str]) -> str:
        table = (HERE / f"results/{found[1]}.md").read_text(encoding="utf-8")
        if found[2]:
            table = table.split(f"## {found[2]}\n", 1)[1].split("\n## ", 1)[0]
        return f"{found[0].splitlines()[0]}\n{table.strip()}\n<!-- end -->"

    return EXCERPT.sub(shown, text)


def main() -> None:
    for name in () if "--page" in sys.argv else [name for name in SCRIPTS if name not in OTHER_PYTHON]:
        print(f"== {name}", flush=True)  # compile_peers, measure_peers and others need environments of their own
        subprocess.run([sys.executable, str(HERE / f"{name}.py")], check=True)
    PAGE.write_text(page(), encoding="utf-8")
    for path in PAGE.parent.glob("*.md"):
        text = path.read_text(encoding="utf-8")
        if (new := with_excerpts(text)) != text:
            path.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
