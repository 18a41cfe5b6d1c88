"""Everything a training run needs to continue as if it had never stopped."""

import io
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from configs.errors import first_line
from configs.files import write_atomically
from matcher.checkpoint import digest
from matcher.errors import MatcherError
from matcher.transformer import Tokens

STATE = Path("last") / "state.pt"


class Part(Protocol):
    """Something that training changes: a module, an optimizer, a scaler of gradients, an average of weights."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


@dataclass
class TrainState:
    """The counters of a training run."""

    step: int = 0
    best_rsum: float = -1.0
    best_step: int = 0
    stale: int = 0  # validations since the best


def save_state(run_dir: Path, parts: Mapping[str, Part], vocabulary: Tokens, state: TrainState) -> None:
    """Write `last/state.pt` atomically.

    Args:
        parts: everything that training changes, by name: the model, the optimizer, …
        vocabulary: of the model; a run goes on with no other.
    """
    content = {
        **{name: part.state_dict() for name, part in parts.items()},
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "progress": asdict(state),
        "vocabulary": vocabulary.state(),
    }
    content["sha256"] = digest(content)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    (run_dir / STATE).parent.mkdir(exist_ok=True)
    write_atomically(run_dir / STATE, buffer.getvalue())


def load_state(run_dir: Path, parts: Mapping[str, Part], vocabulary: Tokens) -> TrainState | None:
    """Restore the parts and the random numbers from `last/state.pt`; None where there is none.

    Raises:
        MatcherError: damaged, or the state of another model or other captions.
    """
    path = run_dir / STATE
    if not path.is_file():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content.pop("sha256") != digest(content):
            raise ValueError("its bytes are not those that were written")
        if content["vocabulary"] != vocabulary.state():
            raise MatcherError(f"{path}: its captions gave another vocabulary", "choose another run folder")
        for name, part in parts.items():
            part.load_state_dict(content[name])
        torch.set_rng_state(content["random"])
        if torch.cuda.is_available() and len(content["random_cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(content["random_cuda"])
        return TrainState(**content["progress"])
    except MatcherError:
        raise
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError, EOFError, pickle.UnpicklingError) as error:
        what = f"damaged, or of another model ({first_line(error)})"
        raise MatcherError(f"{path}: {what}", "choose another run folder") from error
