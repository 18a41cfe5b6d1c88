"""The methods by their names in `ModelConfig.matcher`."""

from matcher.chan import CHAN
from matcher.config import ModelConfig
from matcher.matcher import Matcher
from matcher.naaf import NAAF
from matcher.scan import SCAN
from matcher.transformer import Tokens
from matcher.vse import VSE

METHODS: dict[str, type[Matcher]] = {"scan": SCAN, "chan": CHAN, "vse": VSE, "naaf": NAAF}


def make_matcher(config: ModelConfig, vocabulary: Tokens) -> Matcher:
    """A matcher of the configured method, with fresh parameters."""
    return METHODS[config.matcher](config, vocabulary)
