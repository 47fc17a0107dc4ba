"""KubeRay manifests: pods against Kubernetes' schemas, Ray's kinds against KubeRay's fields."""

import shlex

import kubernetes_validate
import pytest
import yaml

from a2d_ray.cli import parse_config
from a2d_ray.config import ServeConfig, TrainConfig
from tests.cluster.files import CLUSTER, KUBERAY, cluster_spec, pods, read

KUBERNETES = "1.33"
# Fields of ray.io/v1 (KubeRay 1.5.1); pod templates are checked as pods.
CLUSTER_FIELDS = {
    "rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "suspend",
    "headGroupSpec", "workerGroupSpecs", "headServiceAnnotations", "gcsFaultToleranceOptions",
    "managedBy", "upgradeStrategy",
}  # fmt: skip
FIELDS = {
    "RayCluster": CLUSTER_FIELDS,
    "RayJob": {
        "entrypoint", "runtimeEnvYAML", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished",
        "activeDeadlineSeconds", "backoffLimit", "rayClusterSpec", "submitterPodTemplate",
        "submissionMode", "metadata", "clusterSelector", "suspend", "entrypointNumCpus",
    },
    "RayService": {"serveConfigV2", "rayClusterConfig", "serveService", "upgradeStrategy"},
}  # fmt: skip
GROUP_FIELDS = {
    "groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts", "rayStartParams",
    "template", "serviceType", "idleTimeoutSeconds",
}  # fmt: skip
RAY_KINDS = [path for path in KUBERAY if path.stem != "storage"]


@pytest.fixture(params=RAY_KINDS, ids=lambda path: path.stem)
def manifest(request):
    return read(request.param)


def test_storage_is_a_claim_that_all_pods_share():
    (path,) = [path for path in KUBERAY if path.stem == "storage"]
    claim = read(path)
    kubernetes_validate.validate(claim, KUBERNETES, strict=True)
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for other in RAY_KINDS:
        for pod in pods(read(other)):
            claims = [v.get("persistentVolumeClaim", {}).get("claimName") for v in pod["volumes"]]
            assert claim["metadata"]["name"] in claims


def test_kinds_have_kuberay_s_fields(manifest):
    assert manifest["apiVersion"] == "ray.io/v1"
    assert manifest["spec"].keys() <= FIELDS[manifest["kind"]]
    spec = cluster_spec(manifest)
    assert spec.keys() <= CLUSTER_FIELDS and spec["authOptions"] == {"mode": "token"}
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert group.keys() <= GROUP_FIELDS
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_pods_follow_kubernetes_schema(manifest):
    found = list(pods(manifest))
    assert len(found) == 2
    for spec in found:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        (container,) = spec["containers"]
        names = {volume["name"] for volume in spec["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} <= names
        assert container["resources"]["limits"] == container["resources"]["requests"]


def test_a_typo_in_a_pod_is_found():
    spec = next(pods(read(RAY_KINDS[0])))
    spec["containers"][0]["imge"] = "x"
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
    with pytest.raises(kubernetes_validate.ValidationError, match="imge"):
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def kind(name):
    return next(read(path) for path in KUBERAY if read(path)["kind"] == name)


def test_the_job_is_a_run_that_fits_its_pods_and_resumes():
    job = kind("RayJob")
    python, script, *args = shlex.split(job["spec"]["entrypoint"])
    assert python == "python" and script.endswith("/jobs/sft_bd3lm.py")
    config = parse_config(TrainConfig, "sft_bd3lm", args)
    assert config.run.resume and config.run.storage_path.startswith("/shared/")
    (group,) = cluster_spec(job)["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert config.scaling.num_workers == group["replicas"] * limits["nvidia.com/gpu"]
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]
    assert job["spec"]["shutdownAfterJobFinishes"] and job["spec"]["activeDeadlineSeconds"] > 0


def test_the_service_is_one_that_ray_serve_takes():
    from ray.serve.schema import ServeDeploySchema

    service = kind("RayService")
    serve = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    (application,) = serve.applications
    module, name = application.import_path.split(":")
    assert callable(getattr(__import__(module, fromlist=[name]), name))
    config = ServeConfig.model_validate(application.args)
    (group,) = cluster_spec(service)["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert config.gpus_per_replica <= limits["nvidia.com/gpu"]
    assert config.cpus_per_replica <= int(limits["cpu"])
    assert config.models[0].load.path.startswith("/shared/runs/")
    assert config.security.require_keys
    for pod in pods(service):  # any of them may build the application
        variables = {each["name"]: each for each in pod["containers"][0]["env"]}
        secret = variables[config.security.api_keys_env]["valueFrom"]["secretKeyRef"]
        created = f"create secret generic {secret['name']} --from-literal={secret['key']}="
        assert created in (CLUSTER / "README.md").read_text()
