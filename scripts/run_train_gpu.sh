#!/usr/bin/env bash
# Train on GPUs, N processes over NCCL:
#   bash scripts/run_train_gpu.sh N DEVICE_IDS [--config FILE] [--key value …] [--hosts A,B] [--dry_run]
set -eu
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
launch --program train.py --target GPU --form "N=@processes DEVICE_IDS=@devices" -- "$@"
