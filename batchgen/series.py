"""The model series: which of its families a model is, and what the cards advise."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Models that differ in nothing but their weights. format: of its instruction models' prompts, or of its base
    model's where there is no other; cards: models -> the sampling that their cards use."""

    name: str
    format: str
    cards: dict[str, str]


BILINGUAL = Family(
    "bilingual-gpt-neox-4b",
    "speaker",
    {
        "instruction-sft, instruction-ppo": "temperature 1.0, top_p 0.85, max_tokens 512",
        "base (format raw)": "temperature 1.0, top_p 0.95, max_tokens 100",
    },
)
BILINGUAL_8K = Family("bilingual-gpt-neox-4b-8k", "raw", {"base": "not stated"})
JAPANESE = Family(
    "japanese-gpt-neox-3.6b",
    "speaker-nl",
    {
        "instruction-sft": "temperature 0.7, max_tokens 128",
        "instruction-sft-v2, instruction-ppo": "temperature 0.7, repetition_penalty 1.1, max_tokens 128",
        "base (format raw)": "temperature 0.8, max_tokens 100",
    },
)
OTHER = Family("none of the series", "speaker", {})
OTHER_NL = Family("none of the series", "speaker-nl", {})

# MD5 of bilingual-gpt-neox-4b-instruction-sft's pytorch_model.bin (its card and history).
RELEASED_MD5 = "de72aa5b66beee7b65783c96f687d186"
WITHDRAWN_MD5 = "edf190a323c0ae63f71476700fb0b462"
RELEASES = {
    RELEASED_MD5: "bilingual-gpt-neox-4b-instruction-sft, release of 2023-08-02 (MIT)",
    WITHDRAWN_MD5: "bilingual-gpt-neox-4b-instruction-sft, release of 2023-07-31 (WITHDRAWN: non-commercial data)",
}


def family(vocab_size: int, stretched: bool, keeps_newlines: bool) -> Family:
    """vocab_size: of the weights; stretched: whether the context is longer than trained; keeps_newlines: whether the
    tokenizer does."""
    if not keeps_newlines:
        return JAPANESE if vocab_size == 32000 else OTHER_NL
    if vocab_size != 65536:
        return OTHER
    return BILINGUAL_8K if stretched else BILINGUAL
