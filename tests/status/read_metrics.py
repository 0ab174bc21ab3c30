"""Reads an exposition on standard input with the parser of Prometheus' Python client, and prints each family as JSON."""

import json
import sys

from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as prometheus

parse = {"prometheus": prometheus, "openmetrics": open_metrics}[sys.argv[1]]
families = {}
for family in parse(sys.stdin.read()):
    if family.name in families:
        sys.exit(f"{family.name} stands twice")
    if not family.documentation:
        sys.exit(f"{family.name} has no help")
    samples = [[sample.name, sample.labels, sample.value] for sample in family.samples]
    families[family.name] = {"type": family.type, "samples": samples}
print(json.dumps(families))
