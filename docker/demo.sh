#!/usr/bin/env bash
# What `make demo` runs: the three commands on a folder of photos, small enough for a CPU. $PHOTOS names the folder.
set -euo pipefail

if [ -z "${PHOTOS:-}" ]; then
    cat <<'TEXT'
The demo needs photos with captions, and nothing was run. Name a folder:

    make demo PHOTOS=coco/train2014        # captions in coco/annotations/captions_train2014.json
    make demo PHOTOS=photos                # captions in photos/captions.csv: image,caption

and have detector weights ready (scan-pipeline extract says how to get them).
TEXT
    exit 0
fi
photos="$(realpath "$PHOTOS")"
work="${DEMO_DIR:-demo}"
mkdir -p "$work"
cd "$work"
run() {
    printf '\n$ %s\n' "$*"
    "$@"
}
run scan-pipeline extract --config quick_cpu --images "$photos" --limit "${LIMIT:-100}"
run scan-pipeline train --epochs 5 model.embed_dim=256
run scan-pipeline evaluate --split all
run scan-pipeline retrieve --query "two dogs play by a tree" --top 5 --picture dogs.png
echo "
everything is in $PWD: features/, runs/, dogs.png"
