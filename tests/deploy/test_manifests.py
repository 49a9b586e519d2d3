"""The manifests in deploy/kubernetes: valid by schema, without secrets, in agreement with each other and the code."""

import copy
import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from custom_resources import KINDS
from pydantic import ValidationError

from kinema.serving.lifespan import END_SECONDS
from kinema.settings import Settings
from kinema.version import own_version

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
FILES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.yaml"))
KUBERNETES = "1.34"


def documents(file):
    return list(yaml.safe_load_all((FOLDER / file).read_text("utf-8")))


def resources(kind):
    return {each["metadata"]["name"]: each for file in FILES for each in documents(file) if each["kind"] == kind}


def pods():
    """Return the name and the template of each pod."""
    found = {name: each["spec"]["template"] for name, each in resources("Deployment").items()}
    cluster = resources("RayCluster")["kinema-ray"]["spec"]
    groups = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return found | {"head": cluster["headGroupSpec"]["template"]} | groups


def containers(pod):
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


PODS = pods()
SETTINGS = dict(
    literal.split("=", 1)
    for generator in documents("kustomization.yaml")[0]["configMapGenerator"]
    for literal in generator["literals"]
)


def validate(resource):
    if resource["kind"] in KINDS:
        KINDS[resource["kind"]].model_validate(resource)
    else:
        kubernetes_validate.validate(resource, KUBERNETES, strict=True)


@pytest.mark.parametrize("file", FILES)
def test_manifest_is_valid(file):
    for resource in documents(file):
        validate(resource)


@pytest.mark.parametrize("name", PODS)
def test_pod_is_valid(name):
    validate({"apiVersion": "v1", "kind": "Pod", **PODS[name]})


def test_validation_finds_what_is_wrong():
    misspelt = copy.deepcopy(PODS["head"])
    misspelt["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="livenesProbe"):
        validate({"apiVersion": "v1", "kind": "Pod", **misspelt})
    (scaled,) = resources("ScaledObject").values()
    changed = copy.deepcopy(scaled)
    changed["spec"]["scaleTargetRef"] = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "name": "kinema-ray"}
    with pytest.raises(ValidationError, match="scaleTargetRef"):
        validate(changed)


def test_kustomization_lists_every_file():
    for folder in (FOLDER, FOLDER / "autoscaling"):
        (kustomization,) = yaml.safe_load_all((folder / "kustomization.yaml").read_text("utf-8"))
        files = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
        assert set(kustomization["resources"]) == files
    assert "# components:\n#   - autoscaling\n" in (FOLDER / "kustomization.yaml").read_text("utf-8")


def test_every_setting_in_deploy_exists():
    """Also in the compose file, the Dockerfile and the README."""
    files = [path for path in (ROOT / "deploy").rglob("*") if path.is_file()]
    named = {name for path in files for name in re.findall(r"\bKINEMA_([A-Z][A-Z_]*)", path.read_text("utf-8"))}
    assert {"RAY_ADDRESS", "DATABASE_URL", "API_KEYS", "STORE"} <= named
    # Kubernetes itself would set the first.
    assert {name.lower() for name in named - {"PORT"}} - set(Settings.model_fields) == set()


def test_settings_are_accepted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.queue_size == 10_000
    assert str(settings.data_dir) == "/data"


def test_images_and_versions_agree():
    (image,) = documents("kustomization.yaml")[0]["images"]
    assert {each["image"] for pod in PODS.values() for each in containers(pod)} == {image["name"]}
    assert image["newTag"] == own_version()
    ray = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)[1]
    assert resources("RayCluster")["kinema-ray"]["spec"]["rayVersion"] == ray
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text("utf-8")
    assert "ARG EXTRAS=server,scale,s3\n" in dockerfile
    user = re.search(r"--uid (\d+)", dockerfile)[1]
    assert {pod["spec"]["securityContext"]["runAsUser"] for pod in PODS.values()} == {int(user)}


def test_ports_and_names_agree():
    (service,) = resources("Service").values()
    (server,) = PODS["kinema"]["spec"]["containers"]
    (port,) = server["ports"]
    assert server["args"][-1] == str(port["containerPort"])
    assert [each["targetPort"] for each in service["spec"]["ports"]] == [port["name"]]
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert server[name]["httpGet"] == {"path": "/livez", "port": port["name"]}
    (monitor,) = resources("ServiceMonitor").values()
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
    # KubeRay names the service of a cluster's head so.
    address = "kinema-ray-head-svc:6379"
    assert SETTINGS["KINEMA_RAY_ADDRESS"] == address
    (head,) = PODS["head"]["spec"]["containers"]
    assert head["ports"] == [{"name": "gcs", "containerPort": 6379}]
    (extra,) = PODS["kinema-gpu-extra"]["spec"]["containers"]
    assert f"--address={address}" in extra["command"]


def test_selectors_match_the_pods():
    for name, deployment in resources("Deployment").items():
        selected = deployment["spec"]["selector"]["matchLabels"].items()
        matching = [other for other, pod in PODS.items() if selected <= pod["metadata"]["labels"].items()]
        assert matching == [name]
    names = {pod["metadata"]["labels"]["app.kubernetes.io/name"] for pod in PODS.values()}
    (service,), (budget,) = resources("Service").values(), resources("PodDisruptionBudget").values()
    assert service["spec"]["selector"] == budget["spec"]["selector"]["matchLabels"]
    ray, front = (policy["spec"]["podSelector"] for policy in resources("NetworkPolicy").values())
    if "matchLabels" in ray:
        ray, front = front, ray
    protected = {*ray["matchExpressions"][0]["values"], front["matchLabels"]["app.kubernetes.io/name"]}
    assert protected == names
    assert {pod["metadata"]["labels"]["app.kubernetes.io/part-of"] for pod in PODS.values()} == {"kinema"}
    assert resources("ScaledObject")["kinema-gpu-extra"]["spec"]["scaleTargetRef"]["name"] in resources("Deployment")


def test_extra_gpus_are_like_those_of_the_cluster():
    (worker,), (extra,) = (PODS[name]["spec"]["containers"] for name in ("gpu", "kinema-gpu-extra"))
    for field in ("image", "resources", "ports", "readinessProbe", "livenessProbe", "securityContext"):
        assert extra[field] == worker[field]
    assert PODS["kinema-gpu-extra"]["spec"]["initContainers"] == PODS["gpu"]["spec"]["initContainers"]
    assert f"--num-gpus={worker['resources']['limits']['nvidia.com/gpu']}" in extra["command"]
    model = PODS["gpu"]["spec"]["initContainers"][0]["command"][-1]
    assert model == SETTINGS["KINEMA_MODEL"]


def test_the_scaled_metric_exists():
    (scaled,) = resources("ScaledObject").values()
    metric = re.search(r"kinema_\w+", scaled["spec"]["triggers"][0]["metadata"]["query"])[0]
    assert f'"{metric}"' in (ROOT / "src" / "kinema" / "serving" / "metrics.py").read_text("utf-8")


def test_a_pod_ends_after_its_server():
    pod = PODS["kinema"]["spec"]
    (server,) = pod["containers"]
    *_, seconds = server["lifecycle"]["preStop"]["exec"]["command"]
    assert pod["terminationGracePeriodSeconds"] > int(seconds) + END_SECONDS


def test_a_front_end_is_a_node_of_the_cluster():
    pod = PODS["kinema"]["spec"]
    (node,), (server,) = pod["initContainers"], pod["containers"]
    assert pod["shareProcessNamespace"] is True
    assert node["restartPolicy"] == "Always"  # a sidecar: it starts before the server, and ends after it
    assert {"--num-cpus=0", "--num-gpus=0"} < set(node["command"])
    shared = {"/tmp", "/dev/shm"}
    assert all(shared <= {each["mountPath"] for each in container["volumeMounts"]} for container in (node, server))


def test_pods_are_restricted():
    for pod in PODS.values():
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert pod["spec"]["enableServiceLinks"] is False  # KINEMA_PORT and others would look like settings
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
            }  # fmt: skip
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert "memory" in container["resources"]["limits"]


def test_secrets_are_referred_to_and_the_readme_creates_each():
    readme = (ROOT / "deploy" / "README.md").read_text("utf-8")
    assert resources("Secret") == {}
    keys, names = set(), set()
    for container in (each for pod in PODS.values() for each in containers(pod)):
        for variable in container.get("env", []):
            reference = variable.get("valueFrom", {}).get("secretKeyRef")
            keys |= set() if reference is None else {(reference["name"], reference["key"])}
            if re.search("TOKEN|KEY|URL", variable["name"]):
                assert reference is not None, variable["name"]
        names |= {each["secretRef"]["name"] for each in container.get("envFrom", []) if "secretRef" in each}
    monitor = resources("ServiceMonitor")["kinema"]["spec"]["endpoints"][0]["authorization"]["credentials"]
    keys.add((monitor["name"], monitor["key"]))
    for name, key in keys:
        command = re.search(rf"create secret generic {name}\b(?:[^\n]*\\\n)*[^\n]*", readme)
        assert command, name
        assert f"--from-literal={key}=" in command[0]
    assert names == {"kinema-store"}
    assert "create secret generic kinema-store" in readme
    secret = r"(?i)(password|secret|token|key)\s*[:=]\s*[A-Za-z0-9+/]{16,}"
    assert not [file for file in FILES if re.search(secret, (FOLDER / file).read_text("utf-8"))]
