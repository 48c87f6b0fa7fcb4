"""The fields that manifests of ours may use of kinds that Kubernetes does not know, as operators define them.

Sources: prometheus-operator's API reference (monitoring.coreos.com/v1) and KubeRay's (ray.io/v1), whose
schemas come in no package. Strict: a field that is not here is refused, so a misspelt one is. Pods inside are
Kubernetes' own, validated as such.
"""

from __future__ import annotations

from typing import Any

TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 0}
SECRET_KEY: dict[str, Any] = {
    "type": "object", "additionalProperties": False, "required": ["name", "key"],
    "properties": {"name": TEXT, "key": TEXT},
}  # fmt: skip


def strict(required: list[str], **properties: Any) -> dict[str, Any]:
    """An object of these fields and no others."""
    return {
        "type": "object", "additionalProperties": False, "required": required, "properties": properties,
    }  # fmt: skip


TEXTS = {"type": "object", "additionalProperties": TEXT}
ENDPOINT = strict(
    ["port"], port=TEXT, path=TEXT, scheme={"enum": ["http", "https"]}, interval={"pattern": r"^\d+(s|m)$"},
    authorization=strict(["credentials"], type=TEXT, credentials=SECRET_KEY),
    tlsConfig=strict([], ca=strict(["secret"], secret=SECRET_KEY), serverName=TEXT),
)  # fmt: skip
TEMPLATE = strict(["spec"], metadata={"type": "object"}, spec={"type": "object"})
HEAD = strict(
    ["rayStartParams", "template"], rayStartParams=TEXTS, template=TEMPLATE,
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
)  # fmt: skip
GROUP = strict(
    ["groupName", "maxReplicas", "minReplicas", "rayStartParams", "template"],
    groupName=TEXT, replicas=COUNT, minReplicas=COUNT, maxReplicas=COUNT, rayStartParams=TEXTS,
    template=TEMPLATE,
)  # fmt: skip
CLUSTER = strict(
    ["headGroupSpec"], rayVersion=TEXT, headGroupSpec=HEAD,
    workerGroupSpecs={"type": "array", "items": GROUP},
)  # fmt: skip
SPECS = {
    ("monitoring.coreos.com/v1", "ServiceMonitor"): strict(
        ["selector", "endpoints"], selector=strict(["matchLabels"], matchLabels=TEXTS),
        endpoints={"type": "array", "items": ENDPOINT, "minItems": 1},
    ),
    ("ray.io/v1", "RayCluster"): CLUSTER,
    ("ray.io/v1", "RayJob"): strict(
        ["entrypoint", "rayClusterSpec"], entrypoint=TEXT, entrypointNumCpus={"type": "number"},
        shutdownAfterJobFinishes={"type": "boolean"}, ttlSecondsAfterFinished=COUNT, rayClusterSpec=CLUSTER,
    ),
}  # fmt: skip
"""(apiVersion, kind) -> the schema of its spec."""


def closed(schema: Any) -> Any:
    """The schema with no fields allowed but those that it names, as Kubernetes has it in strict mode."""
    if isinstance(schema, list):
        return [closed(x) for x in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: closed(x) for name, x in schema.items()}
    return {**found, "additionalProperties": False} if isinstance(schema.get("properties"), dict) else found


def pods(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The pods inside a spec, as Kubernetes would be given them."""
    cluster = spec.get("rayClusterSpec", spec)
    templates = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]] if "headGroupSpec" in cluster else []
    return [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, **group["template"]}
        for group in templates
    ]
