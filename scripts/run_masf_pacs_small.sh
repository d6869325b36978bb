#!/usr/bin/env bash
# MASF on PACS at 64x64, a small network from scratch, each of the four domains left out in turn.
#
#   bash scripts/run_masf_pacs_small.sh [--targets DOMAIN …] [--seeds N …] [--methods masf] [--hosts A,B] [--key value …]
#
# Trains configs/masf_pacs_small.yaml and configs/deepall_pacs_small.yaml (plain training on the joined sources) once for each
# seed and domain left out, from any folder, and prints the table of test accuracies. The
# images are in data/pacs, or --domains_image_root DIR.
# Runs that are finished already are kept, one that was stopped goes on: outputs/generalisation/pacs_small.

. "$(dirname "$0")/common.sh"
run_command -m benchmarks.generalisation pacs_small --caller "$PWD" "$@"
