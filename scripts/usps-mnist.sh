#!/usr/bin/env bash
# ADDA, USPS -> MNIST: trains the source network, evaluates it (source only), adapts it, evaluates that.
#
#   bash scripts/usps-mnist.sh [--key value …]      any key of train.py; from any folder
#
# e.g. --config configs/adda_usps_mnist_sampled.yaml, --source_image_root DIR, --target_image_root DIR, --seed 1,
# --output_dir DIR (source/ and adapted/ are made in it), --resume true after an interruption.

. "$(dirname "$0")/common.sh"
. "$(dirname "$0")/adda.sh"
adda configs/adda_usps_mnist.yaml outputs/usps-mnist "$@"
