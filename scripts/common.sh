# Shared by the scripts of this folder, which source it:
#   run_command SCRIPT.py [ARGUMENT …]   run one command and return its status; for scripts of several commands
#   launch --form … -- "$@"              hand the whole script over to model_utils/launch.py, and end with it

ROOT="$(CDPATH= cd -- "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHON=python
if [ -x "$ROOT/.venv/bin/python" ]; then
    PYTHON="$ROOT/.venv/bin/python"
fi

# Print a Python command, run it from the repository's root, return its status. SIGTERM and SIGINT sent to the
# script are passed on, once each, so that a training run saves and leaves. With --dry_run it is only printed.
run_command() {
    local child status=0 dry="" words=()
    while [ $# -gt 0 ]; do
        case "$1" in
            --dry_run | --dry_run=true)
                case "${2:-}" in true) dry=yes; shift ;; false) dry=""; shift ;; *) dry=yes ;; esac ;;
            --dry_run=false) dry="" ;;
            *) words+=("$1") ;;
        esac
        shift
    done
    set -- "${words[@]}"
    # On several hosts the launcher starts it, and says what it would start.
    case "$1 $*" in
        "train.py "*" --hosts"* | "eval.py "*" --hosts"*)
            set -- -m model_utils.launch --program "$1" --target auto -- "${@:2}" ${dry:+--dry_run}
            dry="" ;;
    esac
    printf '+ %s\n' "$(printf '%q ' python "$@")"
    if [ -n "$dry" ]; then return 0; fi
    # Job control gives the child a process group of its own: Ctrl-C then reaches it only through the traps
    # (a second signal would make it leave without saving).
    set -m
    # It ends with this script (model_utils/leash.py), even if that is killed.
    (cd "$ROOT" && DA_LAUNCHER=$$ exec "$PYTHON" "$@") &
    child=$!
    set +m
    trap 'kill -TERM "$child"' TERM
    trap 'kill -INT "$child"' INT
    # A trapped signal ends `wait` early: wait again until the child itself is gone.
    while wait "$child"; status=$?; kill -0 "$child" 2>/dev/null; do :; done
    trap - TERM INT
    return "$status"
}

# Replace this shell by the launcher, so that signals and the exit status are the launcher's own.
launch() {
    local caller="$PWD"
    cd "$ROOT" || exit
    exec "$PYTHON" -m model_utils.launch --name "bash scripts/$(basename "$0")" --caller "$caller" "$@"
}
