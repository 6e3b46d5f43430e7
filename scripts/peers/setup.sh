#!/usr/bin/env bash
# Make or bring up to date .venv-peers: this project and stable-worldmodel, whose dependencies are none of ours.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

PYTHON="${EMBODIED_WM_PYTHON:-python3.12}"
[ -x .venv-peers/bin/python ] || "$PYTHON" -m venv .venv-peers
.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e . \
  'stable-worldmodel==0.1.1' 'transformers==5.24.0'
.venv-peers/bin/python -W ignore -c 'from stable_worldmodel.wm.lewm.lewm import LeWM; from stable_worldmodel.wm.loss import SIGReg'
echo "ready: .venv-peers/bin/python scripts/peers/head_to_head.py --help"
