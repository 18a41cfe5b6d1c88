"""Bridges two gaps between detectron2 0.6 as Python sources and today's packages.

A detectron2 that was built with its compiled half is left alone.
"""

import importlib.util
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detector.errors import DetectorError


class _MissingExtension(types.ModuleType):
    """Stands for `detectron2._C`: importable, as many detectron2 modules ask for it, but empty."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise DetectorError(
            f"detectron2._C.{name}: this detectron2 was installed without its compiled operators",
            "build detectron2 from its repository to use it",
        )


def install_command() -> str:
    """The one command that adds detectron2 to this Python: its script lies in the repository, or where the wheel put it."""
    here = Path(__file__).parents[1]
    folders = (here / "docker", here / "share/scan-pipeline", Path(sys.prefix, "share/scan-pipeline"))
    scripts = [folder / "install_detectron2.sh" for folder in folders]
    return f"bash {next(filter(Path.is_file, scripts), scripts[0])} {sys.executable}"


def prepare_detectron2() -> None:
    """Make `import detectron2.modeling` work.

    Raises:
        DetectorError: detectron2 is not installed.
    """
    if importlib.util.find_spec("detectron2") is None:
        raise DetectorError("detectron2: not installed", f"install it with: {install_command()}")
    from PIL import Image

    if not hasattr(Image, "LINEAR"):  # gone since Pillow 10; detectron2 0.6 names it in a default argument
        Image.LINEAR = Image.Resampling.BILINEAR  # type: ignore[attr-defined]
    if "detectron2._C" not in sys.modules and importlib.util.find_spec("detectron2._C") is None:
        import detectron2

        extension = _MissingExtension("detectron2._C")
        sys.modules["detectron2._C"] = extension
        detectron2._C = extension


@contextmanager
def detectron2_ready() -> Iterator[None]:
    """Import detectron2's modules in here: the gaps are bridged, and warnings that users can do nothing about are not shown."""
    prepare_detectron2()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it decorates with torch.jit.script
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
