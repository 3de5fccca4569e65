"""Quoting practice: the expert's edits on scripts whose words were exchanged.

An edit quotes lines of the script. A small model that learns from a few scripts
soon knows them by heart and quotes from memory, so on any other script it asks for
lines that are not there. Here the words of a chat's script are exchanged at random,
the same in the script and in the reply that quotes it: memory is no help any more,
looking is. Only the quotation is learnt from such a chat; what the expert put in its
place would be nonsense. A pretrained model needs none of this, and the paper has none.
"""

import dataclasses
import random
import re
from collections.abc import Iterable, Iterator, Sequence

from mlagent_jax.data.examples import (
    ChatEncoder,
    TokenExample,
    TrainingChat,
    encode_example,
)
from mlagent_jax.errors import ActionError
from mlagent_jax.text.actions import DIVIDER_MARKER, parse_reply, render_action
from mlagent_jax.text.prompt_reading import split_script
from mlagent_jax.types import ActionKind, Message

_WORD = re.compile(r"[A-Za-z_]+|[0-9]+")
_MIN_SHARE = 0.3  # of a script's words that are exchanged


def renamed_examples(
    chats: Sequence[TrainingChat], frac: float, tokenizer: ChatEncoder, seed: int
) -> Iterator[TokenExample]:
    """Yields `frac` * len(chats) quotations from chats with exchanged words.

    Args:
      chats: to draw from; those that do not end with an edit are passed over.
      frac: how many, as a part of `chats`; more than 1 uses chats repeatedly.
      tokenizer: encodes chats.
      seed: determines which chats and which words.
    """
    rng = random.Random(seed)
    words = sorted({w for chat in chats for w in _words(_script(chat))})
    order: list[TrainingChat] = []
    for _ in range(round(frac * len(chats))):
        if not order:
            order = rng.sample(chats, len(chats))
        renamed = rename_chat(order.pop(), words, rng)
        if renamed is not None:
            yield _cut_after_quotation(encode_example(renamed, tokenizer))


def rename_chat(
    chat: TrainingChat, words: Sequence[str], rng: random.Random
) -> TrainingChat | None:
    """Returns `chat` up to the divider of its last edit, with words exchanged.

    None if the last reply is no edit.

    Args:
      chat: ends with the reply of the expert.
      words: that may take the place of others.
      rng: chooses.
    """
    reply = chat.messages[-1].content
    try:
        action = parse_reply(reply, max_chars=len(reply))
    except ActionError:
        return None
    if action.kind is not ActionKind.EDIT:
        return None
    prompt = chat.messages[1].content
    before, script, after = split_script(prompt)
    names = _exchange(_words(script), words, rng)

    def rename(text: str) -> str:
        return _WORD.sub(lambda match: names.get(match[0], match[0]), text)

    blocks = tuple((rename(search), rename(new)) for search, new in action.blocks)
    quoted = render_action(dataclasses.replace(action, blocks=blocks))
    divider = f"\n{DIVIDER_MARKER}\n"
    quoted = quoted[: quoted.index(divider) + len(divider)]
    return dataclasses.replace(
        chat,
        messages=(
            chat.messages[0],
            Message(role="user", content=before + rename(script) + after),
            *chat.messages[2:-1],
            Message(role="assistant", content=quoted),
        ),
        targets=(False,) * (len(chat.targets) - 1) + (True,),
    )


def _exchange(
    present: Iterable[str], words: Sequence[str], rng: random.Random
) -> dict[str, str]:
    """Returns new words for a random share of `present`, all different."""
    present = sorted(set(present))
    chosen = rng.sample(present, round(rng.uniform(_MIN_SHARE, 1) * len(present)))
    kept = set(present).difference(chosen)
    free = [word for word in words if word not in kept]
    return dict(zip(chosen, rng.sample(free, len(chosen)), strict=True))


def _script(chat: TrainingChat) -> str:
    return split_script(chat.messages[1].content)[1]


def _words(text: str) -> list[str]:
    return _WORD.findall(text)


def _cut_after_quotation(example: TokenExample) -> TokenExample:
    """Returns the example without the end of its last turn, which is not the end."""
    (places_T,) = example.loss_mask_T.nonzero()
    end = int(places_T[-1])
    return dataclasses.replace(
        example,
        tokens_T=example.tokens_T[:end],
        loss_mask_T=example.loss_mask_T[:end],
    )
