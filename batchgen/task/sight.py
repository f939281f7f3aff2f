"""How the images of rows come to a model: as files from the input, as pixels for the engine, as places in a prompt."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..input.conversation import Conversation
from ..input.images import HERE, Images, placed
from ..prompt.pictures import Album, Picture

Record = dict[str, Any]
Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Sight:
    """What a job with images has beside the others.

    images: of its rows, as files
    album: what has looked at them
    tokens: ids that stand for one image in a prompt; none if the model's chat template writes what stands for it
    """

    images: Images
    album: Album
    tokens: Sequence[int]

    def files_of(self, record: Record, row: int) -> tuple[Record, list[bytes]]:
        """See Images.read."""
        return self.images.read(record, row)

    def placed(self, prefix: Conversation, said: Conversation, images: int) -> Conversation:
        """The conversation with a mark for each image; MiniGPT-4's prompts have a space between image and text."""
        return placed(prefix, said, images, " " if self.tokens else "")

    def pictures(self, files: Sequence[bytes]) -> list[Picture]:
        """Raises Reject."""
        return [self.album.picture(file) for file in files]

    def encoder(self, encode: Encode) -> Encode:
        """Makes ids of a prompt with marks: of each text between them by itself, as MiniGPT-4 does it."""

        def encode_around(text: str) -> list[int]:
            first, *others = (encode(part) for part in text.split(HERE))
            return [*first, *(token for part in others for token in (*self.tokens, *part))]

        return encode_around if self.tokens else encode


def kept(pictures: Sequence[Picture], conversation: Conversation) -> Sequence[Picture]:
    """Those whose places are still there after the oldest turns were dropped."""
    if not pictures:
        return pictures
    places = sum(turn.text.count(HERE) for turn in conversation)
    return pictures[len(pictures) - places :]
