#!/usr/bin/env bash
# Train HarDNet-39DS (or --config) on Imagenette's folders, N processes on one CPU:
#   bash scripts/run_distribute_train_cpu.sh N DATASET_PATH [PRE_CKPT_PATH] [--config FILE] [--key value …] [--hosts A,B] [--dry_run]
set -eu
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
launch --program train.py --target CPU --set config=configs/hardnet39ds_imagenette.yaml \
    --form "N=@processes DATASET_PATH=dataset_path" \
    --form "N=@processes DATASET_PATH=dataset_path PRE_CKPT_PATH=pre_ckpt_path" -- "$@"
