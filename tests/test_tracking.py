"""Builds as MLflow runs, in a real MLflow on a SQLite file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.builders import a_summary

mlflow = pytest.importorskip("mlflow", reason="the mlflow extra is not installed: pip install 'edgeml[mlflow]'")
pytestmark = pytest.mark.extras


def test_a_build_becomes_one_run_with_its_metrics_and_its_lineage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeml.tracking import log_run

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    summary = a_summary()
    uri = log_run(summary, tmp_path)
    assert uri == f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("digits")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics["test.accuracy"] == summary["metrics"]["test"]["accuracy"]
    assert run.data.metrics["int8-static-u8s8.bytes"] == 13610
    assert run.data.params["estimator"] == "mlp" and run.data.params["alpha"] == "0.001"
    assert run.data.tags["release"] == summary["release"] and run.data.tags["onnx"] == summary["lineage"]["onnx"]
    log_run(a_summary(run="another"), tmp_path)
    assert len(client.search_runs([experiment.experiment_id])) == 2


def test_a_server_that_is_named_gets_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeml.tracking import log_run

    named = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", named)
    assert log_run(a_summary(), tmp_path) == named
    assert not (tmp_path / "mlflow.db").exists()
