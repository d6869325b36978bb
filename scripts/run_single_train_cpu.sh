#!/usr/bin/env bash
# Train HarDNet-39DS (or --config) on Imagenette's folders, on the CPU:
#   bash scripts/run_single_train_cpu.sh DATASET_PATH [PRE_CKPT_PATH] [--config FILE] [--key value …] [--hosts A,B] [--dry_run]
set -eu
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
launch --program train.py --target CPU --set config=configs/hardnet39ds_imagenette.yaml \
    --form "DATASET_PATH=dataset_path" \
    --form "DATASET_PATH=dataset_path PRE_CKPT_PATH=pre_ckpt_path" -- "$@"
