#!/usr/bin/env bash
# MASF on RotatedMNIST, each angle left out in turn; the ends are --targets 0 75.
#
#   bash scripts/run_masf_rotated_mnist.sh [--targets DOMAIN …] [--seeds N …] [--methods masf] [--hosts A,B] [--key value …]
#
# Trains configs/masf_rotated_mnist.yaml and configs/deepall_rotated_mnist.yaml (plain training on the joined sources) once for each
# seed and domain left out, from any folder, and prints the table of test accuracies. MNIST is in
# data/mnist, or --mnist_image_root DIR.
# Runs that are finished already are kept, one that was stopped goes on: outputs/generalisation/rotated_mnist.

. "$(dirname "$0")/common.sh"
run_command -m benchmarks.generalisation rotated_mnist --caller "$PWD" "$@"
