#!/usr/bin/env bash
# All tests: cargo test with the arguments given. A few that fail are run once more, each by itself, and named at the end:
# on a busy machine a real server can stand still for longer than a test waits. One that fails twice fails here.
set -uo pipefail
cd "$(dirname "$0")/.."
# More than these are no accident.
again_max=3

log=$(mktemp)
trap 'rm -rf "$log" "${memory:-}"' EXIT
# Servers' data in memory, where there is room: a Postgres of one's own is a thousand files, and to make and remove them on a disk takes
# up to a third of the CPU of a test. None of them pulls the plug.
needed_kib=$((${RUST_TEST_THREADS:-$(getconf _NPROCESSORS_ONLN)} * 512 * 1024)) # Seen: 300 MB a thread.
has_room() {
    [ "$(df -Pk /dev/shm | awk 'END { print int($4) }')" -ge "$needed_kib" ] &&
        [ "$(awk '/^MemAvailable:/ { print $2 }' /proc/meminfo)" -ge $((needed_kib * 2)) ]
}
if [ -z "${TMPDIR:-}" ] && has_room 2>/dev/null && memory=$(mktemp -d /dev/shm/walrelay-XXXXXX); then
    # Postgres runs as another user where we are root.
    chmod 711 "$memory"
    export TMPDIR=$memory
else
    # On a disk more than these would keep each other waiting.
    most=$((3 * $(getconf _NPROCESSORS_ONLN)))
    [ "${RUST_TEST_THREADS:-$most}" -lt "$most" ] || export RUST_TEST_THREADS=$most
fi
"${CARGO:-cargo}" test --no-fail-fast "$@" 2>&1 | tee "$log"
status=${PIPESTATUS[0]}
[ "$status" != 0 ] || exit 0

# PROGRAM NAME of each test that failed; a program's own list of them is the last one before its result.
failed=$(awk '
    /^ +Running .*\(.*\)$/ { program = $NF; gsub(/[()]/, "", program) }
    /^ +Doc-tests / { program = "doc-tests" }
    /^failures:$/ { count = 0 }
    /^    [A-Za-z_0-9:]+$/ { names[count++] = $1 }
    /^test result: FAILED/ { for (i = 0; i < count; i++) print program, names[i] }
' "$log")
# A program that did not build, or was ended from outside, names no test.
targets=$(grep -c '^test result: FAILED' "$log")
stopped=$(awk '/^error: [0-9]+ targets? failed:$/ { print $2 }' "$log")
count=$(grep -c . <<<"$failed")
if [ "$count" = 0 ] || [ "$count" -gt "$again_max" ] || [ "$targets" != "$stopped" ] || grep -q '^doc-tests ' <<<"$failed"; then
    exit "$status"
fi

while read -r program name; do
    printf '\n--- failed, and run once more by itself: %s\n' "$name"
    "$program" --exact "$name" --nocapture || exit 1
done <<<"$failed"
printf '\nFailed beside the others and passed by itself. Look into why: a race in the test, or a fault that shows now and then.\n'
printf '%s\n' "$failed"
