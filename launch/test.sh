#!/usr/bin/env bash
# All tests but the long ones on a fresh clone: bash launch/test.sh [arguments of pytest, such as -m "not slow"]
# The long ones, in which processes are killed over and over, alone: bash launch/test.sh chaos [arguments of pytest]
set -euo pipefail
source "$(dirname "$0")/install.sh"
install dev

.venv/bin/python -m ruff check .
if [ "${1:-}" = chaos ]; then
  shift
  exec .venv/bin/python -m pytest -m chaos "$@"
fi
exec .venv/bin/python -m pytest "$@"
