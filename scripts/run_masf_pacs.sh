#!/usr/bin/env bash
# MASF on PACS, the published set-up: AlexNet at 227x227, each of the four domains left out in turn.
#
#   bash scripts/run_masf_pacs.sh [--targets DOMAIN …] [--seeds N …] [--methods masf] [--hosts A,B] [--key value …]
#
# Trains configs/masf_pacs.yaml and configs/deepall_pacs.yaml (plain training on the joined sources) once for each
# seed and domain left out, from any folder, and prints the table of test accuracies. The images
# are in data/pacs, or --domains_image_root DIR; AlexNet's weights come with --bvlc_path FILE.
# Runs that are finished already are kept, one that was stopped goes on: outputs/generalisation/pacs.

. "$(dirname "$0")/common.sh"
run_command -m benchmarks.generalisation pacs --caller "$PWD" "$@"
