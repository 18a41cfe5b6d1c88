#!/usr/bin/env bash
# Install detectron2 0.6 into the Python given as $1 (default: python3), without a compiler.
#
# The package index carries detectron2's v0.6 Python sources as the sdist pb1-detectron2, but not
# its C++ files, so the sdist's own setup.py cannot build. Everything this project needs compiled
# (RoIPool, NMS) is in torchvision: we package the pure-Python part under its real name instead.
# A detectron2 that is already importable (say, built from its repository) is kept.
# The imports that still miss their compiled half are bridged by detector/detectron2_compat.py.
set -euo pipefail

python="${1:-python3}"
version=0.6
sha256=5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29

if "$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("detectron2") is None)'; then
    echo "detectron2 is installed already: kept"
    exit 0
fi
"$python" -c 'import torch' 2>/dev/null || {
    echo "error: install torch first: $python -m pip install torch torchvision" >&2
    exit 1
}

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

# setup.py is executed by pip for its metadata and imports torch: hence no build isolation.
"$python" -m pip install --quiet setuptools wheel
"$python" -m pip download --quiet --no-deps --no-build-isolation --no-binary :all: \
    --dest "$work" "pb1-detectron2==$version"
sdist="$work/pb1-detectron2-$version.tar.gz"
echo "$sha256  $sdist" | sha256sum --check --quiet || {
    echo "error: $(basename "$sdist") is not the archive this script was written for" >&2
    exit 1
}
tar -xzf "$sdist" -C "$work"
source="$work/pb1-detectron2-$version"
rm "$source/setup.py" "$source/setup.cfg"

# Only what is imported on the path from detectron2.modeling to a prediction, and by its trainer.
cat > "$source/pyproject.toml" <<TOML
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "detectron2"
version = "$version"
dependencies = ["cloudpickle", "fvcore", "hydra-core", "iopath", "matplotlib", "pillow", "pycocotools", "tabulate", "termcolor", "tqdm", "yacs"]
[tool.setuptools.packages.find]
include = ["detectron2*"]
TOML
"$python" -m pip install --quiet --no-build-isolation "$source"
echo "detectron2 $version installed (Python sources; compiled ops come from torchvision)"
