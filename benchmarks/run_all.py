"""Every benchmark, one after the other, and docs/benchmarks.md from the tables they printed."""

from __future__ import annotations

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
    "compression": "Compressed updates: bytes against accuracy",
    "secure_sum": "What secure aggregation costs",
    "federated_shapes": "Published shapes of federated learning",
    "federated_scale": "Simulated fleets as they grow",
    "boosting": "Trees boosted over a fleet",
    "passes": "What graph passes gain",
    "smaller": "Variants with fewer parts",
    "recurrent": "Recurrent layers",
    "numpy_program": "Numpy programs beside onnxruntime",
    "predict_published": "The latency prior against published measurements",
    "predict_recipes": "Recipes ranked by counted instructions",
}
HEAD = """\
# Benchmarks

Each table was printed by the script named above it; `make bench` runs them all again and writes this page. The machine
is small and shared: read the ratios, not the seconds. The JSON beside each table (`benchmarks/results/`) has every
figure and the environment.
"""


def page() -> str:
    """Return the page made of the tables in results/."""
    parts = [HEAD]
    for name, title in SCRIPTS.items():
        table = (HERE / f"results/{name}.md").read_text(encoding="utf-8").strip()
        lines = [line for line in table.splitlines() if not line.startswith("# ")]
        parts.append(f"\n## {title}\n\n`python benchmarks/{name}.py`\n\n" + "\n".join(lines).strip() + "\n")
    return "".join(parts)


def main() -> None:
    for name in SCRIPTS if "--page" not in sys.argv else ():
        print(f"== {name}", flush=True)  # compile_peers, measure_peers and others need environments of their own
        subprocess.run([sys.executable, str(HERE / f"{name}.py")], check=True)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
