#!/usr/bin/env bash
# Records a session with walrelay, Postgres and NATS on this machine into docs/recording.svg: what the README shows.
# Needs Python 3.11 and target/release/walrelay (or WALRELAY); fetches 5 MB.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/scripts/program.sh"
program
venv "psycopg[binary]==3.3.9"
PYTHONPATH=$root/scripts/peers "$folder/venv/bin/python" "$root/scripts/recording/record.py" "$root/docs/recording.svg"
