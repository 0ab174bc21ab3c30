#!/usr/bin/env bash
# Counts the instructions that one event takes from the WAL's bytes to the frame for the broker and through its
# acknowledgement, and fails where they have grown. Instructions, not time: the count is the same on a busy machine.
#
# usage: scripts/instructions.sh [--build | --renew]   --build only builds what is counted, behind all else on the machine; --renew
# writes the count as the new reference: commit it with the reason
set -euo pipefail
cd "$(dirname "$0")/.."

reference_file=benches/instructions.txt
# In percent: what the same compiler may differ by (alignment, hash seeds, the memcpy that the processor model gets), and another
# compiler or architecture.
tolerance_same=8
tolerance_other=30

if ! command -v valgrind >/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get install -y -qq valgrind >/dev/null 2>&1 || { apt-get update -qq && apt-get install -y -qq valgrind; } >/dev/null 2>&1 || true
    fi
    if ! command -v valgrind >/dev/null; then
        echo "instructions: not counted, valgrind is not installed"
        exit 0
    fi
fi

# Without the program, whose release build takes minutes.
build() { "${CARGO:-cargo}" bench --no-run --bench instructions --no-default-features --features relay 2>&1; }
if [ "${1:-}" = --build ]; then
    renice -n 19 $$ >/dev/null
    build >/dev/null
    exit
fi
binary=$(build | sed -n 's/.*Executable.*(\(.*\)).*/\1/p')
[ -x "$binary" ] || { echo "instructions: cargo bench --no-run --bench instructions failed" >&2; exit 1; }

count() {
    valgrind --tool=callgrind --callgrind-out-file=/dev/null "$binary" "$@" 2>&1 | sed -n 's/.*Collected : \([0-9]*\).*/\1/p'
}
# A turn has 400 events. The difference of two runs leaves the start out.
an_event() {
    local few many
    few=$(count 10 "$@")
    many=$(count 60 "$@")
    [ -n "$few" ] && [ -n "$many" ] || { echo "instructions: callgrind counted nothing" >&2; exit 1; }
    echo $(((many - few) / (50 * 400)))
}
now=$(an_event)
with="$(rustc --version | cut -d' ' -f2) $(uname -m)"

if [ "${1:-}" = --renew ]; then
    echo "$now $with" >"$reference_file"
    echo "instructions: $now an event, written to $reference_file"
    exit 0
fi
read -r reference reference_with <"$reference_file"
tolerance=$tolerance_other
[ "$with" = "$reference_with" ] && tolerance=$tolerance_same
echo "instructions: $now an event; $reference with $reference_with, $tolerance % more allowed"
if [ $((now * 100)) -gt $((reference * (100 + tolerance))) ]; then
    echo "instructions: the hot path has grown; where it is worth it: scripts/instructions.sh --renew" >&2
    exit 1
fi

# Another table costs no more: columns are found when the table is described, none by its name for each row.
debezium=$(an_event debezium)
echo "instructions: $debezium an event of the preset debezium; 10 % more than $now allowed"
if [ $((debezium * 100)) -gt $((now * 110)) ]; then
    echo "instructions: events of the preset debezium take more than 110 % of the default's" >&2
    exit 1
fi
