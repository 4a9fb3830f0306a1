#!/usr/bin/env bash
# Shows the main job on an embedded default in some minutes: a camera station that gets frames and
# labels, specializes and compresses its model, proves it and swaps it in. Needs Node 20.19 or
# newer; installs and builds what is missing. Runs twice without harm. Options: --help.
set -euo pipefail
caller=$PWD
# shellcheck source=scripts/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
root=$PWD
cd "$caller"
exec node --import "$root/node_modules/tsx/dist/loader.mjs" "$root/scripts/demo.ts" "$@"
