"""The fields of custom resources that `deploy/kubernetes` uses, from their documentation; an unknown field is an error.

kubernetes-validate has the schemas of Kubernetes' own resources only. Pod templates are left as they are: the test
validates them as pods.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

Count = Field(ge=0)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=to_camel)


class Metadata(Strict):
    name: str
    labels: dict[str, str] = {}


class PodTemplate(Strict):
    metadata: dict[str, Any]
    spec: dict[str, Any]


class HeadGroup(Strict):
    ray_start_params: dict[str, str]
    template: PodTemplate


class WorkerGroup(HeadGroup):
    group_name: str
    replicas: int = Count
    min_replicas: int = Count
    max_replicas: int = Count


class RayClusterSpec(Strict):
    ray_version: str
    head_group_spec: HeadGroup
    worker_group_specs: list[WorkerGroup]


class RayCluster(Strict):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: RayClusterSpec


class ScaleTarget(Strict):
    api_version: Literal["apps/v1"]
    kind: Literal["Deployment"]  # it has a scale subresource; a RayCluster has none
    name: str


class PrometheusQuery(Strict):
    server_address: str
    query: str
    threshold: str  # numbers are text here
    activation_threshold: str


class Trigger(Strict):
    type: Literal["prometheus"]
    metadata: PrometheusQuery


class ScaledObjectSpec(Strict):
    scale_target_ref: ScaleTarget
    polling_interval: int = Count
    cooldown_period: int = Count
    min_replica_count: int = Count
    max_replica_count: int = Count
    advanced: dict[str, Any]
    triggers: list[Trigger]


class ScaledObject(Strict):
    api_version: Literal["keda.sh/v1alpha1"]
    kind: Literal["ScaledObject"]
    metadata: Metadata
    spec: ScaledObjectSpec


class SecretKey(Strict):
    name: str
    key: str


class Authorization(Strict):
    type: Literal["Bearer"]
    credentials: SecretKey


class Endpoint(Strict):
    port: str
    path: str
    interval: str
    authorization: Authorization


class LabelSelector(Strict):
    match_labels: dict[str, str]


class ServiceMonitorSpec(Strict):
    selector: LabelSelector
    endpoints: list[Endpoint]


class ServiceMonitor(Strict):
    api_version: Literal["monitoring.coreos.com/v1"]
    kind: Literal["ServiceMonitor"]
    metadata: Metadata
    spec: ServiceMonitorSpec


class Image(Strict):
    name: str
    new_name: str
    new_tag: str


class ConfigMap(Strict):
    name: str
    literals: list[str]


class Kustomization(Strict):
    api_version: Literal["kustomize.config.k8s.io/v1beta1"]
    kind: Literal["Kustomization"]
    namespace: str
    resources: list[str]
    images: list[Image]
    config_map_generator: list[ConfigMap]


class Component(Strict):
    api_version: Literal["kustomize.config.k8s.io/v1alpha1"]
    kind: Literal["Component"]
    resources: list[str]


KINDS: dict[str, type[Strict]] = {
    kind.__name__: kind for kind in (RayCluster, ScaledObject, ServiceMonitor, Kustomization, Component)
}
