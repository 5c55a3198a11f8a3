#!/usr/bin/env bash
#SBATCH --job-name=rlaif
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
# A Ray cluster inside one Slurm job, and a run on it, from the project's folder on shared storage:
#   sbatch launch/cluster/slurm.sh configs/four_nodes.yaml [key=value ...]
# RLAIF_POOLS names each node's pool in order (placement.*.pool); --nodes must be as many. Five minutes before the time
# limit the run saves and ends; the same command again, or Slurm's own requeue, goes on.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
source .venv/bin/activate
read -r -a pools <<< "${RLAIF_POOLS:-learn learn rollout reward}"
if [ "${#pools[@]}" -ne "$SLURM_JOB_NUM_NODES" ]; then
  echo "error: RLAIF_POOLS must name a pool for each of the $SLURM_JOB_NUM_NODES nodes, got ${pools[*]}" >&2
  exit 2
fi

export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN="$(python -c 'import secrets; print(secrets.token_hex(32))')"
export RAY_AUTH_TOKEN
export HF_HOME="${HF_HOME:-/shared/huggingface}"
port=$((20000 + SLURM_JOB_ID % 10000))
spill="${TMPDIR:-/tmp}/ray-spill-$SLURM_JOB_ID"
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")

on_node() {     # on_node <number> <arguments of ray start>: Ray on that node, until the job ends
  local number=$1
  shift
  srun --nodes=1 --ntasks=1 --overlap --nodelist="${hosts[$number]}" \
    ray start "$@" --labels="pool=${pools[$number]}" --num-cpus="$SLURM_CPUS_PER_TASK" \
    --object-spilling-directory="$spill" --disable-usage-stats --block &
}

on_node 0 --head --node-ip-address="${hosts[0]}" --port="$port" --dashboard-host=0.0.0.0
export RAY_ADDRESS="${hosts[0]}:$port"
until ray health-check --address "$RAY_ADDRESS" > /dev/null 2>&1; do sleep 2; done
for number in $(seq 1 $((${#hosts[@]} - 1))); do
  on_node "$number" --address="$RAY_ADDRESS"
done
num_nodes() { python -c 'import actors, ray; ray.init(log_to_driver=False); print(len(ray.nodes()))'; }
until [ "$(num_nodes)" -eq "${#hosts[@]}" ]; do sleep 2; done

python launch/train.py "$@" &
run=$!
trap 'kill -TERM "$run"' TERM
code=0
wait "$run" || code=$?
if kill -0 "$run" 2> /dev/null; then    # `wait` was ended by the signal, the run is still saving
  code=0
  wait "$run" || code=$?
fi
exit "$code"
