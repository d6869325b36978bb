# Shared by usps-mnist.sh and svhn-mnist.sh, which source it after common.sh.

# adda CONFIG OUTPUT [--key value …]: the four commands of an experiment, up to the first that fails; its status.
adda() {
    local config="$1" output="$2" resume=() options=() under=""
    shift 2
    case " $* " in
        *" --help "* | *" -h "*) run_command train.py --config "$config" --help; return ;;
        *" --dataset_path"[\ =]* | *" --dataset-path"[\ =]*) under=yes ;;  # data sets are looked up in it
    esac
    while [ $# -gt 0 ]; do
        local name="$1" value=()
        shift
        case "$name" in
            --*=*) value=("${name#*=}"); name="${name%%=*}" ;;
            --*) if [ $# -gt 0 ] && [[ "$1" != --* ]]; then value=("$1"); shift; fi ;;
        esac
        name="${name//-/_}"  # a key may be written with dashes, as train.py reads it
        name="${name/#__/--}"
        # The commands run from the repository's root: paths are the caller's.
        case "$name" in
            --output_dir | --output | --model_root) output="$(absolute "${value[0]:-}")"; continue ;;
            --save_checkpoint_path)
                case "${value[0]:-}" in *.ckpt) value=("$(dirname "${value[0]}")") ;; esac
                output="$(absolute "${value[0]:-}")"; continue ;;
            --source_image_root | --target_image_root)
                if [ -z "$under" ]; then value=("$(absolute "${value[0]:-}")"); fi ;;
            --dataset_path | --list_root | --list_classes | --feature_folder | --pretrained)
                case "${value[0]:-}" in "" | auto | none) ;; *) value=("$(absolute "${value[0]}")") ;; esac ;;
            --config) if [ -f "${value[0]:-}" ]; then value=("$(absolute "${value[0]}")"); fi ;;
        esac
        options+=("$name" ${value[@]+"${value[@]}"})
    done
    # After an interruption of the first training there is nothing to resume in the second.
    [ -d "$(cd "$ROOT" && absolute "$output")/adapted/checkpoints" ] || resume=(--resume false)
    local source="$output/source" adapted="$output/adapted"
    run_command train.py --config "$config" ${options[@]+"${options[@]}"} --output_dir "$source" \
        --discriminator_iterations 0 --adversary_iterations 0 || return
    echo "source only:"
    run_command eval.py ${options[@]+"${options[@]}"} --ckpt_path "$source" || return
    run_command train.py --config "$config" ${options[@]+"${options[@]}"} --output_dir "$adapted" \
        --source_ckpt_file "$source/network.ckpt" ${resume[@]+"${resume[@]}"} || return
    echo "adapted:"
    run_command eval.py ${options[@]+"${options[@]}"} --ckpt_path "$adapted"
}

# absolute PATH: seen from the current folder; ~ is the home folder, as train.py has it.
absolute() {
    case "$1" in
        /*) printf '%s\n' "$1" ;;
        "~" | "~/"*) printf '%s\n' "$HOME${1#\~}" ;;
        *) printf '%s\n' "$PWD/$1" ;;
    esac
}
