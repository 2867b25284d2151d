"""FedAvg over all clients; after each round the weights and the time are left in the folder `work`."""

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds."""
    work, clients = Path(str(context.run_config["work"])), int(context.run_config["clients"])
    names = json.loads((work / "offers.json").read_text(encoding="utf-8"))[0]["names"]
    first = np.load(work / "weights.npz")
    times: list[float] = []

    def keep(round_number: int, arrays: ArrayRecord) -> MetricRecord | None:
        times.append(time.monotonic())
        np.savez(work / f"flower-{round_number}.npz", **dict(zip(names, arrays.to_numpy_ndarrays(), strict=True)))
        (work / "flower-times.json").write_text(json.dumps(times), encoding="utf-8")
        return None

    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
    strategy.start(
        grid,
        ArrayRecord([first[name] for name in names]),
        num_rounds=int(context.run_config["rounds"]),
        evaluate_fn=keep,
    )
