"""Breaks what was rendered, one thing at a time: the rule that is there for it must notice."""

import copy
import unittest

from check import schema_faults
from manifests import made_secrets, named, of_kind, render
from policy import BRIDGE, faults, secrets_hold_what_is_asked


def bridge(resources):
    return named(resources, "Deployment", BRIDGE)["spec"]


def pod(resources):
    return bridge(resources)["template"]["spec"]


def container(resources):
    return pod(resources)["containers"][0]


def settings(resources):
    name = container(resources)["envFrom"][0]["configMapRef"]["name"]
    return named(resources, "ConfigMap", name)["data"]


def webui(resources):
    return named(resources, "Deployment", "open-webui")["spec"]["template"]["spec"]["containers"][0]


def spec(kind, name=BRIDGE):
    return lambda resources: named(resources, kind, name)["spec"]


#: What is said, where, and what is done to it there.
BROKEN = [
    ("seccompProfile", pod, lambda it: it["securityContext"].pop("seccompProfile")),
    ("token for the cluster", pod, lambda it: it.pop("automountServiceAccountToken")),
    ("namespace of the node", pod, lambda it: it.update(hostNetwork=True)),
    ("path of the node", pod, lambda it: it["volumes"].append({"name": "x", "hostPath": {"path": "/"}})),
    ("may run as root", pod, lambda it: it["securityContext"].update(runAsUser=0)),
    ("cannot write to its volumes", pod, lambda it: it["securityContext"].pop("fsGroup")),
    ("may gain privileges", container, lambda it: it["securityContext"].pop("allowPrivilegeEscalation")),
    ("keeps capabilities", webui, lambda it: it["securityContext"].pop("capabilities")),
    ("is privileged", container, lambda it: it["securityContext"].update(privileged=True)),
    ("can write to its root", container, lambda it: it["securityContext"].pop("readOnlyRootFilesystem")),
    ("limits lack memory", container, lambda it: it["resources"]["limits"].pop("memory")),
    ("is not pinned", container, lambda it: it.update(image="mcpo-bridge:latest")),
    ("is not pinned", webui, lambda it: it.update(image="registry:5000/open-webui")),
    ("no livenessProbe", webui, lambda it: it.pop("livenessProbe")),
    ("instead of /health/ready", container, lambda it: it["readinessProbe"]["httpGet"].update(path="/health")),
    ("preStop waits", container, lambda it: it.pop("lifecycle")),
    ("an end may take", pod, lambda it: it.update(terminationGracePeriodSeconds=300)),
    ("before others are ready", bridge, lambda it: it["strategy"]["rollingUpdate"].update(maxUnavailable=1)),
    ("cut the longest calls", settings, lambda it: it.update(MCPO_TIMEOUT="600")),
    (
        "need ReadWriteMany",
        spec("PersistentVolumeClaim", "mcpo-jobs"),
        lambda it: it.update(accessModes=["ReadWriteOnce"]),
    ),
    ("is no setting", settings, lambda it: it.update(MCPO_JOB_DIR="/tmp/mcpo-jobs/x")),
    ("no volume of its own", settings, lambda it: it.update(MCPO_TOOLS_DIR="/opt/tools")),
    ("the volume itself", settings, lambda it: it.update(MCPO_JOBS_DIR="/tmp/mcpo-jobs")),
    ("names no PersistentVolumeClaim", pod, lambda it: it["volumes"][2]["persistentVolumeClaim"].update(claimName="x")),
    ("no ServiceAccount", pod, lambda it: it.update(serviceAccountName="default")),
    ("scales nothing", spec("HorizontalPodAutoscaler"), lambda it: it["scaleTargetRef"].update(name="x")),
    ("undo the autoscaler", bridge, lambda it: it.update(replicas=2)),
    ("its selector does not find", spec("Service"), lambda it: it["selector"].update({"app.kubernetes.io/name": "x"})),
    ("no NetworkPolicy covers", spec("NetworkPolicy"), lambda it: it["podSelector"].update(matchLabels={"a": "b"})),
    ("leads to no port", spec("Service"), lambda it: it["ports"][0].update(targetPort="web")),
    ("has no TLS", spec("Ingress"), lambda it: it.pop("tls")),
    ("leads nowhere", spec("Service", "open-webui"), lambda it: it["ports"][0].update(name="web")),
    ("to the world", spec("Ingress"), lambda it: it["rules"][0]["http"]["paths"][0].update(path="/")),
    (
        "differs from mcp-servers.json.example",
        lambda resources: named(resources, "ConfigMap", "mcpo-bridge-servers")["data"],
        lambda it: it.update({"mcp-servers.json": '{"mcpServers": {"time": {}}}'}),
    ),
    ("is not in namespace", lambda resources: resources[-1]["metadata"], lambda it: it.update(namespace="default")),
    ("values are not rendered", lambda it: it, lambda it: it.append(made_secrets(BRIDGE)[0])),
    ("still says host.of.site", spec("Ingress"), lambda it: it["rules"][0].update(host="host.of.site")),
]


class Policy(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.scale = render("scale")
        cls.secrets = {one["metadata"]["name"]: one["stringData"] for one in made_secrets(BRIDGE)}

    def test_each_rule_notices_what_it_is_there_for(self):
        for said, place, harm in BROKEN:
            with self.subTest(said):
                broken = copy.deepcopy(self.scale)
                harm(place(broken))
                self.assertTrue(any(said in fault for fault in faults(broken)), f"nobody said {said!r}")

    def test_a_key_that_no_secret_has_is_noticed(self):
        for name, key in (("mcpo-bridge", "api-keys"), ("open-webui", "webui-secret-key")):
            less = copy.deepcopy(self.secrets)
            del less[name][key]
            found = list(secrets_hold_what_is_asked(self.scale, less))
            self.assertTrue(any(key in fault for fault in found), found)

    def test_a_field_that_kubernetes_does_not_know_is_noticed(self):
        broken = copy.deepcopy(self.scale)
        container(broken)["livenessProb"] = {}
        self.assertTrue(any("livenessProb" in fault for fault in schema_faults(broken)))

    def test_keys_are_fresh_and_reach_both_sides(self):
        first, second = made_secrets(BRIDGE), made_secrets(BRIDGE)
        for one in (first, second):
            ours, theirs = (secret["stringData"] for secret in one)
            self.assertEqual(ours["api-keys"].strip(), f"openwebui:{theirs['bridge-key']}")
            self.assertEqual(ours["jwt-secret"], theirs["jwt-secret"])
        self.assertNotEqual(first[0]["stringData"], second[0]["stringData"])
        self.assertTrue(of_kind(first, "Secret"))


if __name__ == "__main__":
    unittest.main()
