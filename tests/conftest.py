"""Settings that must be made before Ray or torch load, and one local Ray for the session."""

import ast
import os
import signal

os.environ.update(
    RAY_AUTH_MODE="disabled",
    RAY_TRAIN_ENABLE_PREEMPTION_WATCHER="0",
    RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.1",
    RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="90",
    RAY_TRAIN_COLLECTIVE_TIMEOUT_S="60",
    RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S="60",
    RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S="60",
    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH="a2d_ray.http.request_ids:serve_middlewares",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_worker_niceness="0",  # at Ray's own 15, workers starve beside whatever else runs
    OMP_NUM_THREADS=os.environ.get("TEST_THREADS", "1"),
    OMP_WAIT_POLICY="PASSIVE",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
)

from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Examples take as long as a busy machine lets them.
settings.register_profile(
    "a2d", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("a2d")


@cache
def marked_tests(file: str, mark: str) -> frozenset[str]:
    """Tests of a file under a mark, by name."""
    tree = ast.parse((Path(__file__).parent.parent / file).read_text())
    marked = {
        node.name: any(f"mark.{mark}" in ast.unparse(x) for x in node.decorator_list)
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
    }
    all_are = any(
        "pytestmark" in ast.unparse(node) and f"mark.{mark}" in ast.unparse(node)
        for node in tree.body
        if isinstance(node, ast.Assign)
    )
    return frozenset(name for name, is_marked in marked.items() if is_marked or all_are)


def is_marked(nodeid: str, mark: str) -> bool:
    """Whether this test is under the mark."""
    file, _, name = nodeid.partition("::")
    return name.split("[")[0] in marked_tests(file, mark)


def pytest_collection_modifyitems(items):
    """What takes longest begins first."""
    for item in items:
        if "ray_local" in item.fixturenames and not is_marked(item.nodeid, "cluster"):
            raise pytest.UsageError(f"{item.nodeid} starts Ray: mark it with pytest.mark.cluster")
    marks = ("cluster", "own_cluster")
    items.sort(key=lambda item: [not is_marked(item.nodeid, mark) for mark in marks])


def pytest_xdist_make_scheduler(config, log):
    """Under ``pytest -n``, a file's tests stay together; all on the session's Ray share one."""
    from xdist.scheduler import LoadScopeScheduling

    class FilesAndRay(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return "ray" if is_marked(nodeid, "cluster") else nodeid.split("::")[0]

    return FilesAndRay(config, log)


@pytest.fixture(scope="session", autouse=True)
def _torch_threads():
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(autouse=True)
def _denormals():
    """What training and calibration set for their process, a test of them leaves behind."""
    yield
    import torch

    torch.set_flush_denormal(False)


@pytest.fixture
def interruptible():
    """SIGINT raises KeyboardInterrupt, also where pytest runs in the background; its handler."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def no_ray(monkeypatch):
    """As if no Ray ran (another test's may), and none may be started."""
    import ray

    def init(*args, **options):
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture(scope="session")
def ray_local():
    """A Ray of eight logical CPUs."""
    from a2d_ray.runs.cluster import running_ray

    with running_ray(8, object_store_bytes=150 * 2**20):
        import ray

        yield ray
