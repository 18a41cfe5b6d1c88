"""Everything a training run needs to continue as if it had never stopped."""

import io
import pickle
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from matcher.checkpoint import digest, write_atomically
from matcher.errors import MatcherError
from matcher.matcher import Matcher

STATE = Path("last") / "state.pt"


@dataclass
class TrainState:
    """The counters of a training run."""

    step: int = 0
    best_rsum: float = -1.0
    best_step: int = 0
    stale: int = 0  # validations since the best


def save_state(
    run_dir: Path, model: Matcher, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, state: TrainState
) -> None:
    """Write `last/state.pt` atomically."""
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "progress": asdict(state),
        "vocabulary": model.vocabulary.state(),
    }
    content["sha256"] = digest(content)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    (run_dir / STATE).parent.mkdir(exist_ok=True)
    write_atomically(run_dir / STATE, buffer.getvalue())


def load_state(
    run_dir: Path, model: Matcher, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> TrainState | None:
    """Restore model, optimizer and random numbers from `last/state.pt`; None where there is none.

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
        if content["vocabulary"] != model.vocabulary.state():
            raise MatcherError(f"{path}: its captions gave another vocabulary; choose another run folder")
        model.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
        scaler.load_state_dict(content["scaler"])
        torch.set_rng_state(content["random"])
        if torch.cuda.is_available() and len(content["random_cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(content["random_cuda"])
        return TrainState(**content["progress"])
    except MatcherError:
        raise
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError, EOFError, pickle.UnpicklingError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise MatcherError(f"{path}: damaged, or of another model ({first}); choose another run folder") from error
