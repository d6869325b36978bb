#!/usr/bin/env bash
# Classify a labelled folder with a MINDIR: result_Files/<class>/<image>.txt and acc.log in outputs/infer_310.
#   bash scripts/run_infer_310.sh MINDIR_PATH DATASET_PATH [DEVICE_ID] [--batch_size N] [--result_dir DIR] [--dry_run]
# Takes Ascend where there is one, else GPU or CPU; --device_target Ascend insists on it.
set -eu
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
launch --program infer.py --set device_target=auto --set result_dir=outputs/infer_310 --set batch_size=1 \
    --form "MINDIR_PATH=model_path DATASET_PATH=dataset_path" \
    --form "MINDIR_PATH=model_path DATASET_PATH=dataset_path DEVICE_ID=device_id" -- "$@"
