#!/usr/bin/env bash
# All tests on a fresh clone: bash launch/test.sh [arguments of pytest, such as -m "not slow"]
set -euo pipefail
source "$(dirname "$0")/install.sh"
install dev

.venv/bin/python -m ruff check .
exec .venv/bin/python -m pytest "$@"
