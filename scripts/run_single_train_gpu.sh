#!/usr/bin/env bash
# Train HarDNet-85 (or --config) on ImageNet folders, on one GPU:
#   bash scripts/run_single_train_gpu.sh DEVICE_ID DATASET_PATH [PRE_CKPT_PATH] [--config FILE] [--key value …] [--hosts A,B] [--dry_run]
set -eu
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
launch --program train.py --target GPU --set config=configs/hardnet85_imagenet.yaml \
    --form "DEVICE_ID=device_id DATASET_PATH=dataset_path" \
    --form "DEVICE_ID=device_id DATASET_PATH=dataset_path PRE_CKPT_PATH=pre_ckpt_path" -- "$@"
