# Sourced by scripts/demo.sh and scripts/test.sh: finds Python, makes or reuses .venv, checks that MuJoCo can render.
# Leaves $ROOT (the repository) and $PYTHON (the environment's interpreter) set, and the working directory at $ROOT.
# shellcheck shell=bash

set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$ROOT"
VENV="$ROOT/.venv"
PYTHON="$VENV/bin/python"
STAMP="$VENV/.embodied_wm_stamp"

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
fail() { printf '\033[1;31merror:\033[0m %s\n' "$*" >&2; exit 1; }

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1; }

find_python() {
  local candidate
  for candidate in "${EMBODIED_WM_PYTHON:-}" python3.12 python3.13 python3.14 python3 python; do
    if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 && is_new_enough "$candidate"; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  fail "no Python >= 3.12 found (tried python3.12, python3.13, python3.14, python3, python;
       python3 here is $(python3 --version 2>/dev/null || echo absent)).
       Install one, for example 'apt-get install python3.12 python3.12-venv', 'pyenv install 3.12' or
       'uv python install 3.12', or name one: EMBODIED_WM_PYTHON=/path/to/python3.12 bash $0"
}

# What the environment was made from: when this changes, it is brought up to date.
wanted_stamp() { cat pyproject.toml constraints.txt | "$1" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest(), sys.argv[1])' "$ROOT"; }

make_environment() {
  if ! { [ -x "$PYTHON" ] && is_new_enough "$PYTHON"; }; then
    local base
    base="$(find_python)"
    say "making .venv with $("$base" --version)"
    rm -rf "$VENV"
    "$base" -m venv "$VENV" || fail "$base cannot make an environment: install its venv module (Debian: apt-get install python3.12-venv)"
  fi
  if [ "$(cat "$STAMP" 2>/dev/null || true)" != "$(wanted_stamp "$PYTHON")" ]; then
    say "installing from constraints.txt (about 3 minutes and 6 GB the first time)"
    rm -f "$STAMP"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' \
      || fail "installation failed, see above; nothing else was changed. Mend it and run 'bash $0' again, it continues from here"
    wanted_stamp "$PYTHON" >"$STAMP"
  fi
}

check_rendering() {
  if [ -z "${MUJOCO_GL:-}" ] && [ "$(uname -s)" = Linux ] && [ -z "${DISPLAY:-}" ]; then export MUJOCO_GL=egl; fi
  local output
  if ! output="$("$PYTHON" - 2>&1 <<'PY'
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
with mujoco.Renderer(model, 16, 16) as renderer:
    renderer.update_scene(mujoco.MjData(model))
    renderer.render()
PY
  )"; then
    printf '%s\n' "$output" | tail -n 3 >&2
    fail "MuJoCo cannot render here (MUJOCO_GL=${MUJOCO_GL:-unset}). On Debian and Ubuntu:
       apt-get install libegl1 libgl1 libopengl0 libgles2 libgl1-mesa-dri libglx-mesa0
       With those installed EGL renders without a screen or a GPU (MUJOCO_GL=egl)."
  fi
}

make_environment
check_rendering
