"""The model series: to which of its families a model belongs, and what the model cards recommend."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Card:
    """The model cards of some models of a family.

    Attributes:
        models: the models.
        format: their prompt format.
        sampling: parameters from the cards' examples; None if they set none.
    """

    models: str
    format: str
    sampling: dict[str, Any] | None


@dataclass(frozen=True)
class Family:
    """Models that differ only in their weights.

    Attributes:
        name: the family's name.
        format: prompt format of its instruction models, or of its base model if there are none.
        cards: what its model cards say.
    """

    name: str
    format: str
    cards: tuple[Card, ...] = ()

    def defaults(self, format: str) -> dict[str, Any]:
        """The recommended sampling for a prompt format; if several cards have one, the last, of the newest model."""
        stated = [card.sampling for card in self.cards if card.format == format and card.sampling]
        return stated[-1] if stated else {}


BILINGUAL = Family(
    "bilingual-gpt-neox-4b",
    "speaker",
    (
        Card(
            "instruction-sft, instruction-ppo, minigpt4",
            "speaker",
            {"temperature": 1.0, "top_p": 0.85, "max_tokens": 512},
        ),
        Card("base", "raw", {"temperature": 1.0, "top_p": 0.95, "max_tokens": 100}),
    ),
)
BILINGUAL_8K = Family("bilingual-gpt-neox-4b-8k", "raw", (Card("base", "raw", None),))
JAPANESE = Family(
    "japanese-gpt-neox-3.6b",
    "speaker-nl",
    (
        Card("instruction-sft", "speaker-nl", {"temperature": 0.7, "top_p": 1.0, "max_tokens": 128}),
        Card(
            "instruction-sft-v2, instruction-ppo",
            "speaker-nl",
            {"temperature": 0.7, "top_p": 1.0, "repetition_penalty": 1.1, "max_tokens": 128},
        ),
        Card("base", "raw", {"temperature": 0.8, "top_p": 1.0, "max_tokens": 100}),
    ),
)
OTHER = Family("none of the series", "speaker")
OTHER_NL = Family("none of the series", "speaker-nl")
OTHER_RAW = Family("none of the series", "raw")
CHAT = Family("none of the series", "chat-template")

# MD5 of bilingual-gpt-neox-4b-instruction-sft's pytorch_model.bin (its card and history).
RELEASED_MD5 = "de72aa5b66beee7b65783c96f687d186"
WITHDRAWN_MD5 = "edf190a323c0ae63f71476700fb0b462"
RELEASES = {
    RELEASED_MD5: "bilingual-gpt-neox-4b-instruction-sft, release of 2023-08-02 (MIT)",
    WITHDRAWN_MD5: "bilingual-gpt-neox-4b-instruction-sft, release of 2023-07-31 (WITHDRAWN: non-commercial data)",
}


def family(vocab_size: int, stretched: bool, keeps_newlines: bool) -> Family:
    """The family of a model.

    Args:
        vocab_size: of the weights.
        stretched: whether the context is longer than in training.
        keeps_newlines: whether the tokenizer keeps newlines.
    """
    if not keeps_newlines:
        return JAPANESE if vocab_size == 32000 else OTHER_NL
    if vocab_size != 65536:
        return OTHER
    return BILINGUAL_8K if stretched else BILINGUAL
