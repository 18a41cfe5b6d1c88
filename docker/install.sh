#!/usr/bin/env bash
# Install what the project runs on into the Python given as $1 (default: python3): for `make install` and both images.
#
#   docker/install.sh python             torch, torchvision, detectron2; and, where pyproject.toml is, its dependencies
#   docker/install.sh python app,ray     ... and those of these extras
#
# TORCH_INDEX=URL takes torch and torchvision from another index than pip's, say the one of CPU-only builds.
# What is installed already stays, so the same line twice costs nothing: the images run it before and after they copy
# pyproject.toml, and a change there leaves their layer of torch alone.
set -euo pipefail

python="${1:-python3}"
extras="${2:-}"
here="$(cd "$(dirname "$0")" && pwd)"
project="$here/../pyproject.toml"

"$python" -m pip install --quiet torch torchvision ${TORCH_INDEX:+--index-url "$TORCH_INDEX"}
"$here/install_detectron2.sh" "$python"
[ -f "$project" ] || exit 0

requirements="$(mktemp)"
trap 'rm -f "$requirements"' EXIT
"$python" - "$project" "$extras" > "$requirements" <<'PYTHON'
import sys

try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib

with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file)["project"]
names = project["dependencies"]
for extra in filter(None, sys.argv[2].split(",")):
    names += project["optional-dependencies"][extra]
print("\n".join(names))
PYTHON
"$python" -m pip install --quiet --requirement "$requirements"
