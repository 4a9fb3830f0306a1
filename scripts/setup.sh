#!/usr/bin/env bash
# Installs what the project needs, once: sourced by test.sh and demo.sh, or run by itself.
# Nothing but Node 20.19 or newer is assumed. Running it again costs a second.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  printf 'setup: %s\n' "$1" >&2
  exit 1
}

need_node() {
  command -v node >/dev/null || fail "Node is missing: install Node 20.19 or newer (https://nodejs.org)"
  node -e 'const [a, b] = process.versions.node.split(".").map(Number);
    process.exit(a > 20 || (a === 20 && b >= 19) ? 0 : 1)' ||
    fail "Node $(node --version) is too old: version 20.19 or newer is needed"
}

# better-sqlite3 is compiled where its prebuilt binary cannot be fetched.
missing_tools() {
  local tool missing=()
  for tool in python3 make g++; do
    command -v "$tool" >/dev/null || missing+=("$tool")
  done
  [ ${#missing[@]} -eq 0 ] ||
    printf '. To compile better-sqlite3, install %s (Debian: apt-get install python3 make g++)' "${missing[*]}"
}

# The lockfile's hash beside what was installed from it says whether anything is to do.
need_packages() {
  local stamp=node_modules/.taco-installed wanted
  wanted=$(node -p 'require("crypto").createHash("sha256").update(require("fs").readFileSync("package-lock.json")).digest("hex")')
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    printf 'setup: installing packages (better-sqlite3 may take a minute to compile)\n' >&2
    npm ci --no-audit --no-fund --loglevel=error >&2 ||
      fail "npm ci failed, see above$(missing_tools)"
    printf '%s' "$wanted" >"$stamp"
  fi
}

# Compiles where a source is newer than the last build.
need_build() {
  if [ ! -f dist/main.js ] || [ -n "$(find agent package.json tsconfig.build.json -newer dist/main.js -print -quit)" ]; then
    npm run --silent build >&2
    touch dist/main.js
  fi
}

need_node
need_packages
need_build
