#!/usr/bin/env bash
# Train DANN (or --config) on Ascend, one process per device of the rank table, or of a list such as 0,1,2,3:
#   bash scripts/run_train.sh [RANK_TABLE_FILE | DEVICE_IDS] [--config FILE] [--key value …] [--hosts A,B] [--dry_run]
set -eu
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
launch --program train.py --target Ascend --form "" --form "RANK_TABLE_FILE=@rank_table" -- "$@"
