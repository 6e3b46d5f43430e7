#!/usr/bin/env bash
# From nothing to a report: sets up .venv, then collects, trains, plans and checks against MuJoCo.
#   bash scripts/demo.sh                              two-link reach from pixels
#   bash scripts/demo.sh demo=lerobot source=FOLDER   your own LeRobot episodes
# Anything after the name goes to `embodied-wm demo` (see `embodied-wm demo --help`).
CALLED_FROM="$PWD"
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"
cd "$CALLED_FROM" # so that source=FOLDER means what the caller meant
exec "$PYTHON" -m embodied_wm.cli demo "$@"
