"""Training a byte-level BPE of Qwen2's kind, and its files in Qwen's layout.

The pipeline is Qwen2's: NFC, its split pattern, bytes, BPE without an unknown token.
Special tokens get the last ids, as Qwen's do.
"""

import functools
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from mlagent_jax.errors import ConfigError

# How Qwen2 cuts text before BPE: contractions, words with one leading character,
# single digits, punctuation with trailing newlines, white space.
_SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NUM_BYTES = 256
_LONE_SURROGATES = re.compile("[\ud800-\udfff]")


def replace_surrogates(text: str) -> str:
    """Returns `text` with U+FFFD for characters that UTF-8 cannot encode."""
    return _LONE_SURROGATES.sub("\ufffd", text)


def train(
    texts: Iterable[str],
    vocab_size: int,
    special_tokens: Sequence[str],
    template: str,
) -> tuple[tokenizers.Tokenizer, dict[str, bytes]]:
    """Returns (tokenizer, name -> content of its Hugging Face folder).

    Args:
      texts: what to learn from; their order does not matter.
      vocab_size: number of ids, special tokens included; fewer result if the texts
        have too few different words.
      special_tokens: padding, start of a turn and end of a turn, in the order of
        their ids.
      template: chat template, Jinja2.

    Raises:
      ConfigError: `vocab_size` leaves no room for the bytes and special tokens.
    """
    num_learnt = vocab_size - len(special_tokens)
    if num_learnt < _NUM_BYTES:
        raise ConfigError(
            f"tokenizer.vocab_size = {vocab_size}: expected at least "
            f"{_NUM_BYTES + len(special_tokens)}"
        )
    library: Any = tokenizers.Tokenizer(models.BPE())
    library.normalizer = normalizers.NFC()
    split = tokenizers.Regex(_SPLIT_PATTERN)
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(split, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=num_learnt,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(map(replace_surrogates, texts), trainer)
    library.add_special_tokens(
        [tokenizers.AddedToken(token, special=True) for token in special_tokens]
    )
    return library, _qwen_layout(library, special_tokens, template)


def _qwen_layout(
    library: tokenizers.Tokenizer, special_tokens: Sequence[str], template: str
) -> dict[str, bytes]:
    pad, start_of_turn, end_of_turn = special_tokens
    definition = library.to_str(pretty=True)
    model: dict[str, Any] = json.loads(definition)["model"]
    as_json = functools.partial(json.dumps, ensure_ascii=False)
    merges = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    settings: dict[str, Any] = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(library.token_to_id(token)): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for token in special_tokens
        },
        "additional_special_tokens": [start_of_turn, end_of_turn],
        "bos_token": None,
        "chat_template": template,
        "clean_up_tokenization_spaces": False,
        "eos_token": end_of_turn,
        "errors": "replace",
        "model_max_length": 131_072,
        "pad_token": pad,
        "split_special_tokens": False,
        "unk_token": None,
    }
    texts = {
        "tokenizer.json": definition,
        "tokenizer_config.json": as_json(settings, indent=2) + "\n",
        "vocab.json": as_json(model["vocab"]),
        "merges.txt": "\n".join(merges) + "\n",
    }
    return {name: text.encode("utf-8") for name, text in texts.items()}
