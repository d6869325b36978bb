#!/usr/bin/env bash
# Train HarDNet-85 (or --config) on ImageNet folders, on one Ascend device:
#   bash scripts/run_single_train.sh DATASET_PATH [DEVICE_ID [PRE_CKPT_PATH]] [--config FILE] [--key value …] [--hosts A,B] [--dry_run]
set -eu
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
launch --program train.py --target Ascend --set config=configs/hardnet85_imagenet.yaml \
    --form "DATASET_PATH=dataset_path" \
    --form "DATASET_PATH=dataset_path DEVICE_ID=device_id" \
    --form "DATASET_PATH=dataset_path DEVICE_ID=device_id PRE_CKPT_PATH=pre_ckpt_path" -- "$@"
