"""The rules that every overlay keeps. Each yields what breaks it; nothing: all is well."""

import json
from pathlib import PurePosixPath

from manifests import (
    ROOT,
    containers,
    environment,
    known_settings,
    named,
    of_kind,
    pods,
    selects,
)

BRIDGE = "mcpo-bridge"
#: Images of others that need root and a writable root: everything else still holds for them.
ROOTFUL = {"open-webui"}
PROBES = {"livenessProbe": "/health/live", "readinessProbe": "/health/ready", "startupProbe": "/health/live"}
END_OF_SERVERS = 61  # seconds: END_TIME and LINGER in crates/bridge/src/serve/mod.rs
DRAIN_DELAY = 5  # seconds; the default of MCPO_DRAIN_DELAY
PLACEHOLDER = "host.of.site"


def faults(resources):
    for rule in RULES:
        yield from rule(resources)


def pods_are_confined(resources):
    for name, pod in pods(resources):
        spec = pod["spec"]
        security = spec.get("securityContext", {})
        if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{name}: seccompProfile is not RuntimeDefault"
        if spec.get("automountServiceAccountToken") is not False:
            yield f"{name}: gets a token for the cluster"
        if spec.get("hostNetwork") or spec.get("hostPID") or spec.get("hostIPC"):
            yield f"{name}: shares a namespace of the node"
        if any("hostPath" in volume for volume in spec.get("volumes", [])):
            yield f"{name}: mounts a path of the node"
        if name not in ROOTFUL and not (security.get("runAsNonRoot") and security.get("runAsUser", 0) > 0):
            yield f"{name}: may run as root"
        if name == BRIDGE and security.get("fsGroup") != security.get("runAsGroup"):
            yield f"{name}: its group cannot write to its volumes"


def containers_are_confined(resources):
    for name, pod in pods(resources):
        for one in containers(pod):
            security = one.get("securityContext", {})
            if security.get("allowPrivilegeEscalation") is not False:
                yield f"{name}/{one['name']}: may gain privileges"
            if security.get("capabilities") != {"drop": ["ALL"]}:
                yield f"{name}/{one['name']}: keeps capabilities"
            if security.get("privileged"):
                yield f"{name}/{one['name']}: is privileged"
            if name not in ROOTFUL and not security.get("readOnlyRootFilesystem"):
                yield f"{name}/{one['name']}: can write to its root"


def containers_say_what_they_need(resources):
    for name, pod in pods(resources):
        for one in containers(pod):
            for side in ("requests", "limits"):
                missing = {"cpu", "memory"} - set(one.get("resources", {}).get(side, {}))
                if missing:
                    yield f"{name}/{one['name']}: {side} lack {', '.join(sorted(missing))}"


def images_are_pinned(resources):
    for name, pod in pods(resources):
        for one in containers(pod):
            tag = one["image"].rpartition("/")[2].partition(":")[2]
            if "@sha256:" not in one["image"] and tag in ("", "latest", "main", "dev"):
                yield f"{name}/{one['name']}: image {one['image']} is not pinned"


def containers_are_probed(resources):
    for name, pod in pods(resources):
        for one in pod["spec"]["containers"]:
            for probe, path in PROBES.items():
                got = one.get(probe, {}).get("httpGet", {})
                if not got:
                    yield f"{name}/{one['name']}: no {probe}"
                elif name == BRIDGE and got["path"] != path:
                    yield f"{name}/{one['name']}: {probe} asks {got['path']} instead of {path}"


def rollouts_lose_no_call(resources):
    deployment = named(resources, "Deployment", BRIDGE)
    spec = deployment["spec"]["template"]["spec"]
    container = spec["containers"][0]
    settings = environment(resources, container)
    wait = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    if wait < 5:
        yield f"{BRIDGE}: preStop waits {wait} s: endpoints may still name a pod that has stopped listening"
    delay, grace = float(settings.get("MCPO_DRAIN_DELAY", DRAIN_DELAY)), float(settings["MCPO_SHUTDOWN_GRACE"])
    needed = wait + delay + grace + END_OF_SERVERS
    if spec["terminationGracePeriodSeconds"] < needed:
        yield f"{BRIDGE}: terminationGracePeriodSeconds is below the {needed:.0f} s that an end may take"
    strategy = deployment["spec"]["strategy"]
    if strategy["type"] == "RollingUpdate" and strategy["rollingUpdate"]["maxUnavailable"] != 0:
        yield f"{BRIDGE}: a rollout takes pods away before others are ready"
    if deployment["spec"].get("replicas") != 1 and grace < float(settings["MCPO_TIMEOUT"]):
        yield f"{BRIDGE}: MCPO_SHUTDOWN_GRACE is below MCPO_TIMEOUT: a rollout would cut the longest calls"


def volumes_can_be_shared(resources):
    deployment = named(resources, "Deployment", BRIDGE)
    modes = named(resources, "PersistentVolumeClaim", "mcpo-jobs")["spec"]["accessModes"]
    alone = deployment["spec"].get("replicas") == 1 and deployment["spec"]["strategy"]["type"] == "Recreate"
    if not alone and modes != ["ReadWriteMany"]:
        yield f"mcpo-jobs: several pods need ReadWriteMany, not {', '.join(modes)}"


def bridge_settings_are_real(resources):
    container = named(resources, "Deployment", BRIDGE)["spec"]["template"]["spec"]["containers"][0]
    settings = environment(resources, container)
    names = set(settings) | {one["name"] for one in container.get("env", [])}
    for name in sorted(name for name in names if name.startswith("MCPO_") and name not in known_settings()):
        yield f"{BRIDGE}: {name} is no setting of the bridge"
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    for name in ("MCPO_JOBS_DIR", "MCPO_TOOLS_DIR"):
        folder = PurePosixPath(settings[name])
        inside = [mount for path, mount in mounts.items() if path != "/tmp" and folder.is_relative_to(path)]
        if not inside or inside[0].get("readOnly"):
            yield f"{BRIDGE}: {name}={folder} lies on no volume of its own"
    if settings["MCPO_JOBS_DIR"] in mounts:
        yield f"{BRIDGE}: MCPO_JOBS_DIR is the volume itself, which belongs to root"


def references_lead_somewhere(resources):
    for name, pod in pods(resources):
        for volume in pod["spec"].get("volumes", []):
            for key, kind, field in (
                ("configMap", "ConfigMap", "name"),
                ("persistentVolumeClaim", "PersistentVolumeClaim", "claimName"),
            ):
                if key in volume and not named(resources, kind, volume[key][field]):
                    yield f"{name}: volume {volume['name']} names no {kind} of the overlay"
        for one in containers(pod):
            for source in one.get("envFrom", []):
                if not named(resources, "ConfigMap", source["configMapRef"]["name"]):
                    yield f"{name}/{one['name']}: envFrom names no ConfigMap of the overlay"
        account = pod["spec"].get("serviceAccountName")
        if account and not named(resources, "ServiceAccount", account):
            yield f"{name}: there is no ServiceAccount {account}"
    for autoscaler in of_kind(resources, "HorizontalPodAutoscaler"):
        target = autoscaler["spec"]["scaleTargetRef"]
        deployment = named(resources, target["kind"], target["name"])
        if not deployment:
            yield f"{autoscaler['metadata']['name']}: scales nothing"
        elif "replicas" in deployment["spec"]:
            yield f"{target['name']}: replicas would undo the autoscaler with every apply"


def secrets_hold_what_is_asked(resources, secrets):
    for name, pod in pods(resources):
        mounted = {v["name"]: v["secret"]["secretName"] for v in pod["spec"].get("volumes", []) if "secret" in v}
        for one in containers(pod):
            paths = {m["mountPath"]: mounted[m["name"]] for m in one.get("volumeMounts", []) if m["name"] in mounted}
            for variable, value in environment(resources, one).items():
                path = PurePosixPath(value)
                if not variable.endswith("_FILE") or variable == "MCPO_CONFIG_FILE":
                    continue
                if path.name not in secrets.get(paths.get(str(path.parent)), {}):
                    yield f"{name}: {variable}={value} is a key of no mounted Secret"
            for variable in one.get("env", []):
                asked = variable.get("valueFrom", {}).get("secretKeyRef")
                if asked and asked["key"] not in secrets.get(asked["name"], {}):
                    yield f"{name}: {variable['name']} asks Secret {asked['name']} for {asked['key']}, which is not there"


def selectors_find_pods(resources):
    templates = dict(pods(resources))
    every = [pod["metadata"]["labels"] for pod in templates.values()]
    for name, pod in templates.items():
        chosen = named(resources, "Deployment", name)["spec"]["selector"]["matchLabels"]
        if not selects(chosen, pod["metadata"]["labels"]):
            yield f"Deployment {name}: selects other pods than its own"
    for kind, path in (("Service", ()), ("PodDisruptionBudget", ("matchLabels",)), ("NetworkPolicy", ("matchLabels",))):
        for one in of_kind(resources, kind):
            selector = one["spec"]["podSelector" if kind == "NetworkPolicy" else "selector"]
            for step in path:
                selector = selector[step]
            if sum(selects(selector, labels) for labels in every) != 1:
                yield f"{kind} {one['metadata']['name']}: its selector does not find one Deployment's pods"
    covered = [policy["spec"]["podSelector"]["matchLabels"] for policy in of_kind(resources, "NetworkPolicy")]
    for name, pod in templates.items():
        if not any(selects(selector, pod["metadata"]["labels"]) for selector in covered):
            yield f"{name}: no NetworkPolicy covers it"


def services_and_routes_meet(resources):
    ports = {one["metadata"]["name"]: one["spec"]["ports"] for one in of_kind(resources, "Service")}
    for service in of_kind(resources, "Service"):
        pod = next(pod for _, pod in pods(resources) if selects(service["spec"]["selector"], pod["metadata"]["labels"]))
        open_ports = {port["name"] for one in containers(pod) for port in one.get("ports", [])}
        for port in service["spec"]["ports"]:
            if port["targetPort"] not in open_ports:
                yield f"Service {service['metadata']['name']}: leads to no port of its pods"
    for ingress in of_kind(resources, "Ingress"):
        hosts = {host for tls in ingress["spec"].get("tls", []) for host in tls["hosts"]}
        for rule in ingress["spec"]["rules"]:
            if rule["host"] not in hosts:
                yield f"Ingress {ingress['metadata']['name']}: {rule['host']} has no TLS"
            for path in rule["http"]["paths"]:
                backend = path["backend"]["service"]
                if backend["port"]["name"] not in {port["name"] for port in ports.get(backend["name"], [])}:
                    yield f"Ingress {ingress['metadata']['name']}: {path['path']} leads nowhere"
                if backend["name"] == BRIDGE and path["path"] != "/files/":
                    yield f"Ingress {ingress['metadata']['name']}: opens {path['path']} of the bridge to the world"


def servers_and_connections_agree(resources):
    given = named(resources, "ConfigMap", "mcpo-bridge-servers")["data"]["mcp-servers.json"]
    if given != (ROOT / "mcp-servers.json.example").read_text(encoding="utf-8"):
        yield "base/mcp-servers.json differs from mcp-servers.json.example: cp mcp-servers.json.example there"
    webui = named(resources, "Deployment", "open-webui")
    if webui:
        variables = environment(resources, webui["spec"]["template"]["spec"]["containers"][0])
        connections = json.loads(variables["TOOL_SERVER_CONNECTIONS"])
        urls = sorted(connection["url"] for connection in connections)
        wanted = sorted(f"http://{BRIDGE}:8080/mcpo/{name}" for name in json.loads(given)["mcpServers"])
        if urls != wanted:
            yield f"TOOL_SERVER_CONNECTIONS has {', '.join(urls)} instead of {', '.join(wanted)}"


def nothing_is_left_open(resources):
    namespace = of_kind(resources, "Namespace")[0]["metadata"]["name"]
    for one in resources:
        if one["kind"] != "Namespace" and one["metadata"].get("namespace") != namespace:
            yield f"{one['kind']} {one['metadata']['name']}: is not in namespace {namespace}"
        if one["kind"] == "Secret":
            yield f"Secret {one['metadata']['name']}: values are not rendered with manifests"
        if PLACEHOLDER in json.dumps(one):
            yield f"{one['kind']} {one['metadata']['name']}: still says {PLACEHOLDER}"


RULES = (
    pods_are_confined,
    containers_are_confined,
    containers_say_what_they_need,
    images_are_pinned,
    containers_are_probed,
    rollouts_lose_no_call,
    volumes_can_be_shared,
    bridge_settings_are_real,
    references_lead_somewhere,
    selectors_find_pods,
    services_and_routes_meet,
    servers_and_connections_agree,
    nothing_is_left_open,
)
