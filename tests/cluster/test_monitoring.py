"""Dashboards and alerts ask for metrics that exist."""

import json
import re
from pathlib import Path

import pytest
import ray.dashboard.modules.metrics.dashboards as ray_dashboards

from a2d_ray.training.gauges import GAUGES
from tests.cluster.files import CLUSTER, read

MONITORING = CLUSTER / "monitoring"
# models.json shows what the engines count; tests/serving/test_operations.py checks it.
DASHBOARDS = [
    MONITORING / "grafana" / f"{name}.json" for name in ("training", "serving", "cluster")
]
OURS = {f"ray_a2d_train_{name}" for name in GAUGES}


def known_metrics():
    """Names in Ray's own dashboards, and ours."""
    source = Path(ray_dashboards.__file__).parent
    text = "".join(path.read_text() for path in source.glob("*_panels.py"))
    return set(re.findall(r"ray_[a-z0-9_]+", text)) | OURS


def metrics_of(expression):
    return set(re.findall(r"\bray_[a-z0-9_]+(?=[{\[\s)/*<>=,]|$)", expression)) - {
        "ray_train_run_name"
    }


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_ask_for_metrics_that_exist(path):
    dashboard = json.loads(path.read_text())
    assert dashboard["uid"] == f"a2d-{path.stem}" and dashboard["panels"]
    queries = [t["expr"] for panel in dashboard["panels"] for t in panel["targets"]]
    queries += [v["definition"] for v in dashboard["templating"]["list"]]
    wanted = set().union(*map(metrics_of, queries))
    assert len(wanted) >= 5 and wanted <= known_metrics(), wanted - known_metrics()
    places = [tuple(panel["gridPos"][k] for k in "xy") for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)


def test_every_figure_of_a_run_that_matters_is_shown():
    text = (MONITORING / "grafana" / "training.json").read_text()
    for name in GAUGES.keys() - {"lr", "utilisation", "slowest_rank"}:
        assert f"ray_a2d_train_{name}" in text


def test_alerts_ask_for_metrics_that_exist():
    (group,) = read(MONITORING / "alerts.yml")["groups"]
    for rule in group["rules"]:
        wanted = metrics_of(rule["expr"])
        assert wanted and wanted <= known_metrics() and rule["annotations"]["summary"]


def test_grafana_finds_prometheus_and_the_dashboards():
    (source,) = read(MONITORING / "grafana" / "datasources.yaml")["datasources"]
    for path in DASHBOARDS:
        assert f'"uid": "{source["uid"]}"' in path.read_text()
    services = read(MONITORING / "compose.yaml")["services"]
    for service in services.values():
        for volume in service["volumes"]:
            local = volume.split(":")[0]
            assert local.startswith("/tmp/ray") or (MONITORING / local).exists()
    assert "127.0.0.1:9090" in source["url"]
    assert any("127.0.0.1:9090" in word for word in services["prometheus"]["command"])
