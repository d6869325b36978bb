#!/usr/bin/env bash
# Train HarDNet-85 (or --config) on ImageNet folders, N processes on N GPUs over NCCL:
#   bash scripts/run_distribute_train_gpu.sh N DEVICE_IDS DATASET_PATH [PRE_CKPT_PATH] [--config FILE] [--key value …] [--hosts A,B] [--dry_run]
set -eu
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
launch --program train.py --target GPU --set config=configs/hardnet85_imagenet.yaml \
    --form "N=@processes DEVICE_IDS=@devices DATASET_PATH=dataset_path" \
    --form "N=@processes DEVICE_IDS=@devices DATASET_PATH=dataset_path PRE_CKPT_PATH=pre_ckpt_path" -- "$@"
