#!/usr/bin/env bash
# Shows the main job in a few minutes: a camera station gets frames and labels, specializes and
# compresses its model, proves it and swaps it in. Needs Node 20.19 or newer; installs and builds
# what is missing. Runs twice without harm.
#
#   scripts/demo.sh [--images FOLDER] [--mqtt URL] [--dir FOLDER] [--seed N] [--method METHOD]
#
#   --images FOLDER   your own pictures, in folders named by what they show (default: drawn ones)
#   --mqtt URL        your broker (default: one inside the demo)
#   --dir FOLDER      folder of the station, emptied where an earlier demo made it (default:
#                     demo-station)
#   --seed N          seed of the drawn pictures and of the run (default: 3)
#   --method METHOD   how the network is compressed, as `taco specialize --help` has it (default:
#                     unstructured:0.5)
set -euo pipefail
for argument in "$@"; do
  if [ "$argument" = --help ] || [ "$argument" = -h ]; then
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"
    exit 0
  fi
done
caller=$PWD
# shellcheck source=scripts/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
root=$PWD
cd "$caller"
exec node --import "$root/node_modules/tsx/dist/loader.mjs" "$root/scripts/demo.ts" "$@"
