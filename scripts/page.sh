#!/usr/bin/env bash
# Looks at the status page of a running relay in headless Chromium: live without a reload, focus kept, nothing asked of another
# host, nothing that the policy refuses, no finding of axe (accessibility), at three sizes; a process that dies and comes back.
# Leaves the pictures in page/.
# Needs Python 3.11, a Chromium on PATH, and target/release/walrelay (or WALRELAY); fetches 50 MB.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
chromium=$(command -v chromium || command -v chromium-browser || command -v google-chrome) ||
  { echo "page: Chromium is needed: apt-get install chromium" >&2; exit 1; }
. "$root/scripts/program.sh"
program
venv "psycopg[binary]==3.3.9" playwright==1.65.2 axe-playwright-python==0.1.8
mkdir -p "$root/page"
PYTHONPATH=$root/scripts/peers "$folder/venv/bin/python" "$root/scripts/page/look.py" "$chromium" "$root/page"
