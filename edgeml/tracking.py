"""Runs as MLflow experiments: parameters, metrics and the report, one run a build.

A local SQLite file in the registry's folder unless MLFLOW_TRACKING_URI names a server. This room is
only opened where MLflow is installed (the `mlflow` extra).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow


def log_run(summary: Mapping[str, Any], folder: Path) -> str:
    """Log the build in `summary` to MLflow and return the tracking URI it went to."""
    logging.getLogger("alembic").setLevel(logging.WARNING)  # its migrations speak to stderr at INFO
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    if mlflow.get_experiment_by_name(summary["model"]) is None and uri.startswith("sqlite:"):
        mlflow.create_experiment(summary["model"], artifact_location=(folder / "mlflow-artifacts").as_uri())
    mlflow.set_experiment(summary["model"])
    with mlflow.start_run(run_name=summary["run"]):
        mlflow.set_tags({"release": summary["release"], **summary["lineage"]})
        mlflow.log_params(_parameters(summary))
        mlflow.log_metrics(_metrics(summary))
        mlflow.log_dict(dict(summary), "summary.json")
    return uri


def _parameters(summary: Mapping[str, Any]) -> dict[str, Any]:
    best: Mapping[str, Any] = summary["search"][0] if summary["search"] else {"estimator": "given", "parameters": {}}
    return {"estimator": best["estimator"], **best["parameters"]}


def _metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    found = {f"test.{name}": value for name, value in summary["metrics"]["test"].items()}
    for variant in summary["variants"]:
        found[f"{variant['name']}.bytes"] = variant["bytes"]
        found[f"{variant['name']}.p50_ms"] = variant["host_latency_ms"]["p50"]
        found[f"{variant['name']}.accuracy_drop"] = variant["accuracy_drop"]
    return {name: float(value) for name, value in found.items()}
