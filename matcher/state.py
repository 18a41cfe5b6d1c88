"""Everything a training run needs to continue as if it had never stopped."""

import io
import pickle
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from matcher.checkpoint import write_atomically
from matcher.errors import MatcherError
from matcher.model import SCAN

STATE = Path("last") / "state.pt"


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0
    best_rsum: float = -1.0
    best_step: int = 0
    stale: int = 0  # validations since the best


def save_state(
    run_dir: Path, model: SCAN, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, progress: Progress
) -> None:
    """Write `last/state.pt`, whole or not at all."""
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "progress": asdict(progress),
        "vocabulary": model.vocabulary.state(),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    (run_dir / STATE).parent.mkdir(exist_ok=True)
    write_atomically(run_dir / STATE, buffer.getvalue())


def load_state(
    run_dir: Path, model: SCAN, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> Progress | None:
    """Bring model, optimizer and random numbers back to where the run was; None where it has not begun.

    Raises:
        MatcherError: a state that is damaged, or of other captions or another model.
    """
    path = run_dir / STATE
    if not path.is_file():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["vocabulary"] != model.vocabulary.state():
            raise MatcherError(f"{path}: its captions gave another vocabulary; choose another run folder")
        model.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
        scaler.load_state_dict(content["scaler"])
        torch.set_rng_state(content["random"])
        if torch.cuda.is_available() and len(content["random_cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(content["random_cuda"])
        return Progress(**content["progress"])
    except MatcherError:
        raise
    except (RuntimeError, KeyError, TypeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise MatcherError(f"{path}: damaged, or of another model ({first}); choose another run folder") from error
