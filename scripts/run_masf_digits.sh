#!/usr/bin/env bash
# MASF on digits: trained on two of MNIST, MNIST-M and USPS, tested on the third, in turn.
#
#   bash scripts/run_masf_digits.sh [--targets DOMAIN …] [--seeds N …] [--methods masf] [--hosts A,B] [--key value …]
#
# Trains configs/masf_digits.yaml and configs/deepall_digits.yaml (plain training on the joined sources) once for each
# seed and domain left out, from any folder, and prints the table of test accuracies. The data sets are
# in data/mnist, data/mnist_m and data/usps, or --mnist_image_root DIR, --mnist_m_image_root DIR, …
# Runs that are finished already are kept, one that was stopped goes on: outputs/generalisation/digits.

. "$(dirname "$0")/common.sh"
run_command -m benchmarks.generalisation digits --caller "$PWD" "$@"
