"""Looks at the page of a relay that events flow through, and through which a connection breaks."""

import sys
import threading

from axe_playwright_python.sync_playwright import Axe
from lab import Lab, free_port
from playwright.sync_api import sync_playwright

CHROMIUM, FOLDER = sys.argv[1:]
ROWS = ("INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json) "
        "SELECT gen_random_uuid(), gen_random_uuid(), '{}', '{{}}' FROM generate_series(1, {})")


def write(lab, stop):
    """Events until told to stop: bursts, some rows that become dead letters, and one broken connection."""
    turn = 0
    while not stop.wait(0.1):
        turn += 1
        lab.sql(ROWS.format("lesson.published.v1", 500 if turn % 50 > 40 else 20))
        if turn % 100 == 5:
            lab.sql(ROWS.format("has a space", 1))
        if turn == 60:
            lab.sql("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active")


def look(browser, url, name, width, height, scheme):
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    said, asked = [], set()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.add(request.url))
    page.goto(url)
    page.evaluate("window.here = true; document.querySelector('footer a').focus()")
    before = page.inner_text("#cards-0")
    page.wait_for_function("before => document.getElementById('cards-0').innerText !== before", arg=before)
    page.wait_for_selector("#charts-0 svg path.line", state="attached")
    findings = Axe().run(page).response["violations"]
    page.screenshot(path=f"{FOLDER}/{name}.png", full_page=True)
    for what, holds in [
        ("it was loaded anew", page.evaluate("window.here === true")),
        ("focus was lost", page.evaluate("document.activeElement.textContent === 'metrics'")),
        (f"it said {said}", not said),
        (f"it asked {asked}", all(request.startswith(url) for request in asked)),
        ("it is wider than the window", page.evaluate("document.documentElement.scrollWidth <= innerWidth")),
        (f"axe found {findings}", not findings),
    ]:
        if not holds:
            sys.exit(f"{name}: {what}")
    print(f"{name}: live, {FOLDER}/{name}.png")
    return page


def look_at_focus(browser, url):
    """Who has come to a dead letter by the keyboard stays there while the page around it changes, and other letters come."""
    page = browser.new_page(viewport={"width": 1360, "height": 1000})
    page.goto(url)
    page.locator("a[href^='/dead-letters/']").first.wait_for()
    page.keyboard.press("Tab")
    letter = page.evaluate("document.activeElement.textContent")
    page.evaluate("window.rows = document.querySelectorAll('tr[id^=letter-]').length")
    page.wait_for_function("() => document.querySelectorAll('tr[id^=letter-]').length > window.rows")
    if (now := page.evaluate("document.activeElement.textContent")) != letter:
        sys.exit(f"focus: from {letter} it went to {now}")
    print(f"focus: stays on {letter}")
    page.close()


def look_at_a_row(browser, url):
    """A dead letter is masked until somebody asks for it by the keyboard."""
    page = browser.new_page(viewport={"width": 1360, "height": 1000})
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(url)
    link = page.locator("a[href^='/dead-letters/']").first
    link.wait_for()
    if "has a space" in page.content():
        sys.exit("row: a value is shown before it is asked for")
    link.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("h1:has-text('Dead letter')")
    findings = Axe().run(page).response["violations"]
    if "has a space" not in page.inner_text("main") or findings or said:
        sys.exit(f"row: not shown, or axe found {findings}, or it said {said}")
    page.screenshot(path=f"{FOLDER}/row.png", full_page=True)
    print(f"row: {FOLDER}/row.png")


with Lab() as lab, sync_playwright() as playwright:
    code, told = lab.run("setup")
    if code != 0:
        sys.exit(told)
    listen = f"127.0.0.1:{free_port()}"
    relay = lab.relay("run", http_listen=listen)
    stop = threading.Event()
    writer = threading.Thread(target=write, args=(lab, stop))
    writer.start()
    try:
        sandbox = ["--no-sandbox"]  # As root Chromium has none.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        url = f"http://{listen}/"
        for size in [("wide", 1360, 1000, "light"), ("narrow", 360, 1500, "light"), ("dark", 1360, 1000, "dark")]:
            page = look(browser, url, *size)
        look_at_focus(browser, url)
        look_at_a_row(browser, url)
        stop.set()
        writer.join()
        relay.stop()
        page.wait_for_selector("#away:not([hidden])")
        page.screenshot(path=f"{FOLDER}/away.png")
        print(f"away: {page.inner_text('#away')}")
        if page.title() != "walrelay: no answer":
            sys.exit(f"away: the tab is called {page.title()}")
        relay = lab.relay("run", http_listen=listen)
        page.wait_for_selector("#away.back")
        if "started anew" not in page.inner_text("#away") or page.title() == "walrelay: no answer":
            sys.exit(f"back: it says {page.inner_text('#away')}, and the tab is called {page.title()}")
        print(f"back: {page.inner_text('#away')}")
        browser.close()
    finally:
        stop.set()
