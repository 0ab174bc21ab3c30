# For the scripts that need programs in Python, most of them beside walrelay; they say `root=…; . "$root/scripts/program.sh"`.

# Servers, and the path of the program in WALRELAY.
program() {
  "$root/scripts/servers.sh"
  export WALRELAY=${WALRELAY:-$root/target/release/walrelay}
  [ -x "$WALRELAY" ] || { echo "there is no $WALRELAY: make build" >&2; exit 1; }
}

# A folder for the time of the script, and these packages in $folder/venv.
venv() {
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  python3 -m venv "$folder/venv"
  "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "$@"
}
