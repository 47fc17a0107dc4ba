"""The cluster files, read once."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent.parent
CLUSTER = ROOT / "cluster"
KUBERAY = sorted((CLUSTER / "kuberay").glob("*.yaml"))
RAY_UP = [CLUSTER / f"{name}.yaml" for name in ("aws", "gcp", "local")]


def read(path):
    return yaml.safe_load(path.read_text())


def pinned(package):
    """Version of a package in constraints.txt."""
    text = (ROOT / "constraints.txt").read_text()
    return re.search(rf"^{package}==(\S+)$", text, re.MULTILINE).group(1)


def pods(values):
    """Every pod template below a manifest."""
    if isinstance(values, dict):
        if "template" in values and "spec" in values["template"]:
            yield values["template"]["spec"]
        for value in values.values():
            yield from pods(value)
    elif isinstance(values, list):
        for value in values:
            yield from pods(value)


def cluster_spec(manifest):
    """The RayClusterSpec of a manifest."""
    spec = manifest["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
