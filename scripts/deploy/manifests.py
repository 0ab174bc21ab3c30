"""Helm's engine lints and renders the chart; everything that Kubernetes would get is checked against its schemas."""

import sys

import kubernetes_validate
import yaml
from helm_python import chart

VERSION = kubernetes_validate.latest_version()
CHART = "deploy/helm/walrelay"
VALUES = [
    {"postgresUrl": "postgres://walrelay:p@postgres/app"},
    {"existingSecret": "mine", "setup": True, "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
    {
        "existingSecret": "mine",
        "imagePullSecrets": [{"name": "registry"}],
        "env": [{"name": "WALRELAY_RELAY_HOLD_BACK", "value": "1m"}],
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "a", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
    },
]


def check(source, text):
    kinds = []
    for document in yaml.safe_load_all(text):
        if document is None:
            continue
        kinds.append(document["kind"])
        # Its schema is the operator's own.
        if not document["apiVersion"].startswith("monitoring.coreos.com/"):
            kubernetes_validate.validate(document, VERSION, strict=True)
    print(f"{source}: {', '.join(kinds)}: as Kubernetes {VERSION} wants them")
    return kinds


with open("deploy/kubernetes/walrelay.yaml", encoding="utf-8") as file:
    check(file.name, file.read())
for values in VALUES:
    report = chart.lint(CHART, values, strict=True)
    if report["errors"]:
        sys.exit(f"{CHART}: {report}")
    rendered = chart.Chart.load(CHART).render(values, name="orders", namespace="shop")
    kinds = []
    for path, text in rendered.items():
        if path.endswith(".yaml"):
            kinds += check(path, text)
    if ("Secret" in kinds) != ("postgresUrl" in values):
        sys.exit(f"{CHART}: {kinds} of {values}")
try:
    chart.Chart.load(CHART).render({}, name="orders", namespace="shop")
except Exception as error:
    if "give existingSecret, or postgresUrl" not in str(error):
        raise
else:
    sys.exit(f"{CHART}: renders without a database")
