"""Links of the book that lead out of docs/ to where those files are; fails on one that leads nowhere."""

import re
import sys
from pathlib import Path
from urllib.parse import unquote

root, repository = Path(sys.argv[1]), sys.argv[2].rstrip("/")
book = root / "book"
LINK = re.compile(r'((?:href|src)=")([^"#?:]+)([#"][^"]*"?)')
dead = []


def led(page, match):
    before, target, behind = match.groups()
    to = (page.parent / unquote(target)).resolve()
    # mdBook has made .html of each .md, also of those that are none of its pages.
    beside = [to, to.with_suffix(".md")]
    if book in to.parents or to == book:
        if not to.exists():
            dead.append(f"{page.name}: {target}")
        return match.group()
    found = next((file for file in beside if file.exists()), None)
    if found is None or root not in found.parents:
        dead.append(f"{page.name}: {target}")
        return match.group()
    path = found.relative_to(root).as_posix()
    up = "../" * len(page.relative_to(root).parent.parts)
    return f"{before}{repository + '/' if repository else up}{path}{behind}"


for page in book.rglob("*.html"):
    # What is shown where a path has no page: its links are of the site's root.
    if page.name == "404.html":
        continue
    text = page.read_text()
    page.write_text(LINK.sub(lambda match: led(page, match), text))
if dead:
    sys.exit("book: links that lead nowhere:\n" + "\n".join(sorted(set(dead))))
print(f"book: {book}/index.html")
