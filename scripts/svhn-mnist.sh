#!/usr/bin/env bash
# ADDA, SVHN -> MNIST: trains the source network, evaluates it (source only), adapts it, evaluates that.
#
#   bash scripts/svhn-mnist.sh [--key value …]      any key of train.py; from any folder
#
# data/svhn holds train_32x32.mat and test_32x32.mat; keys as for scripts/usps-mnist.sh.

. "$(dirname "$0")/common.sh"
. "$(dirname "$0")/adda.sh"
adda configs/adda_svhn_mnist.yaml outputs/svhn-mnist "$@"
