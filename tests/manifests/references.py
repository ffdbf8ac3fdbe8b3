"""What no schema sees: one resource names another, or a key, a port, a label or a metric of it, which is not there."""

import functools
import json
import re
from collections.abc import Iterator
from typing import Any

from tests.manifests.building import of_kind, walk
from tests.tekton.manifests import Resource

# The Secrets that `jukebox secrets` generates, or that a person or an operator creates, with their keys: those of the
# namespace of the CI, and those of the namespace of the pipeline's runs. Those that have S3 keys the settings name.
S3 = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_S3_ENDPOINT", "AWS_DEFAULT_REGION"}
CI_SECRETS = {
    "jukebox-senders": {"github", "gitlab", "gitea", "data", "alert", "schedule"},
    "jukebox-listener": {"qps", "burst"},
    "jukebox-registry": {".dockerconfigjson"},
    "jukebox-git-host": {"token", "repository"},
    "jukebox-chat": {"url"},
}
SECRETS = {
    "jukebox-alert": {"token"},
    "jukebox-database": {"password"},
}
# ConfigMaps that a person or bootstrap creates.
CI_CONFIG = {"jukebox-settings", "jukebox-trusted-ca"}
CONFIG = {"jukebox-trusted-ca"}
LISTENER_PORTS = {"http-listener": 8080, "http-metrics": 9000}
PROXY = "jukebox-listener-proxy"  # the Service that all events come to
# What is measured: by the model server (its documentation), the listener (the source of Triggers 0.37), the cluster
# (kube-state-metrics, kubelet) and TrustyAI.
METRICS = {
    *("ovms_requests_success", "ovms_requests_fail", "ovms_request_time_us_bucket", "ovms_streams"),
    *("eventlistener_event_received_total", "eventlistener_triggered_resources_total"),
    *("kube_deployment_status_replicas_available", "kube_deployment_spec_replicas"),
    *("kube_pod_status_phase", "kube_pod_created", "kube_job_failed", "kube_job_created"),
    *("kubelet_volume_stats_available_bytes", "kubelet_volume_stats_capacity_bytes"),
    "trustyai_meanshift",
}


def problems(resources: list[Resource], settings: dict[str, str]) -> list[str]:
    """All that dangles in an overlay and what bootstrap adds to it, built with these settings."""
    # What does not say in which namespace it is, is in that of the pipeline's runs.
    resources = [
        resource | {"metadata": {"namespace": settings["namespace"]} | resource["metadata"]} for resource in resources
    ]
    return [
        *_accounts(resources),
        *_secrets(resources, settings),
        *_serving(resources, settings),
        *_ports(resources),
        *_selectors(resources, settings),
        *_alerts(resources, settings),
        *_metrics(resources),
    ]


def _names(resources: list[Resource], *kinds: str) -> set[str]:
    return {resource["metadata"]["name"] for resource in of_kind(resources, *kinds)}


def _beside(resource: Resource, resources: list[Resource], *kinds: str) -> set[str]:
    """The names of what is in the same namespace."""
    namespace = resource["metadata"]["namespace"]
    return _names([each for each in resources if each["metadata"]["namespace"] == namespace], *kinds)


def _where(resource: Resource) -> str:
    return f"{resource['kind']} {resource['metadata']['name']}"


def _accounts(resources: list[Resource]) -> Iterator[str]:
    accounts = {
        (each["metadata"]["namespace"], each["metadata"]["name"]) for each in of_kind(resources, "ServiceAccount")
    }
    for resource in resources:
        where = _where(resource)
        for found in walk(resource):
            name = found.get("serviceAccountName") or (found.get("serviceAccountRef") or {}).get("name")
            if name and (resource["metadata"]["namespace"], name) not in accounts:
                yield f"{where} runs as the ServiceAccount {name}, which is not there"
        if resource["kind"] in ("RoleBinding", "ClusterRoleBinding"):
            reference = resource["roleRef"]
            there = _names if reference["kind"] == "ClusterRole" else functools.partial(_beside, resource)
            if reference["name"] not in there(resources, reference["kind"]):
                yield f"{where} gives the {reference['kind']} {reference['name']}, which is not there"
            for subject in resource["subjects"]:
                if (subject["namespace"], subject["name"]) not in accounts:
                    yield f"{where} is for the ServiceAccount {subject['name']}, which is not there"
    bound = {resource["roleRef"]["name"] for resource in of_kind(resources, "RoleBinding", "ClusterRoleBinding")}
    for role in sorted(_names(resources, "Role", "ClusterRole") - bound):
        yield f"nobody has the role {role}"


def _secret_uses(value: Any) -> Iterator[tuple[str, set[str]]]:
    """Each Secret that a document reads, with the keys that it reads of it."""
    for found in walk(value):
        if "secretName" in found:
            keys = {found[key] for key in ("secretKey", "accessKey") if key in found}
            yield found["secretName"], keys | {item["key"] for item in found.get("items", [])}
        for key in ("secretKeyRef", "credentials", "passwordSecret"):
            if isinstance(found.get(key), dict):
                yield found[key]["name"], {found[key]["key"]}
        if "secretRef" in found and "name" in found["secretRef"]:
            yield found["secretRef"]["name"], set()
        for text in (text for text in found.values() if isinstance(text, str)):
            for key, name in re.findall(r"compareSecret\('([^']+)', *'([^']+)'\)", text):
                yield name, {key}


def _secrets(resources: list[Resource], settings: dict[str, str]) -> Iterator[str]:
    of_ci = CI_SECRETS | {settings["data-secret"]: S3}
    of_runs = SECRETS | dict.fromkeys((settings[f"{each}-secret"] for each in ("data", "s3", "store")), S3)
    by_namespace = {settings["ci-namespace"]: (of_ci, CI_CONFIG), settings["namespace"]: (of_runs, CONFIG)}
    for resource in resources:
        secrets, configs = by_namespace[resource["metadata"]["namespace"]]
        for name, keys in _secret_uses(resource):
            if name not in secrets:
                yield f"{_where(resource)} reads the Secret {name}, which nobody creates"
            for key in sorted(keys - secrets.get(name, keys)):
                yield f"{_where(resource)} reads the key {key}, which the Secret {name} does not have"
        for found in walk(resource):
            config = found["configMap"].get("name") if isinstance(found.get("configMap"), dict) else None
            if config and config not in configs | _beside(resource, resources, "ConfigMap"):
                yield f"{_where(resource)} mounts the ConfigMap {config}, which is not there"
    for resource in of_kind(resources, "SealedSecret", "ExternalSecret"):
        name = resource["metadata"]["name"]
        secrets, _ = by_namespace[resource["metadata"]["namespace"]]
        if name not in secrets:
            yield f"{_where(resource)} makes a Secret that nobody reads"
        missing = secrets.get(name, set()) - set(resource["spec"].get("encryptedData", secrets.get(name, set())))
        for key in sorted(missing):
            yield f"{_where(resource)} lacks the key {key}"
        if resource["kind"] == "ExternalSecret":
            store = resource["spec"]["secretStoreRef"]
            if store["name"] not in _beside(resource, resources, store["kind"]):
                yield f"{_where(resource)} reads the {store['kind']} {store['name']}, which is not there"


def _serving(resources: list[Resource], settings: dict[str, str]) -> Iterator[str]:
    runtimes = {runtime["metadata"]["name"]: runtime for runtime in of_kind(resources, "ServingRuntime")}
    for service in of_kind(resources, "InferenceService"):
        model, where = service["spec"]["predictor"]["model"], _where(service)
        runtime = runtimes.get(model["runtime"])
        if not runtime:
            yield f"{where} runs in the ServingRuntime {model['runtime']}, which is not there"
            continue
        formats = [
            {key: one.get(key) for key in ("name", "version")} for one in runtime["spec"]["supportedModelFormats"]
        ]
        if model["modelFormat"] not in formats:
            yield f"{where} is {model['modelFormat']}, which the ServingRuntime {model['runtime']} does not serve"
        if model["protocolVersion"] not in runtime["spec"]["protocolVersions"]:
            yield f"{where} speaks {model['protocolVersion']}, which the ServingRuntime {model['runtime']} does not"
        [container] = runtime["spec"]["containers"]
        path = container["args"][container["args"].index("--model_path") + 1]
        if "storageUri" in model:
            claim, _, folder = model["storageUri"].removeprefix("pvc://").partition("/")
            if claim not in _names(resources, "PersistentVolumeClaim"):
                yield f"{where} reads the claim {claim}, which is not there"
            if folder != settings["model-name"]:
                yield f"{where} reads the folder {folder}, where no run publishes"
            if path != "/mnt/models":
                yield f"{where} reads {path}, where KServe mounts nothing"
        elif path != f"{settings['model-store']}/{settings['model-name']}":
            yield f"{where} reads {path}, where no run publishes"


def _ports(resources: list[Resource]) -> Iterator[str]:
    containers = [one for runtime in of_kind(resources, "ServingRuntime") for one in runtime["spec"]["containers"]]
    for container in containers:
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        for probe in ("readinessProbe", "livenessProbe"):
            port = container[probe]["httpGet"]["port"]
            if port not in ports:
                yield f"the {probe} of {container['name']} asks at the port {port}, which is not there"
        for option, name in (("--rest_port", "http"), ("--port", "grpc")):
            if f"{option}={ports.get(name)}" not in container["args"]:
                yield f"{container['name']} does not listen at its port {name}"
    names = {port["name"] for container in containers for port in container["ports"]}
    numbers = {port["containerPort"] for container in containers for port in container["ports"]}
    for monitor in of_kind(resources, "PodMonitor"):
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            if endpoint["port"] not in names:
                yield f"{_where(monitor)} asks at the port {endpoint['port']}, which is not there"
    for monitor in of_kind(resources, "ServiceMonitor"):
        for endpoint in monitor["spec"]["endpoints"]:
            if endpoint["port"] not in LISTENER_PORTS:
                yield f"{_where(monitor)} asks at the port {endpoint['port']}, which is not there"
    # 53, 5353: names; 443, 6443: the API; 8443: interceptors, and what
    # authenticates before a model or pipeline server; 3306: a database of one's own.
    known = numbers | set(LISTENER_PORTS.values()) | {53, 5353, 443, 6443, 8443, 3306}
    for policy in of_kind(resources, "NetworkPolicy"):
        for found in walk(policy):
            if isinstance(found.get("port"), int) and found["port"] not in known:
                yield f"{_where(policy)} allows the port {found['port']}, at which nobody listens"


def _selectors(resources: list[Resource], settings: dict[str, str]) -> Iterator[str]:
    """Who is selected by the label of a controller, or reached by the name of its Service."""
    for resource in resources:
        labels = {
            "serving.kserve.io/inferenceservice": _beside(resource, resources, "InferenceService"),
            "eventlistener": _beside(resource, resources, "EventListener"),
        }
        for found in walk(resource.get("spec")):
            for key, values in labels.items():
                value = (
                    (found.get("matchLabels") or {}).get(key) if isinstance(found.get("matchLabels"), dict) else None
                )
                if value is not None and value not in values:
                    yield f"{_where(resource)} selects {key}={value}, which nothing has"
    for route in of_kind(resources, "Route"):
        if (to := route["spec"]["to"]["name"]) != PROXY or to not in _beside(route, resources, "Service"):
            yield f"{_where(route)} leads to the Service {to}, which is not there"
        if (port := route["spec"]["port"]["targetPort"]) not in _ports_of(PROXY, resources):
            yield f"{_where(route)} leads to the port {port}, which is not there"
    for route in of_kind(resources, "HTTPRoute"):
        for backend in (backend for rule in route["spec"]["rules"] for backend in rule["backendRefs"]):
            there = backend["name"] == PROXY and PROXY in _beside(route, resources, "Service")
            if not there or backend["port"] not in _ports_of(PROXY, resources).values():
                yield f"{_where(route)} leads to {backend['name']}:{backend['port']}, which is not there"
    pods = [each["spec"]["template"]["metadata"]["labels"] for each in of_kind(resources, "Deployment")]
    for service in of_kind(resources, "Service"):
        selector = service["spec"]["selector"]
        if model := selector.get("serving.kserve.io/inferenceservice"):
            if model not in _beside(service, resources, "InferenceService"):
                yield f"{_where(service)} leads to the model {model}, which is not served"
        elif "eventlistener" not in selector and not any(selector.items() <= labels.items() for labels in pods):
            yield f"{_where(service)} leads to no pod"
    hosts = {each["metadata"]["name"] for each in of_kind(resources, "Service")}
    for pod in of_kind(resources, "Pod"):
        environment = {each["name"]: each["value"] for each in pod["spec"]["containers"][0]["env"]}
        if environment.get("SERVER", next(iter(hosts))) not in hosts:
            yield f"{_where(pod)} asks the Service {environment['SERVER']}, which is not there"
        if environment["NAME"] != settings["model-name"]:
            yield f"{_where(pod)} is about the model {environment['NAME']}, which no run publishes"
    for config in of_kind(resources, "ConfigMap"):
        for host, _ in re.findall(r"proxy_pass http://([\w-]+):(\d+)", "".join(config.get("data", {}).values())):
            if host not in hosts:
                yield f"{_where(config)} hands on to the Service {host}, which is not there"
    host = f"{settings['namespace']}.{settings['cluster-domain']}"
    for route in of_kind(resources, "Route", "HTTPRoute"):
        found_hosts = [route["spec"]["host"]] if "host" in route["spec"] else route["spec"]["hostnames"]
        if found_hosts != [host]:
            yield f"{_where(route)} is {found_hosts}, expected {host}"


def _ports_of(service: str, resources: list[Resource]) -> dict[str, int]:
    """The ports of a Service by their names."""
    found = [each["spec"]["ports"] for each in of_kind(resources, "Service") if each["metadata"]["name"] == service]
    return {port["name"]: port["port"] for ports in found for port in ports}


def _alerts(resources: list[Resource], settings: dict[str, str]) -> Iterator[str]:
    """An alert's way: its label, who receives it, at which address, and what the listener's trigger asks for."""
    models = _names(resources, "InferenceService")
    listeners = {
        f"http://{PROXY}.{each['metadata']['namespace']}.svc:{port}"
        for each in of_kind(resources, "Service")
        for port in _ports_of(PROXY, resources).values()
        if each["metadata"]["name"] == PROXY
    }
    for rules in of_kind(resources, "PrometheusRule"):
        for rule in (rule for group in rules["spec"]["groups"] for rule in group["rules"]):
            model = rule.get("labels", {}).get("retrain")
            if model is not None and model not in models:
                yield f"{_where(rules)}: the alert {rule['alert']} retrains {model}, which is not served"
            # Monitoring shows a rule what is in its own namespace alone.
            own = f'namespace="{rules["metadata"]["namespace"]}"'
            if own not in rule["expr"] and not re.search(r"\bjukebox:", rule["expr"]):
                yield f"{_where(rules)}: {rule.get('alert') or rule['record']} is not about its own namespace"
    for config in of_kind(resources, "AlertmanagerConfig"):
        receivers = {receiver["name"]: receiver for receiver in config["spec"]["receivers"]}
        receiver = receivers.get(config["spec"]["route"]["receiver"])
        if not receiver:
            yield f"{_where(config)} has no receiver {config['spec']['route']['receiver']}"
            continue
        for hook in receiver["webhookConfigs"]:
            if hook["url"] not in listeners:
                yield f"{_where(config)} calls {hook['url']}, where nobody listens"
            if hook["httpConfig"]["authorization"]["credentials"] != {"name": "jukebox-alert", "key": "token"}:
                yield f"{_where(config)} shows a token that the trigger does not take"
        [matcher] = config["spec"]["route"]["matchers"]
        if matcher["name"] != "retrain" or matcher["value"] not in models:
            yield f"{_where(config)} waits for {matcher['name']}={matcher['value']}, which no alert has"


def _metrics(resources: list[Resource]) -> Iterator[str]:
    rules = [
        (_where(resource), rule)
        for resource in of_kind(resources, "PrometheusRule")
        for group in resource["spec"]["groups"]
        for rule in group["rules"]
    ]
    recorded = {rule["record"] for _, rule in rules if "record" in rule}
    uses = [(where, rule["expr"]) for where, rule in rules]
    for resource in of_kind(resources, "ConfigMap"):
        for text in (text for name, text in resource.get("data", {}).items() if name.endswith(".json")):
            panels = [panel for panel in walk(json.loads(text)) if "targets" in panel]
            uses += [(_where(resource), target["expr"]) for panel in panels for target in panel["targets"]]
    for where, expression in uses:
        bare = re.sub(r'"[^"]*"|\{[^}]*\}', "", expression)
        for name in re.findall(r"\b(?:jukebox:[\w:]+|(?:ovms|kube|kubelet|eventlistener|trustyai)_\w+)", bare):
            if name not in METRICS | recorded:
                yield f"{where} uses the metric {name}, which nobody exposes"
    used = " ".join(expression for _, expression in uses)
    for name in sorted(recorded):
        if not re.search(rf"{name}\b", used):
            yield f"nobody uses {name}"
