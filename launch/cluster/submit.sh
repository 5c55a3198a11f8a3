#!/usr/bin/env bash
# Hands a run to the Ray cluster that RAY_ADDRESS names, or that runs here, and follows its log:
#   bash launch/cluster/submit.sh configs/four_nodes.yaml [key=value ...]
# The same command again goes on where the run stood.
set -euo pipefail
cd "$(dirname "$0")/../.."
export RAY_AUTH_MODE="${RAY_AUTH_MODE:-token}"
exec ray job submit --working-dir . --runtime-env launch/cluster/runtime_env.yaml -- python launch/train.py "$@"
