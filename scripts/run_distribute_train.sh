#!/usr/bin/env bash
# Train HarDNet-85 (or --config) on ImageNet folders, one process per Ascend device of a rank table, or of a list as 0,1,2,3:
#   bash scripts/run_distribute_train.sh DATASET_PATH [PRE_CKPT_PATH] {RANK_TABLE_FILE | DEVICE_IDS} [--config FILE] [--key value …] [--hosts A,B] [--dry_run]
set -eu
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
launch --program train.py --target Ascend --set config=configs/hardnet85_imagenet.yaml \
    --form "DATASET_PATH=dataset_path RANK_TABLE_FILE=@rank_table" \
    --form "DATASET_PATH=dataset_path PRE_CKPT_PATH=pre_ckpt_path RANK_TABLE_FILE=@rank_table" -- "$@"
