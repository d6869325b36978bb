#!/usr/bin/env bash
# Train on the CPU, one process or N:
#   bash scripts/run_train_cpu.sh [N] [--config FILE] [--key value …] [--hosts A,B] [--dry_run]
set -eu
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
launch --program train.py --target CPU --form "" --form "N=@processes" -- "$@"
