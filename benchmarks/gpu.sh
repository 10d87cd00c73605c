#!/usr/bin/env bash
# Seconds a step, tokens a second and peak memory of GRPO on this machine's GPU.
#
#   bash benchmarks/gpu.sh              -> datasets/recorded_runs/gpu.json
#   bash benchmarks/gpu.sh --dry-run    a tiny shape, also without a GPU -> runs/gpu_dry_run.json
#
# Needs torch, transformers, accelerate and peft. TRL, datasets and Unsloth may come from
# site/gpu_site.zip (packages unpacked side by side) on a machine that cannot install them.
# PYTHON=… names another Python than .venv's, or than python3 where there is no .venv.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then python=.venv/bin/python; fi

export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
site=${RFTKIT_SITE:-site/gpu_site.zip}
if [ -f "$site" ]; then
  unpacked=$(mktemp -d)
  trap 'rm -rf "$unpacked"' EXIT
  "$python" -m zipfile -e "$site" "$unpacked"
  export PYTHONPATH="$PYTHONPATH:$unpacked"
fi

"$python" benchmarks/gpu.py "$@"
