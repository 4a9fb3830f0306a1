#!/bin/sh
# Installs the station's daemon as a service of systemd, or removes it. Runs twice without harm.
#
#   sudo scripts/install.sh [--prefix DIR] [--config FILE] [--no-build]
#   sudo scripts/install.sh --uninstall [--purge] [--prefix DIR]
#
#   --prefix DIR    where the program goes (default /opt/taco-agent)
#   --config FILE   station.yaml to install; without it, one that is there stays, else the example
#   --no-build      take dist/ and node_modules/ as they lie here: no npm, no network
#   --uninstall     removes the program and the units; configuration and state stay
#   --purge         with --uninstall: configuration, state and user go as well
#
# DESTDIR=DIR installs into another root (for packages and tests): no user is made, systemd is not
# told, and root is not needed.
set -eu
umask 022

name=taco-agent
prefix=/opt/$name
config=
build=yes
action=install
purge=no
destdir=${DESTDIR:-}
source=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)

etc=/etc/$name
state=/var/lib/$name
cache=/var/cache/$name
units=/etc/systemd/system
command=/usr/local/bin/taco
# Lies in every folder that this script made, so that it never replaces or removes another.
marker=.installed-by-$name

say() { printf '%s\n' "$*"; }
fail() {
  printf 'install.sh: %s\n' "$*" >&2
  exit 1
}

parse_arguments() {
  while [ $# -gt 0 ]; do
    case $1 in
      --prefix | --config)
        [ $# -ge 2 ] || fail "expected a value after $1"
        if [ "$1" = --prefix ]; then prefix=$2; else config=$2; fi
        shift
        ;;
      --no-build) build=no ;;
      --uninstall) action=uninstall ;;
      --purge) purge=yes ;;
      -h | --help)
        sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "$0"
        exit 0
        ;;
      *) fail "unknown argument $1 (see --help)" ;;
    esac
    shift
  done
  [ "$purge" = no ] || [ "$action" = uninstall ] || fail "--purge goes with --uninstall only"
  [ -z "$config" ] || [ -f "$config" ] || fail "found no configuration $config"
  case $prefix in
    *[!A-Za-z0-9/._-]*) fail "expected a --prefix of letters, digits, '/', '.', '_' and '-', got $prefix" ;;
    /home/* | /root/*) fail "the service cannot see $prefix: choose a --prefix outside of /home and /root" ;;
    /?*) prefix=${prefix%/} ;;
    *) fail "expected an absolute --prefix, got $prefix" ;;
  esac
}

require_root() {
  [ -z "$destdir" ] || return 0
  [ "$(id -u)" -eq 0 ] || fail "needs root to write to $prefix and $units: run it with sudo"
  command -v systemctl >/dev/null || fail "this machine has no systemd: start the agent by hand with 'npx taco run --config station.yaml'"
}

# The path of node that goes into the unit. The service sees neither /home nor /root.
find_node() {
  node=$(command -v node) || fail "found no node: install Node.js 20.19 or later"
  node=$(readlink -f "$node")
  "$node" -e 'const [a, b] = process.versions.node.split(".").map(Number);
    process.exit(a > 20 || (a === 20 && b >= 19) ? 0 : 1)' ||
    fail "expected Node.js 20.19 or later, got $("$node" --version) at $node"
  case $node in
    /home/* | /root/*)
      [ -n "$destdir" ] || fail "node lies in $node, which the service cannot see: install Node.js for all users (/usr or /usr/local)"
      ;;
  esac
}

build_program() {
  if [ "$build" = yes ]; then
    say "Building (npm ci, npm run build) ..."
    (cd "$source" && npm ci --no-audit --no-fund && npm run build)
  fi
  [ -f "$source/dist/main.js" ] || fail "found no $source/dist/main.js: leave out --no-build, or run 'npm run build' first"
  [ -d "$source/node_modules" ] || fail "found no $source/node_modules: leave out --no-build, or run 'npm ci' first"
}

check_ours() {
  [ ! -e "$1" ] || [ -e "$1/$marker" ] || fail "$1 exists and was not made by this script: choose another --prefix, or remove it yourself"
}

# Beside the old program first, then changed by two renames, so that a break leaves one of the two.
copy_program() {
  target=$destdir$prefix
  check_ours "$target"
  rm -rf "$target.new"
  mkdir -p "$target.new"
  : >"$target.new/$marker"
  for part in dist config node_modules package.json package-lock.json README.md LICENSE; do
    [ ! -e "$source/$part" ] || cp -a "$source/$part" "$target.new/"
  done
  if [ "$build" = yes ]; then
    say "Leaving out what only development needs ..."
    (cd "$target.new" && npm prune --omit=dev --ignore-scripts --no-audit --no-fund)
  fi
  [ -n "$destdir" ] || chown -R root:root "$target.new"
  chmod -R u+w,a+rX "$target.new"
  rm -rf "$target.old"
  [ ! -e "$target" ] || mv "$target" "$target.old"
  mv "$target.new" "$target"
  rm -rf "$target.old"
}

make_user() {
  [ -z "$destdir" ] || return 0
  if ! id "$name" >/dev/null 2>&1; then
    useradd --system --user-group --home-dir "$state" --no-create-home --shell /usr/sbin/nologin "$name"
  fi
  for group in video render; do
    if getent group "$group" >/dev/null; then usermod --append --groups "$group" "$name"; fi
  done
}

install_config() {
  mkdir -p "$destdir$etc" "$destdir$state"
  [ -n "$destdir" ] || chown "$name:$name" "$state"
  chmod 0700 "$destdir$state"
  station=$destdir$etc/station.yaml
  configured=yes
  if [ -n "$config" ]; then
    if [ -f "$station" ] && ! cmp -s "$config" "$station"; then
      cp -p "$station" "$station.bak"
      say "The configuration before is kept as $etc/station.yaml.bak."
    fi
    cmp -s "$config" "$station" || cp "$config" "$station"
  elif [ ! -f "$station" ]; then
    cp "$source/config/station.example.yaml" "$station"
    configured=no
  fi
  chmod 0644 "$station"
  cp "$source/config/station.schema.json" "$destdir$etc/station.schema.json"
  # systemd hands it over by LoadCredential= and starts nothing without it.
  if [ ! -e "$destdir$etc/mqtt-password" ]; then
    (umask 077 && : >"$destdir$etc/mqtt-password")
  fi
}

install_units() {
  mkdir -p "$destdir$units"
  for unit in "$source"/systemd/*; do
    sed -e "s|/usr/bin/env node|$node|g" -e "s|/opt/$name|$prefix|g" "$unit" \
      >"$destdir$units/$(basename "$unit")"
    chmod 0644 "$destdir$units/$(basename "$unit")"
  done
}

install_command() {
  link=$destdir$command
  mkdir -p "$(dirname "$link")"
  chmod +x "$destdir$prefix/dist/main.js"
  if [ -e "$link" ] && [ ! -L "$link" ]; then
    say "$command exists and is left alone; the program is $prefix/dist/main.js."
  else
    ln -sfn "$prefix/dist/main.js" "$link"
  fi
}

start_service() {
  [ -z "$destdir" ] || return 0
  systemctl daemon-reload
  systemctl enable "$name.service"
  if [ "$configured" = yes ]; then
    systemctl restart "$name.service"
    say "Installed and started: systemctl status $name"
  else
    say "Installed. Give the station its name in $etc/station.yaml, then: systemctl start $name"
  fi
}

uninstall() {
  check_ours "$destdir$prefix"
  if [ -z "$destdir" ] && [ -e "$units/$name.service" ]; then
    systemctl disable --now "$name.service"
  fi
  for unit in "$source"/systemd/*; do rm -f "$destdir$units/$(basename "$unit")"; done
  [ -n "$destdir" ] || systemctl daemon-reload
  link=$destdir$command
  if [ -L "$link" ] && [ "$(readlink "$link")" = "$prefix/dist/main.js" ]; then rm -f "$link"; fi
  rm -rf "$destdir$prefix" "$destdir$prefix.new" "$destdir$prefix.old" "$destdir$cache"
  if [ "$purge" = yes ]; then
    rm -rf "$destdir$etc" "$destdir$state" "$destdir$units/$name.service.d"
    if [ -z "$destdir" ] && id "$name" >/dev/null 2>&1; then userdel "$name"; fi
    say "Removed with configuration and state. A station.dir outside of $state is left alone."
  else
    say "Removed. Configuration ($etc) and state ($state) stay; --purge removes them."
  fi
}

parse_arguments "$@"
require_root
if [ "$action" = uninstall ]; then
  uninstall
else
  find_node
  build_program
  make_user
  copy_program
  install_config
  install_units
  install_command
  start_service
fi
