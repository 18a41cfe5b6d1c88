"""Nothing that is read can run: the source is searched for every way in which data becomes code, and hostile files are read."""

import argparse
import ast
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from detector.errors import DetectorError
from detector.weights import load_weights
from matcher.errors import MatcherError
from matcher.original import load_original
from matcher.vocabulary import Vocabulary
from pipeline.errors import PipelineError
from tests.stores import import_any

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("pipeline", "detector", "matcher", "configs")
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "os.execvp", "os.spawnv",
    "pickle.load", "pickle.loads", "pickle.Unpickler", "cPickle.load", "cPickle.loads", "marshal.load", "marshal.loads",
    "shelve.open", "yaml.load", "yaml.unsafe_load", "yaml.full_load",
    "shutil.unpack_archive", "runpy.run_path", "runpy.run_module", "torch.hub.load", "torch.package.PackageImporter",
    "importlib.import_module", "subprocess.getoutput", "subprocess.getstatusoutput",
    "pandas.read_pickle",
}  # fmt: skip
FORBIDDEN_METHODS = {"extractall", "extract_all", "read_pickle", "unpack_archive"}
FORBIDDEN_MODULES = {"joblib", "dill", "cloudpickle", "cPickle", "marshal", "shelve", "imp", "runpy", "code"}
RESTRICTED_UNPICKLERS = {"detector/weights.py": {"_ArraysOnly"}}  # each refuses every global that it does not list
IMPORTERS = {"pipeline/command_line.py": "importlib.import_module"}  # of names that stand in pipeline/cli.py
TORCH_GLOBALS = {"argparse.Namespace"}  # what torch.load may build beyond tensors: a bag of options


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    """ "np.load" as "numpy.load": what an expression names, by the module's imports."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value, names)}.{node.attr}"
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else "?"


def imported_names(tree: ast.AST) -> dict[str, str]:
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def keyword(call: ast.Call, name: str) -> object:
    """A keyword's constant; "?" where it is there and is no constant; None where it is not."""
    for argument in call.keywords:
        if argument.arg == name:
            return argument.value.value if isinstance(argument.value, ast.Constant) else "?"
    return None


def why_a_call_may_run_code(call: ast.Call, names: dict[str, str]) -> str | None:
    name = dotted(call.func, names)
    if name in FORBIDDEN_CALLS or name.split(".")[-1] in FORBIDDEN_METHODS:
        return name
    if name == "torch.load" and keyword(call, "weights_only") is not True:
        return "torch.load without weights_only=True"
    if name in {"numpy.load", "numpy.lib.format.read_array"} and keyword(call, "allow_pickle") is not False:
        return f"{name} without allow_pickle=False"
    if keyword(call, "shell") not in (None, False):
        return f"{name} with shell"
    if keyword(call, "trust_remote_code") not in (None, False):
        return f"{name} with trust_remote_code"
    if name.endswith("safe_globals"):
        allowed = {dotted(item, names) for argument in call.args for item in getattr(argument, "elts", [argument])}
        if not allowed <= TORCH_GLOBALS:
            return f"safe_globals of {sorted(allowed - TORCH_GLOBALS)}"
    return None


def what_may_run_code(source: str, file: str) -> list[str]:
    tree = ast.parse(source)
    names = imported_names(tree)
    found = []
    for node in ast.walk(tree):
        line = f"{file}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"{line}: import {name}" for name in modules if name.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.Call) and (reason := why_a_call_may_run_code(node, names)):
            if reason != IMPORTERS.get(file):
                found.append(f"{line}: {reason}")
        elif isinstance(node, ast.ClassDef) and any(dotted(base, names) == "pickle.Unpickler" for base in node.bases):
            restricts = any(isinstance(item, ast.FunctionDef) and item.name == "find_class" for item in node.body)
            if node.name not in RESTRICTED_UNPICKLERS.get(file, set()) or not restricts:
                found.append(f"{line}: unpickler {node.name}")
    return found


def test_no_line_of_the_packages_runs_what_it_reads() -> None:
    files = [path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py")]
    assert len(files) > 40
    found = [
        line for path in files for line in what_may_run_code(path.read_text(), path.relative_to(REPOSITORY).as_posix())
    ]
    assert found == []


@pytest.mark.parametrize("source", [
    "import pickle\npickle.load(file)", "from pickle import loads as read\nread(data)", "import torch\ntorch.load(path)",
    "import torch\ntorch.load(path, weights_only=False)", "import torch\ntorch.load(path, weights_only=trusted)",
    "import torch\ntorch.load(path, **options)", "import numpy as np\nnp.load(path)", "import yaml\nyaml.load(text)",
    "import numpy as np\nnp.load(path, allow_pickle=True)", "eval('1')", "import joblib", "from dill import load",
    "import subprocess\nsubprocess.run(line, shell=True)", "import os\nos.system(line)", "archive.extractall(folder)",
    "import pickle\nclass Reads(pickle.Unpickler):\n    pass", "import torch\ntorch.serialization.safe_globals([print])",
    "model = AutoModel.from_pretrained(name, trust_remote_code=True)",
])  # fmt: skip
def test_the_search_finds_what_it_looks_for(source: str) -> None:
    assert what_may_run_code(source, "x.py")


VOCABULARY = Vocabulary(["<pad>", "<start>", "<end>", "<unk>", "a"])


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Callable, tuple]:
        return Path.touch, (self.path,)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "it ran"


def test_the_bomb_works(trace: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(trace)))
    assert trace.exists()


@pytest.mark.parametrize("write", [
    lambda content, path: path.write_bytes(pickle.dumps({"model": content})),
    lambda content, path: torch.save({"model": content}, path),
    lambda content, path: torch.save({"model": content}, path, _use_new_zipfile_serialization=False),
], ids=["pickle", "torch", "old torch"])  # fmt: skip
def test_weights_and_checkpoints(tmp_path: Path, trace: Path, write: Callable[[object, Path], object]) -> None:
    write(Bomb(trace), tmp_path / "weights")
    with pytest.raises(DetectorError):
        load_weights(tmp_path / "weights")
    with pytest.raises(MatcherError):
        load_original(tmp_path / "weights", VOCABULARY)
    assert not trace.exists()


def test_options_of_a_checkpoint(tmp_path: Path, trace: Path) -> None:
    torch.save({"model": [], "opt": argparse.Namespace(cross_attn=Bomb(trace))}, tmp_path / "model.pth.tar")
    with pytest.raises(MatcherError, match="refused"):
        load_original(tmp_path / "model.pth.tar", VOCABULARY)
    assert not trace.exists()


def test_features(tmp_path: Path, trace: Path) -> None:
    np.save(tmp_path / "x_ims.npy", np.array([[[Bomb(trace)]]], dtype=object), allow_pickle=True)
    (tmp_path / "x_caps.txt").write_text("a dog\n" * 5)
    with pytest.raises(PipelineError, match="not readable as a NumPy array"):
        import_any(tmp_path, split="x", output=str(tmp_path / "s"))
    assert not trace.exists()


def test_configurations(tmp_path: Path, trace: Path) -> None:
    from pipeline.config import load_config
    from pipeline.extraction.job import ExtractConfig

    path = tmp_path / "config.yaml"
    path.write_text(
        f"output: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{trace}']]"
    )
    with pytest.raises(PipelineError, match="not readable as YAML"):
        load_config(ExtractConfig, group="extract", config=str(path))
    assert not trace.exists()
