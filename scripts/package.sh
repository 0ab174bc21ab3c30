#!/usr/bin/env bash
# Makes dist/ of a walrelay that is built: walrelay-VERSION-TARGET.tar.gz, and a .deb and a .rpm where cargo-deb and
# cargo-generate-rpm are installed (`cargo install cargo-deb cargo-generate-rpm`).
#   scripts/package.sh [TARGET]     with a target triple, of what `cargo build --release --target TARGET` made
set -euo pipefail
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}
target=${1-}
built=target/${target:+$target/}release/walrelay
[ -x "$built" ] || { echo "package: there is no $built: cargo build --release${target:+ --target $target}" >&2; exit 1; }
host=$("${RUSTC:-rustc}" -vV | sed -n 's/^host: //p')
version=$("$built" --version | cut -d' ' -f2)

# Of this machine's own kind, or it would not have said its version.
rm -rf target/package dist
mkdir -p target/package/completions dist
"$built" man target/package/man
"$built" completions bash >target/package/completions/walrelay.bash
"$built" completions zsh >target/package/completions/_walrelay
"$built" completions fish >target/package/completions/walrelay.fish

name=walrelay-$version-${target:-$host}
mkdir -p "target/package/$name"
cp -R "$built" target/package/man target/package/completions deploy docs README.md CHANGELOG.md LICENSE-* "target/package/$name/"
tar -C target/package --owner=0 --group=0 --numeric-owner -czf "dist/$name.tar.gz" "$name"

has() { "$cargo" "$1" --version >/dev/null 2>&1 || { echo "package: no $2 without cargo-$1: cargo install cargo-$1" >&2; return 1; }; }
if has deb .deb; then "$cargo" deb --quiet --no-build ${target:+--target "$target"} --output dist/; fi
if has generate-rpm .rpm; then "$cargo" generate-rpm ${target:+--target "$target"} --output dist/; fi
ls -l dist
