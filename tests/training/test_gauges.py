"""A run's gauges arrive where Prometheus scrapes them."""

import re
import time
import urllib.request

import pytest

from a2d_ray.training.gauges import RunGauges


@pytest.mark.cluster
@pytest.mark.timeout(120)
def test_figures_of_a_run_are_exported(ray_local):
    gauges = RunGauges("mine", 40)
    gauges.set({"step": 3, "loss": 1.5, "nobody_asked": 1.0})
    gauges.set({"step": 3, "eval/nelbo": 2.25, "eval/accepted_length": 2.5, "time/slowest_rank": 7})
    node = ray_local.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    wanted = {"step": 3.0, "num_steps": 40.0, "loss": 1.5, "nelbo": 2.25, "slowest_rank": 7.0}
    wanted["accepted_length"] = 2.5
    deadline, found = time.monotonic() + 60, {}
    while found != wanted:
        assert time.monotonic() < deadline, found
        time.sleep(1)
        text = urllib.request.urlopen(url, timeout=5).read().decode()
        lines = re.findall(r'^ray_a2d_train_(\w+){.*run="mine".*} (\S+)$', text, re.MULTILINE)
        found = {name: float(value) for name, value in lines}
