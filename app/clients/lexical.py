"""What can be told about texts by their letters alone: words, passages to quote, their relevance, hashed vectors.

All functions are pure, so that the offline model's answers can be foreseen: the same material and question give the
same quotes on every machine.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from zlib import crc32

DIMENSIONS = 256
MAX_PASSAGE_CHARS = 400
"""A longer line or sentence is not quoted."""
MIN_PASSAGE_WORDS = 3

_WORD = re.compile(r"[^\W_]+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[\"'(\[`*]*[A-Z0-9])")
_MARKER = re.compile(r"\s*([#>*+\-|]|\d+[.)])\s*")
_FRAME = re.compile(r"^((?:[>*+\-|]|\d+[.)])\s+)+|\s*\|$")
_RULE = re.compile(r"[\s|:=\-_*#~`+]*")
_STOPWORDS = frozenset(
    re.findall(
        r"\w+",
        """
        a an and any are as at be but by can do does for from had has have how i if in into is it its me more most my no
        not of on one only or other our so some such than that the their them then there these they this those to us was
        we were what when where which while who whose why will with would you your
        """,
    )
)
_BM25_K1 = 1.2


@dataclass(frozen=True, slots=True)
class Passage:
    """A line or sentence as it stands in its source, apart from white space. `position` counts within the source."""

    text: str
    source: str
    position: int


def words(text: str) -> list[str]:
    """The words that carry meaning: folded, without the commonest English ones, without plural and tense endings."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return [_stem(word) for word in _WORD.findall(folded) if word not in _STOPWORDS]


def _stem(word: str) -> str:
    # Crude on purpose: it only has to give "changes" and "changed" the same form, right or wrong.
    for ending in ("ing", "ed", "es", "s", "e"):
        if len(word) - len(ending) >= 3 and word.endswith(ending) and not word.endswith("ss"):
            return word[: -len(ending)]
    return word


def passages(source: str, text: str) -> list[Passage]:
    """Cut a text into what can be quoted: the sentences of running text, else lines and rows.

    Marks of lists, quotes and tables around them are cut off. Headings, rules, what is too short to say anything and
    what is longer than `MAX_PASSAGE_CHARS` is left out.
    """
    pieces = (piece for block in re.split(r"\n\s*\n", text) for piece in _pieces(block))
    quotable = [_FRAME.sub("", " ".join(piece.split())) for piece in pieces]
    return [Passage(piece, source, position) for position, piece in enumerate(filter(_is_quotable, quotable))]


def _pieces(block: str) -> Iterator[str]:
    for paragraph in _paragraphs(block):
        yield from [paragraph] if paragraph.startswith("|") else _SENTENCE_END.split(paragraph)


def _paragraphs(block: str) -> Iterator[str]:
    """The lines of a block, with the wrapped lines of running text joined."""
    lines = [line for line in block.splitlines() if line.strip()]
    wrapped = _is_prose(lines)
    open_lines: list[str] = []
    for line in lines:
        starts_anew = not wrapped or _MARKER.match(line)
        if starts_anew and open_lines:
            yield " ".join(open_lines)
            open_lines = []
        open_lines.append(line.strip())
    if open_lines:
        yield " ".join(open_lines)


def _is_prose(lines: Sequence[str]) -> bool:
    text = " ".join(lines)
    plain = sum(character.isalpha() or character in " ,.;:'\"`-()" for character in text)
    return len(text.split()) >= 5 * len(lines) and plain >= 0.85 * len(text)


def _is_quotable(piece: str) -> bool:
    if piece.startswith("#") or _RULE.fullmatch(piece) or len(piece) > MAX_PASSAGE_CHARS:
        return False
    return len(_WORD.findall(piece)) >= MIN_PASSAGE_WORDS


class Ranking:
    """Orders passages by their relevance to a question.

    The score is BM25 (Robertson and Zaragoza, 2009) over the words of the passage and, three times, those of its
    source's name, without its correction for length, which would prefer fragments to sentences; times a prior that
    favours the beginning of each source, where texts say what they are about. With no word in common the prior alone
    decides, so a vague question is answered with how the sources begin. Equals keep their order.
    """

    def __init__(self, material: Sequence[Passage]) -> None:
        self._material = material
        self._bags = [Counter(words(passage.text) + words(passage.source) * 3) for passage in material]
        seen_in = Counter(word for bag in self._bags for word in bag)
        count = len(self._bags)
        self._rarity = {word: math.log(1 + (count - seen + 0.5) / (seen + 0.5)) for word, seen in seen_in.items()}

    def best(self, question: str, context: str = "") -> list[Passage]:
        """All passages, the most relevant first. Words of the context count a quarter of those of the question."""
        weights = dict.fromkeys(words(context), 0.25) | dict.fromkeys(words(question), 1.0)
        asked = [(word, weight * self._rarity[word]) for word, weight in weights.items() if word in self._rarity]
        scores = [self._score(index, asked) for index in range(len(self._bags))]
        return [self._material[index] for index in sorted(range(len(scores)), key=lambda index: -scores[index])]

    def _score(self, index: int, asked: Sequence[tuple[str, float]]) -> float:
        bag = self._bags[index]
        relevance = sum(weight * bag[word] * (_BM25_K1 + 1) / (bag[word] + _BM25_K1) for word, weight in asked)
        return (relevance + 1) * (1 + 1 / (1 + self._material[index].position))


def hashed_vector(text: str) -> list[float]:
    """A vector of `DIMENSIONS` numbers and length 1 from hashed words, word pairs and letter triples (signed hashing).

    Texts that share words or parts of words are close. Nothing is known of meaning: synonyms are far apart. A text
    without letters or digits gives zeros.
    """
    vector = [0.0] * DIMENSIONS
    for (weight, feature), times in Counter(_features(text)).items():
        digest = crc32(feature.encode())
        vector[digest % DIMENSIONS] += (1 if digest & 0x10000 else -1) * weight * (1 + math.log(times))
    length = math.sqrt(sum(value * value for value in vector))
    return [value / length for value in vector] if length else vector


def _features(text: str) -> Iterator[tuple[float, str]]:
    found = words(text)
    yield from ((1.0, f"w {word}") for word in found)
    yield from ((0.5, f"p {first} {second}") for first, second in pairwise(found))
    for word in found:
        padded = f" {word} "
        yield from ((0.3, f"t {padded[start : start + 3]}") for start in range(len(padded) - 2))
