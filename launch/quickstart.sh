#!/usr/bin/env bash
# From a fresh clone to an aligned policy: bash launch/quickstart.sh [key=value ...]
#   from_scratch=true   trains policy, explainer and slot model first, instead of starting from the ones that are shipped
#   any other key=value overrides configs/quickstart.yaml
set -euo pipefail
source "$(dirname "$0")/install.sh"
install ""

python=.venv/bin/python
start=outputs/start
from_scratch=false
given=()
for argument in "$@"; do
  case "$argument" in
    from_scratch=true) from_scratch=true ;;
    from_scratch=false) ;;
    from_scratch=*) echo "error: from_scratch must be true or false, got '${argument#from_scratch=}'" >&2; exit 2 ;;
    *) given+=("$argument") ;;
  esac
done

# One GPU is shared out; on CPUs the configurations say it all.
sft=() reward=() train=()
if [ "$(device)" = gpu ]; then
  sft=(placement.num_actors=1 placement.num_gpus=1)
  reward=(placement.learner.num_actors=1 placement.learner.num_gpus=1 placement.explainer.num_gpus=1)
  train=(placement.rollout.num_gpus=0.25 placement.explainer.num_gpus=0.25 placement.slot.num_gpus=0.2
         placement.learner.num_gpus=0.3 placement.learner.num_actors=1
         rollout.engine.gpu_memory_utilization=0.2 explainer.engine.gpu_memory_utilization=0.2)
fi

if [ "$from_scratch" = true ]; then
  train+=("policy.model=$start/policy" "reward.model=$start/reward" output_dir=outputs/from_scratch)
  "$python" launch/train.py --check configs/quickstart.yaml "${train[@]}" "${given[@]}"
  echo "== supervised training of the policy"
  "$python" launch/sft.py configs/scenes_policy.yaml output_dir="$start/policy" "${sft[@]}"
  echo "== supervised training of the explainer"
  "$python" launch/sft.py configs/scenes_explainer.yaml output_dir="$start/explainer" "${sft[@]}"
  echo "== training of the slot model"
  "$python" launch/train_reward.py configs/scenes_reward.yaml output_dir="$start/reward" \
    explainer.model="$start/explainer" "${reward[@]}"
fi

echo "== reinforcement learning"
"$python" launch/train.py configs/quickstart.yaml "${train[@]}" "${given[@]}"
