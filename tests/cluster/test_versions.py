"""Image, constraints, manifests and documents agree (their commands: tests/test_docs.py)."""

import re
import subprocess
import tomllib

from ray._common.utils import import_attr

from a2d_ray import __version__
from a2d_ray.http.request_ids import SERVE_CALLBACK, SERVE_VARIABLE
from tests.cluster.files import CLUSTER, KUBERAY, RAY_UP, ROOT, cluster_spec, pinned, pods, read

TAG = f"a2d-ray:{__version__}-ray{pinned('ray')}"


def test_every_image_is_the_pinned_one():
    for path in RAY_UP:
        assert read(path)["docker"]["image"] == f"REGISTRY/{TAG}-cuda"
    for path in KUBERAY:
        for pod in pods(read(path)):
            assert [c["image"] for c in pod["containers"]] == [f"REGISTRY/{TAG}-cuda"]
    for path in (CLUSTER / "README.md", CLUSTER / "Dockerfile"):
        tags = set(re.findall(r"a2d-ray:\S+?-ray\S+?(?=-cuda|-cpu)", path.read_text()))
        assert tags == {TAG}, path


def test_the_image_s_proxies_make_request_ids():
    assert import_attr(SERVE_CALLBACK)()
    lines = (CLUSTER / "Dockerfile").read_text().splitlines()
    assert lines.count(f"ENV {SERVE_VARIABLE}={SERVE_CALLBACK}") == 2  # both targets


def test_ray_is_one_version_everywhere():
    for path in KUBERAY:
        if read(path)["apiVersion"] == "ray.io/v1":
            assert cluster_spec(read(path))["rayVersion"] == pinned("ray")
    dockerfile = (CLUSTER / "Dockerfile").read_text()
    assert f"ARG RAY_VERSION={pinned('ray')}\n" in dockerfile
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (wanted,) = [d for d in project["dependencies"] if d.startswith("ray[")]
    assert f">={pinned('ray').rsplit('.', 1)[0]}" in wanted
    assert project["version"] == __version__
    extras = set(re.search(r"\.\[([a-z,]+)\]", dockerfile).group(1).split(","))
    assert extras <= project["optional-dependencies"].keys()
    assert "py311" in dockerfile and project["requires-python"] == ">=3.11"


def test_what_the_image_copies_is_there_and_what_stays_out_is_one_list():
    for names in re.findall(
        r"^COPY --chown=ray (.+) \S+$", (CLUSTER / "Dockerfile").read_text(), re.M
    ):
        assert all((ROOT / name).exists() for name in names.split())
    ignored = [(ROOT / name).read_text() for name in (".rayignore", ".dockerignore")]
    assert ignored[0] == ignored[1] and "/runs/" in ignored[0] and ".venv" in ignored[0]


def test_slurm_starts_ray_on_every_node_and_the_job_on_one(tmp_path):
    """The script with Slurm's two commands replaced by what they would say."""
    script = CLUSTER / "slurm.sh"
    says = 'case "$*" in *hostname*) echo 10.0.0.7 10.1.0.7;; *) echo "$RAY_ADDRESS|$*";; esac'
    for name, body in {"scontrol": "echo node-1; echo node-2", "srun": says}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").write_text("")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("t")
    done = subprocess.run(
        ["bash", script, "jobs/sft_mdlm.py", "run.name=x"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path),
             "SLURM_JOB_NODELIST": "node-[1-2]", "SLURM_JOB_NUM_NODES": "2",
             "SLURM_CPUS_PER_TASK": "64", "SLURM_GPUS_PER_NODE": "8"},
    )  # fmt: skip
    address, command = done.stdout.strip().split("|")
    assert address == "10.0.0.7:6379"
    assert "ray symmetric-run --address 10.0.0.7:6379 --min-nodes 2" in command
    assert command.endswith("-- python jobs/sft_mdlm.py run.name=x run.resume=true")
    sizes = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)$", script.read_text(), re.MULTILINE))
    assert (sizes["nodes"], sizes["gpus-per-node"], sizes["ntasks-per-node"]) == ("8", "8", "1")
