"""A SentencePiece model with special tokens behind its own vocabulary.

Only the library is adapted here; chats are built in `text.tokenizer`. How faithful
a round trip is depends on the model's own rules: one that collapses white space
(SentencePiece's default) loses the indentation of code. Models for this project
should be trained with `normalization_rule_name="identity"`,
`remove_extra_whitespaces=False`, `add_dummy_prefix=False` and `byte_fallback=True`;
with a dummy prefix every segment of a chat starts with a space token, which
transformers' conversion of the same model leaves out.
"""

import json
from collections.abc import Sequence
from typing import Any

import sentencepiece

from mlagent_jax.errors import ConfigError

MODEL_FILE = "tokenizer.model"


class SpmCodec:
    """Encodes with SentencePiece; ids beyond its pieces are special tokens."""

    def __init__(
        self, model: bytes, special_tokens: Sequence[str], source: str
    ) -> None:
        """Parses `model`.

        Args:
          model: content of a `.model` file.
          special_tokens: get the ids behind the pieces, in this order.
          source: named in errors.

        Raises:
          ConfigError: `model` is damaged.
        """
        self._model = model
        self._library: Any = sentencepiece.SentencePieceProcessor()
        try:
            self._library.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise ConfigError(
                f"tokenizer {source}: no SentencePiece model: {error}"
            ) from error
        self._num_pieces: int = self._library.GetPieceSize()
        self._special_tokens = tuple(special_tokens)

    def encode(self, text: str) -> list[int]:
        """Returns piece ids; a special token in `text` is mere characters."""
        return self._library.EncodeAsIds(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text, special tokens written out, unknown ids left out."""
        parts: list[str] = []
        pieces: list[int] = []
        for token in tokens:
            if 0 <= token < self._num_pieces:
                pieces.append(token)
                continue
            parts.append(self._library.DecodeIds(pieces))
            pieces = []
            index = token - self._num_pieces
            if 0 <= index < len(self._special_tokens):
                parts.append(self._special_tokens[index])
        return "".join([*parts, self._library.DecodeIds(pieces)])

    def token_id(self, token: str) -> int | None:
        """Returns the id of a special token, None if there is none."""
        if token not in self._special_tokens:
            return None
        return self._num_pieces + self._special_tokens.index(token)

    def num_tokens(self) -> int:
        """Returns the number of pieces and special tokens."""
        return self._num_pieces + len(self._special_tokens)

    def files(self, template: str) -> dict[str, bytes]:
        """Returns the files of a Hugging Face folder with this tokenizer.

        Args:
          template: chat template, Jinja2.
        """
        added = {
            str(self.token_id(token)): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for token in self._special_tokens
        }
        settings: dict[str, Any] = {
            "tokenizer_class": "LlamaTokenizer",
            "add_bos_token": False,
            "add_eos_token": False,
            "added_tokens_decoder": added,
            "chat_template": template,
            "clean_up_tokenization_spaces": False,
            "legacy": False,
        }
        text = json.dumps(settings, ensure_ascii=False, indent=2) + "\n"
        return {MODEL_FILE: self._model, "tokenizer_config.json": text.encode("utf-8")}
