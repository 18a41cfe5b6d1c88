"""BERT (Devlin et al., NAACL 2019) for a text encoder that is not trained: importing transformers alone costs a query 3 s.

Letters: B captions, L word pieces, H hidden size.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

# What transformers calls a layer's parts, and what torch does.
PARTS = {
    "attention.output.dense": "self_attn.out_proj", "intermediate.dense": "linear1", "output.dense": "linear2",
    "attention.output.LayerNorm": "norm1", "output.LayerNorm": "norm2",
}  # fmt: skip


class Bert(nn.Module):
    """The encoder of a folder as transformers writes it; its states are those of transformers' `BertModel`."""

    def __init__(self, folder: Path):
        """folder: with `config.json` and `model.safetensors`. Raises KeyError where it holds something else than a BERT."""
        super().__init__()
        config = json.loads((folder / "config.json").read_text())
        kind = config["model_type"], config["hidden_act"], config.get("position_embedding_type", "absolute")
        if kind != ("bert", "gelu", "absolute") or config.get("is_decoder", False):
            raise KeyError("model_type")
        state, hidden, eps = load_file(folder / "model.safetensors"), config["hidden_size"], config["layer_norm_eps"]
        tables = {name: state[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")}
        self.config = SimpleNamespace(hidden_size=hidden)
        self.words = nn.Embedding.from_pretrained(tables["word"])
        self.places = nn.Buffer(tables["position"] + tables["token_type"][0])
        with torch.device("meta"):  # no parameter is made twice, and no random number drawn
            layer = nn.TransformerEncoderLayer(
                hidden, config["num_attention_heads"], config["intermediate_size"], activation="gelu",
                layer_norm_eps=eps, batch_first=True,
            )  # fmt: skip
            self.layers = nn.TransformerEncoder(layer, config["num_hidden_layers"], enable_nested_tensor=False)
            self.norm = nn.LayerNorm(hidden, eps=eps)
        parameters = {f"norm.{kind}": state[f"embeddings.LayerNorm.{kind}"] for kind in ("weight", "bias")}
        for number in range(config["num_hidden_layers"]):
            parameters |= _layer(state, number)
        self.load_state_dict(parameters, strict=False, assign=True)
        self.float()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        """Ids (B, L) and which of them are read (B, L) -> `last_hidden_state` (B, L, H)."""
        embedded = self.norm(self.words(input_ids) + self.places[: input_ids.shape[1]])
        return SimpleNamespace(last_hidden_state=self.layers(embedded, src_key_padding_mask=attention_mask == 0))


def _layer(state: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    """The parameters of one layer, as torch names them."""
    own, to, made = f"encoder.layer.{number}.", f"layers.layers.{number}.", {}
    for kind in ("weight", "bias"):
        parts = [state[f"{own}attention.self.{name}.{kind}"] for name in ("query", "key", "value")]
        made[f"{to}self_attn.in_proj_{kind}"] = torch.cat(parts)
        made |= {f"{to}{ours}.{kind}": state[f"{own}{theirs}.{kind}"] for theirs, ours in PARTS.items()}
    return made
