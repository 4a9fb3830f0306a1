#!/usr/bin/env bash
# Installs what the tests need, then formats nothing and forgives nothing: format, lint, types,
# unused code, and every test. The same command by hand and in CI; twice does no harm.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/setup.sh
source scripts/setup.sh

need_debian() {
  local missing=()
  [ -x /usr/sbin/mosquitto ] || command -v mosquitto >/dev/null || missing+=(mosquitto)
  command -v sqlite3 >/dev/null || missing+=(sqlite3)
  [ ${#missing[@]} -eq 0 ] && return
  local message="the tests need ${missing[*]}: run 'apt-get install ${missing[*]}' as root"
  command -v apt-get >/dev/null || fail "$message (or the like of your system)"
  [ "$(id -u)" -eq 0 ] || fail "$message; this user has no right to"
  apt-get update -qq >/dev/null
  # Policy 101: a package must not start its service; each test starts a broker of its own.
  printf '#!/bin/sh\nexit 101\n' >/tmp/taco-no-services && chmod +x /tmp/taco-no-services
  local policy=/usr/sbin/policy-rc.d
  [ -e "$policy" ] || { cp /tmp/taco-no-services "$policy" && trap 'rm -f /usr/sbin/policy-rc.d' EXIT; }
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}" >/dev/null || fail "$message"
}

need_debian
npm run --silent check
npm test
