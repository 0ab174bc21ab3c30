#!/usr/bin/env bash
# Makes sure that Rust and a C compiler are there (ring has C and assembler in it, and Rust links by cc), and the
# components of Rust that the arguments name (rustfmt, clippy). Silent and quick when they are.
set -euo pipefail

die() { printf 'toolchain: error: %s\n' "$*" >&2; exit 1; }

command -v cargo >/dev/null || die "cargo is needed: install Rust by rustup (https://rustup.rs)"

if ! command -v cc >/dev/null; then
  root=
  if [ "$(id -u)" -ne 0 ]; then
    root=sudo
    command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [ -t 0 ]; } || die "a C compiler is needed: install gcc and libc6-dev (Mac: xcode-select --install)"
  fi
  command -v apt-get >/dev/null || die "a C compiler is needed: install gcc (Mac: xcode-select --install)"
  printf 'toolchain: installing gcc (apt-get)\n' >&2
  $root apt-get -qq update >&2
  $root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends gcc libc6-dev >&2
fi

for component in "$@"; do
  program=cargo-${component#rust} # rustfmt is called by cargo-fmt
  command -v "$program" >/dev/null && "$program" --version >/dev/null 2>&1 && continue
  command -v rustup >/dev/null || die "$component is needed: install your system's package of it (rust-clippy, rustfmt)"
  printf 'toolchain: adding %s\n' "$component" >&2
  rustup component add "$component" >&2
done
