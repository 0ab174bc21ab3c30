#!/usr/bin/env bash
# All tests, built by cargo test with the arguments given. The programs run on two tracks: those that compute for the most part, and beside
# them the others, which wait for deadlines and would leave the processors idle. What a program prints comes at its end. A few tests that
# fail are run once more, each by itself, and named at the end: on a busy machine a real server can stand still for longer than a test
# waits. One that fails twice fails here. Written for bash 3.2, which is what a Mac has.
set -uo pipefail
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}
# The track of those that compute.
busy='faults integration'
# More than these are no accident.
again_max=3
threads=${RUST_TEST_THREADS:-$(getconf _NPROCESSORS_ONLN)}

work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$work" "${memory:-}"' EXIT
trap 'exit 130' INT TERM

"$cargo" test --no-run "$@" 2>&1 | tee "$work/build" || exit
programs=$(sed -n 's/^ *Executable .*(\(.*\))$/\1/p' "$work/build")
[ -n "$programs" ] || { echo "tests: cargo test --no-run names no program; has its form changed?" >&2; exit 1; }

# Servers' data in memory, where there is room: a Postgres of one's own is a thousand files, and to make and remove them on a disk takes
# up to a third of the CPU of a test. None of them pulls the plug.
needed_kib=$((threads * 3 / 2 * 512 * 1024)) # Seen: 300 MB a thread.
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
    most=$((2 * $(getconf _NPROCESSORS_ONLN)))
    [ "$threads" -lt "$most" ] || threads=$most
fi

# print FILE...  one program's at a time.
print() {
    until mkdir "$work/printing" 2>/dev/null; do sleep 0.1; done
    cat "$@"
    rmdir "$work/printing"
}

# PROGRAM NAME of each test that failed goes to $work/failed; a program's own list of them is the last one before its result. One that was
# ended from outside names none, and goes to $work/broken.
run() {
    local program=$1 log=$work/${1##*/}
    echo "     Running $program"
    if ! RUST_TEST_THREADS=$2 "$program" >"$log" 2>&1; then
        awk -v program="$program" '
            /^failures:$/ { count = 0 }
            /^    [A-Za-z_0-9:]+$/ { names[count++] = $1 }
            /^test result: FAILED/ { for (i = 0; i < count; i++) print program, names[i] }
        ' "$log" >"$log.failed"
        [ -s "$log.failed" ] && cat "$log.failed" >>"$work/failed" || echo "$program" >>"$work/broken"
    fi
    echo "     Ended   $program" >"$log.head"
    print "$log.head" "$log"
}
# The programs of one track, one after the other: `is` those that compute, `not` the others.
track() {
    local program name
    for program in $programs; do
        name=${program##*/}
        name=${name%-*}
        case " $busy " in *" $name "*) [ "$1" = is ] ;; *) [ "$1" = not ] ;; esac || continue
        run "$program" "$2"
    done
}
: >"$work/failed"
: >"$work/broken"
track is "$threads" &
track not $(((threads + 1) / 2)) &
wait
"$cargo" test --doc "$@" 2>&1 || echo "documentation" >>"$work/broken"

count=$(grep -c . "$work/failed")
if [ -s "$work/broken" ] || [ "$count" -gt "$again_max" ]; then
    printf '\nFailed:\n'
    cat "$work/failed" "$work/broken"
    exit 1
fi
[ "$count" != 0 ] || exit 0
while read -r program name; do
    printf '\n--- failed, and run once more by itself: %s\n' "$name"
    "$program" --exact "$name" --nocapture || exit 1
done <"$work/failed"
printf '\nFailed beside the others and passed by itself. Look into why: a race in the test, or a fault that shows now and then.\n'
cat "$work/failed"
