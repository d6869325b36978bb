#!/usr/bin/env bash
# Evaluate on the CPU: without arguments the newest checkpoint in the experiment's output_dir.
#   bash scripts/run_eval_cpu.sh [DATASET_PATH DEVICE_ID CKPT_PATH] [--config FILE] [--key value …] [--hosts A,B] [--dry_run]
set -eu
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
launch --program eval.py --target CPU --newest ckpt_path \
    --form "" --form "DATASET_PATH=dataset_path DEVICE_ID=device_id CKPT_PATH=ckpt_path" -- "$@"
