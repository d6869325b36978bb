#!/usr/bin/env bash
# Train DANN (or --config) on Ascend, one process per device of the rank table:
#   bash scripts/run_train.sh [RANK_TABLE_FILE] [--config FILE] [--key value …] [--dry_run]
set -eu
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
launch --program train.py --target Ascend --form "" --form "RANK_TABLE_FILE=@rank_table" -- "$@"
