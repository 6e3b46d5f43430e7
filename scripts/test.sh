#!/usr/bin/env bash
# All checks: ruff (lint and format), pyright, pytest. Arguments go to pytest: bash scripts/test.sh -k store
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"
status=0
say "ruff check" && { "$VENV/bin/ruff" check . || status=1; }
say "ruff format --check" && { "$VENV/bin/ruff" format --check . || status=1; }
say "pyright" && { "$VENV/bin/pyright" || status=1; }
say "pytest" && { OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" "$PYTHON" -m pytest -n 2 --dist loadfile "$@" || status=1; }
[ "$status" = 0 ] || printf '\033[1;31mfailed:\033[0m see above\n' >&2
exit "$status"
