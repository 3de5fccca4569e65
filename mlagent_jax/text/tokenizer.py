"""Text to token ids and back, and chats to ids in Qwen's ChatML.

A `Tokenizer` comes from a Hugging Face folder, from a SentencePiece `.model` file
(text/spm.py) or from training: byte-level BPE of Qwen2's kind, saved as a Hugging
Face folder in Qwen's layout. It keeps the files it came from, so that `save` hands
them on byte for byte.

A chat is built from segments, never from one rendered string: only this module
places special tokens, and a script that contains "<|im_end|>" is encoded as plain
characters. For content without such text the result is what Hugging Face's
`apply_chat_template` gives. An assistant's content is encoded apart from its
header, because that is how the sampler produces it.
"""

import importlib
import json
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import tokenizers

from mlagent_jax.errors import ConfigError
from mlagent_jax.text import bpe, spm
from mlagent_jax.types import Message

END_OF_TEXT = "<|endoftext|>"
START_OF_TURN = "<|im_start|>"
END_OF_TURN = "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, START_OF_TURN, END_OF_TURN)

CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""Qwen's ChatML without its default system prompt, as Jinja2."""

_DEFINITION = "tokenizer.json"
_SETTINGS = "tokenizer_config.json"
_TEMPLATE = "chat_template.jinja"
_FILES = (
    _DEFINITION,
    _SETTINGS,
    _TEMPLATE,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


class Codec(Protocol):
    """What a `Tokenizer` needs of the library that does the work."""

    def encode(self, text: str) -> list[int]:
        """Returns ids of ordinary tokens only."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text, special tokens written out."""
        ...

    def token_id(self, token: str) -> int | None:
        """Returns the id of a special token, None if there is none."""
        ...

    def num_tokens(self) -> int:
        """Returns the size of the vocabulary, special tokens included."""
        ...


class Tokenizer:
    """Encodes text and chats; see the module's docstring.

    Attributes:
      vocab_size: number of ids; a model needs at least so many embedding rows.
      pad_id: fills batches; never part of a chat.
      end_of_turn_id: ends every turn; a policy's reply is complete with it.
    """

    def __init__(
        self,
        codec: Codec,
        files: Mapping[str, bytes],
        *,
        source: str,
        default_system: str | None = None,
    ) -> None:
        """Wraps a codec; use `load` or `train`.

        Args:
          codec: does the work.
          files: name -> content of the folder that `save` writes.
          source: named in errors.
          default_system: system prompt of a chat that has none, None for none.

        Raises:
          ConfigError: the vocabulary lacks a ChatML token.
        """
        missing = [t for t in SPECIAL_TOKENS[1:] if codec.token_id(t) is None]
        if missing:
            raise ConfigError(
                f"tokenizer {source}: no token {' or '.join(missing)}; expected a "
                "ChatML tokenizer such as that of Qwen-2.5"
            )
        self._codec = codec
        self._files = dict(files)
        self._default_system = default_system
        self._start_of_turn_id = cast(int, codec.token_id(START_OF_TURN))
        self.end_of_turn_id = cast(int, codec.token_id(END_OF_TURN))
        end_of_text_id = codec.token_id(END_OF_TEXT)
        self.pad_id = self.end_of_turn_id if end_of_text_id is None else end_of_text_id
        self.vocab_size = codec.num_tokens()
        self._newline = codec.encode("\n")

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Returns the tokenizer of a Hugging Face folder or a SentencePiece file.

        A SentencePiece vocabulary gets the special tokens as further ids. A folder
        that holds a SentencePiece model and no `tokenizer.json` counts as one.

        Args:
          path: folder, or file that ends in `.model`.

        Raises:
          ConfigError: nothing there, damaged, or without ChatML tokens.
        """
        path = Path(path)
        name = str(path)
        if path.suffix == ".model" and path.is_file():
            return cls._from_spm(path.read_bytes(), name)
        if not path.is_dir():
            raise ConfigError(
                f"tokenizer.path = {name!r}: expected a Hugging Face folder or a "
                "SentencePiece .model file"
            )
        if not (path / _DEFINITION).is_file():
            if (path / spm.MODEL_FILE).is_file():
                return cls._from_spm((path / spm.MODEL_FILE).read_bytes(), name)
            return cls._convert(path)
        files = {f: (path / f).read_bytes() for f in _FILES if (path / f).is_file()}
        codec = _FastCodec(_parse_definition(files[_DEFINITION], name))
        template = _read_template(files, name)
        is_plain = template is None or template == CHATML_TEMPLATE
        default_system = None if is_plain else _find_default_system(path)
        return cls(codec, files, source=name, default_system=default_system)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Returns a byte-level BPE tokenizer of Qwen2's kind, learnt from `texts`.

        The result depends on the multiset of texts only, not on their order.

        Args:
          texts: what the tokenizer should be good at.
          vocab_size: number of ids, of which the 256 bytes and three special
            tokens are fixed; fewer if `texts` has too few different words.

        Raises:
          ConfigError: `vocab_size` leaves no room for the fixed ids.
        """
        library, files = bpe.train(texts, vocab_size, SPECIAL_TOKENS, CHATML_TEMPLATE)
        return cls(_FastCodec(library), files, source="(trained)")

    @classmethod
    def _from_spm(cls, model: bytes, source: str) -> "Tokenizer":
        codec = spm.SpmCodec(model, SPECIAL_TOKENS, source)
        files = codec.files(template=CHATML_TEMPLATE)
        return cls(codec, files, source=source)

    @classmethod
    def _convert(cls, path: Path) -> "Tokenizer":
        """Returns the tokenizer of a folder that has no `tokenizer.json`.

        Raises:
          ConfigError: transformers cannot make a fast tokenizer of it.
        """
        library = _load_with_transformers(path)
        with tempfile.TemporaryDirectory() as folder:
            library.save_pretrained(folder)
            if not (Path(folder) / _DEFINITION).is_file():
                raise ConfigError(
                    f"tokenizer.path = {str(path)!r}: transformers has no fast "
                    f"({_DEFINITION}) form of this tokenizer"
                )
            return cls.load(folder)

    def save(self, folder: str | Path) -> None:
        """Writes a folder that `load` and `AutoTokenizer.from_pretrained` read."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self._files.items():
            (folder / name).write_bytes(content)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`; special tokens in it are mere characters.

        Characters that no file can hold (lone surrogates) become U+FFFD.
        """
        return self._codec.encode(bpe.replace_surrogates(text))

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of `tokens`, special tokens written out.

        Bytes that are no UTF-8 become U+FFFD and unknown ids nothing. With a BPE of
        Qwen2's kind, decoding what was encoded gives the text in Unicode's NFC.
        """
        return self._codec.decode(tokens)

    def encode_chat(
        self, messages: Sequence[Message], *, add_generation_prompt: bool
    ) -> list[int]:
        """Returns the ids of a chat in ChatML.

        Args:
          messages: the turns; a tokenizer whose own template has a default system
            prompt puts it in front of a chat that starts with another role.
          add_generation_prompt: end with the header of an assistant turn.
        """
        tokens = self.encode_chat_with_mask(messages)[0]
        if add_generation_prompt:
            tokens += self._header("assistant")
        return tokens

    def encode_chat_with_mask(
        self, messages: Sequence[Message]
    ) -> tuple[list[int], list[int]]:
        """Returns (ids of a chat, 1 on what an assistant says, else 0).

        The ids are those of `encode_chat`. The mask covers the contents of assistant
        turns and the end-of-turn token behind each, nothing of their headers.
        """
        tokens: list[int] = []
        mask: list[int] = []
        for message in self._with_system(messages):
            if message.role == "assistant":
                header = self._header(message.role)
                spoken = [*self.encode(message.content), self.end_of_turn_id]
            else:
                content = self.encode(f"{message.role}\n{message.content}")
                header = [self._start_of_turn_id, *content, self.end_of_turn_id]
                spoken = []
            tokens += [*header, *spoken, *self._newline]
            mask += [0] * len(header) + [1] * len(spoken) + [0] * len(self._newline)
        return tokens, mask

    def _with_system(self, messages: Sequence[Message]) -> Sequence[Message]:
        has_system = bool(messages) and messages[0].role == "system"
        if self._default_system is None or has_system:
            return messages
        return [Message(role="system", content=self._default_system), *messages]

    def _header(self, role: str) -> list[int]:
        return [self._start_of_turn_id, *self.encode(f"{role}\n")]


class _FastCodec:
    """A tokenizer of the `tokenizers` library."""

    def __init__(self, library: tokenizers.Tokenizer) -> None:
        self._library = library
        # "Encode special tokens" means: as ordinary text.
        library.encode_special_tokens = True
        library.no_padding()
        library.no_truncation()

    def encode(self, text: str) -> list[int]:
        return self._library.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Sequence[int]) -> str:
        return self._library.decode(list(tokens), skip_special_tokens=False)

    def token_id(self, token: str) -> int | None:
        return self._library.token_to_id(token)

    def num_tokens(self) -> int:
        return max(self._library.get_vocab(with_added_tokens=True).values()) + 1


def _parse_definition(content: bytes, source: str) -> tokenizers.Tokenizer:
    """Returns the tokenizer that a tokenizer.json describes.

    Raises:
      ConfigError: it is damaged.
    """
    try:
        return tokenizers.Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # The library raises plain `Exception`.
        raise ConfigError(f"{source}/{_DEFINITION}: damaged: {error}") from error


def _read_template(files: Mapping[str, bytes], source: str) -> str | None:
    """Returns the chat template among `files`, None if there is none.

    Raises:
      ConfigError: the settings are no JSON object.
    """
    if _TEMPLATE in files:
        return files[_TEMPLATE].decode("utf-8")
    try:
        settings: Any = json.loads(files.get(_SETTINGS, b"{}"))
        template: Any = settings.get("chat_template")
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{source}/{_SETTINGS}: no JSON object: {error}") from error
    return template if isinstance(template, str) else None


def _find_default_system(path: Path) -> str | None:
    """Returns the system prompt that a folder's own template adds, if any.

    Raises:
      ConfigError: transformers cannot read the folder.
    """
    library = _load_with_transformers(path)
    chat = [{"role": "user", "content": "x"}]
    rendered = str(library.apply_chat_template(chat, tokenize=False))
    pattern = r"<\|im_start\|>system\n(.*?)<\|im_end\|>\n"
    found = re.match(pattern, rendered, re.DOTALL)
    return None if found is None else found[1]


def _load_with_transformers(path: Path) -> Any:
    """Returns transformers' tokenizer of a folder.

    Raises:
      ConfigError: it cannot be loaded.
    """
    # Imported here because it takes seconds where torch is installed; by its name
    # because a type checker would read all of its models, a quarter of `make lint`.
    auto = importlib.import_module("transformers").AutoTokenizer
    try:
        return auto.from_pretrained(path, local_files_only=True)
    except Exception as error:  # Any type, by kind of tokenizer and damage.
        raise ConfigError(
            f"tokenizer.path = {str(path)!r}: transformers cannot load it: {error}"
        ) from error
