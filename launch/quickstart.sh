#!/usr/bin/env bash
# From a fresh clone to an aligned policy: bash launch/quickstart.sh [key=value ...]
#   from_scratch=true   trains policy, explainer and slot model first, instead of starting from the ones that are shipped
#   any other key=value overrides configs/quickstart.yaml
set -euo pipefail
source "$(dirname "$0")/install.sh"
install ""

python=.venv/bin/python
start=outputs/start
overrides=()
from_scratch=false
for argument in "$@"; do
  case "$argument" in
    from_scratch=*) from_scratch=${argument#from_scratch=} ;;
    *) overrides+=("$argument") ;;
  esac
done

if [ "$from_scratch" = true ]; then
  echo "== supervised training of the policy"
  "$python" launch/sft.py configs/scenes_policy.yaml output_dir="$start/policy"
  echo "== supervised training of the explainer"
  "$python" launch/sft.py configs/scenes_explainer.yaml output_dir="$start/explainer"
  echo "== training of the slot model"
  "$python" launch/train_reward.py configs/scenes_reward.yaml output_dir="$start/reward" explainer.model="$start/explainer"
  overrides=("policy.model=$start/policy" "reward.model=$start/reward" "${overrides[@]}")
elif [ "$from_scratch" != false ]; then
  echo "error: from_scratch must be true or false, got '$from_scratch'" >&2
  exit 2
fi

echo "== reinforcement learning"
"$python" launch/train.py configs/quickstart.yaml "${overrides[@]}"
