"""A session in a terminal, as an SVG whose lines appear when they appeared: no script, no font, no request."""

import os
import pathlib
import signal
import subprocess
import sys
import time
from xml.sax.saxutils import escape

from lab import ROOT, Lab, Process, wait_for

COLUMNS, LINE, CHARACTER, MARGIN = 126, 18, 7.25, 16
TYPING, READING = 0.6, 1.2
INSERT = ("psql -c \"insert into outbox_events (id, aggregate_id, event_type, payload_json) values "
          "(gen_random_uuid(), gen_random_uuid(), 'lesson.published.v1', '{}')\"")


class Screen:
    """Lines, and at which second each appeared."""

    def __init__(self):
        self.lines, self.now = [], 0.5

    def show(self, kind, text):
        # As a terminal breaks what is too long.
        for start in range(0, max(len(text), 1), COLUMNS):
            self.lines.append((self.now, kind, text[start:start + COLUMNS]))

    def typed(self, command):
        self.show("typed", f"$ {command}")
        self.now += TYPING

    def told(self, text, began):
        self.now += min(time.monotonic() - began, READING)
        for line in text.rstrip("\n").split("\n"):
            self.show("told", line)
        self.now += READING

    def svg(self):
        width, height = COLUMNS * CHARACTER + 2 * MARGIN, len(self.lines) * LINE + 2 * MARGIN
        lines = "\n".join(
            f'<text x="{MARGIN}" y="{MARGIN + LINE * (row + 0.75):.1f}" class="{kind}" '
            f'style="animation-delay:{at:.2f}s">{escape(text)}</text>'
            for row, (at, kind, text) in enumerate(self.lines))
        said = escape("\n".join(text for _, _, text in self.lines))
        return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img">
<title>A session with walrelay in a terminal</title>
<desc>{said}</desc>
<style>
rect {{ fill: #0e1116 }}
text {{ font: 12px ui-monospace, Menlo, Consolas, monospace; white-space: pre; fill: #c4cbd6; animation: appear 0.01s both }}
.typed {{ fill: #7aa7ff; font-weight: 600 }}
@keyframes appear {{ from {{ opacity: 0 }} to {{ opacity: 1 }} }}
@media (prefers-reduced-motion: reduce) {{ text {{ animation: none }} }}
</style>
<rect width="100%" height="100%" rx="8"/>
{lines}
</svg>
"""


def record(lab, screen):
    binaries = [str(lab.walrelay.parent), str((ROOT / ".servers/postgres/bin").resolve())]
    url = f"postgres://postgres@127.0.0.1:{lab.port}/postgres"
    shell = {"env": {"PATH": ":".join([*binaries, os.environ["PATH"]]), "DATABASE_URL": url, "NATS_URL": lab.nats,
                     "PGHOST": "127.0.0.1", "PGPORT": str(lab.port), "PGUSER": "postgres", "PGDATABASE": "postgres",
                     "WALRELAY_HTTP_LISTEN": "", "WALRELAY_RELAY_HOLD_BACK": "0s", "HOME": str(lab.folder)}}

    def run(command):
        screen.typed(command)
        began = time.monotonic()
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=lab.folder, **shell)
        if done.returncode != 0:
            sys.exit(f"{command}: {done.stderr}")
        return done.stdout, began

    def start(command, text):
        screen.typed(f"{command} &")
        process = Process(lab, ["bash", "-c", f"exec {command}"], **shell)
        wait_for(command, lambda: next((line for line in process.lines if text in line), None), process)
        return process

    def arrives(tail, count):
        return wait_for("an event", lambda: tail.lines[count] if len(tail.lines) > count else None, tail)

    screen.told(*run("walrelay setup"))
    relay = start("walrelay run", "streaming")
    screen.now += READING
    tail = start("walrelay tail", "SEQUENCE")
    screen.told(tail.lines[0], time.monotonic())
    _, began = run(INSERT)
    screen.told(arrives(tail, 1), began)
    # The shell's job is this process.
    screen.typed("kill -9 %1")
    relay.stop(signal.SIGKILL)
    run(INSERT)
    screen.now += READING
    began = time.monotonic()
    start("walrelay run", "streaming")
    screen.told(arrives(tail, 2), began)
    screen.told(*run("walrelay verify"))


with Lab() as lab:
    screen = Screen()
    record(lab, screen)
    pathlib.Path(sys.argv[1]).write_text(screen.svg())
    print(f"recording: {len(screen.lines)} lines, {screen.now:.0f} s, {sys.argv[1]}")
