#!/usr/bin/env bash
# Records a session with walrelay, Postgres and NATS on this machine into docs/recording.svg: what the README shows.
# Needs Python 3.11 and target/release/walrelay (or WALRELAY); fetches 5 MB.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
"$root/scripts/servers.sh"
export WALRELAY=${WALRELAY:-$root/target/release/walrelay}
[ -x "$WALRELAY" ] || { echo "there is no $WALRELAY: make build" >&2; exit 1; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "psycopg[binary]==3.3.9"
PYTHONPATH=$root/scripts/peers "$folder/venv/bin/python" "$root/scripts/recording/record.py" "$root/docs/recording.svg"
