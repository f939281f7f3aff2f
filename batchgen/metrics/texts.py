"""What metrics count in texts and token ids. All of it takes time that is linear in the length, or bounded."""

import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

LONGEST_COMPARED = 8192  # tokens of each of two texts; comparing so many takes 20 ms


def folded(text: str) -> str:
    """NFKC, with every run of white space as one space and none at the edges."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def ngrams(ids: Sequence[int], n: int) -> Iterable[tuple[int, ...]]:
    return zip(*(ids[start:] for start in range(n)), strict=False)


def seq_rep(ids: Sequence[int], n: int) -> float:
    """The share of a text's n-grams that were there before. A text without any repeats none."""
    total = len(ids) - n + 1
    return 1 - len(set(ngrams(ids, n))) / total if total > 0 else 0.0


def distinct(texts: Iterable[Sequence[int]], n: int) -> float | None:
    """The share of n-grams that are different ones, over all texts together; None if they have none."""
    found = Counter(ngram for ids in texts for ngram in ngrams(ids, n))
    return len(found) / found.total() if found else None


def rouge_l(ids: Sequence[int], reference: Sequence[int]) -> float:
    """The F1 of precision and recall by the longest common subsequence, 0 to 1. Two empty texts are 0, as they are for
    the rouge-score package. Of longer texts the first LONGEST_COMPARED tokens are compared."""
    ids, reference = ids[:LONGEST_COMPARED], reference[:LONGEST_COMPARED]
    common = longest_common_subsequence(ids, reference)
    return 2 * common / (len(ids) + len(reference)) if common else 0.0


def longest_common_subsequence(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    """Its length, by a bit for each item of `one` that is kept in a single integer (Crochemore et al. 2001).

    The time is len(one) / 64 * len(other), the memory linear.
    """
    places: dict[Hashable, int] = {}
    for at, item in enumerate(one):
        places[item] = places.get(item, 0) | 1 << at
    everywhere = (1 << len(one)) - 1
    unmatched = everywhere
    for item in other:
        if matching := unmatched & places.get(item, 0):
            unmatched = (unmatched + matching | unmatched - matching) & everywhere
    return len(one) - unmatched.bit_count()


def equal_pairs(texts: Sequence[str]) -> float | None:
    """The share of pairs of texts that are equal; None if there is no pair."""
    pairs = len(texts) * (len(texts) - 1)
    equal = sum(count * (count - 1) for count in Counter(texts).values())
    return equal / pairs if pairs else None
