"""Cases that are the same though they look different: by their pictures, and by their words.

A picture is known by its pixels, so that neither a file's name nor what else stands in it matters. Words are compared
without case, punctuation and white space: two texts are near-duplicates where the Jaccard index of their runs of five
words is at least 0.8 (as Lee et al. 2022, arXiv 2107.06499, section 4.2, have it for documents). Short questions must
have the same options, too, in whatever order; of a test split's long ones none may be trained on, with any options.

Invariant: the comparison is exact; no hashing loses or invents a pair.
"""

import dataclasses
import functools
import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence

from mmedagent_graph.images import ImageStore
from mmedagent_graph.pictures import ImageError
from rl.datasets import LabeledCase

RUN = 5
"""Words that are compared at a time."""
ALIKE = 0.8
"""The Jaccard index from which two texts are one."""
TELLING = 12
"""A question about a picture must have so many words to tell of a case. "Is there a fracture?" is asked of thousands of
pictures: without its own it is no duplicate, and of a data set made by templates nothing would be left."""
WHATEVER = "any options"
WORD = re.compile(r"[^\W_]+")


def words_of(text: str) -> list[str]:
    """Its words, without case and punctuation."""
    return WORD.findall(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()))


@functools.lru_cache(4096)  # a picture has several questions
def picture_of(ref: str, store: ImageStore) -> str:
    """What two files of the same pixels have in common."""
    with store.open(ref) as image:
        return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()


class Texts:
    """Texts, each with the key of what else must be the same; finds one that is near a text."""

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self._having: dict[Hashable, list[int]] = defaultdict(list)

    def add(self, key: Hashable, text: str) -> None:
        """Remember a text."""
        runs = _runs(text)
        for run in runs:
            self._having[key, run].append(len(self._sizes))
        self._sizes.append(len(runs))

    def has(self, key: Hashable, text: str) -> bool:
        """Whether a text that was added under the key is a near-duplicate."""
        runs = _runs(text)
        shared = Counter(other for run in runs for other in self._having.get((key, run), ()))
        return any(both >= ALIKE * (len(runs) + self._sizes[other] - both) for other, both in shared.items())


def _runs(text: str) -> set[tuple[str, ...]]:
    """All runs of so many words; a shorter text is one run."""
    words = words_of(text)
    return {tuple(words[start : start + RUN]) for start in range(max(1, len(words) - RUN + 1))}


@dataclasses.dataclass(frozen=True)
class Seen:
    """What of a case is compared."""

    case: LabeledCase
    """With its images as references into the store."""
    pictures: frozenset[str]

    @classmethod
    def of(cls, case: LabeledCase, store: ImageStore) -> "Seen":
        """A case, whose images are put into the store.

        Raises:
            ValueError: if the case cannot be used, or an image cannot be read.
        """
        refs = case.given().fields(store)["images"]
        pictures = frozenset(picture_of(ref, store) for ref in refs)
        return cls(dataclasses.replace(case, images=refs), pictures)

    @property
    def text(self) -> str:
        """Its words."""
        return f"{self.case.context or ''}\n{self.case.question}"

    @property
    def options(self) -> frozenset[str]:
        """Its options, in no order."""
        return frozenset(" ".join(words_of(option)) or option.strip() for option in self.case.options)

    @property
    def is_long(self) -> bool:
        """Whether its question alone tells which case it is, whatever may be chosen from."""
        return len(words_of(self.text)) >= TELLING

    @property
    def tells(self) -> bool:
        """Whether its words, with its options, tell which case it is."""
        return not self.pictures or self.is_long


class Tests:
    """The cases of test splits, of which none may be trained on.

    Args:
        by_picture: A case that has pictures is known by them alone, as where a data set is split by image: made by
            templates, it asks the same long question of many. Default: the words of a long one tell, too.
    """

    __test__ = False  # to pytest

    def __init__(self, by_picture: bool = False) -> None:
        self._by_picture = by_picture
        self._pictures: dict[str, str] = {}
        self._texts: dict[str, Texts] = {}

    @classmethod
    def held_out(cls, cases: Iterable[LabeledCase], store: ImageStore) -> "Tests":
        """The cases that a run holds out of its own, which are split by image."""
        tests = cls(by_picture=True)
        tests.add("held out", cases, store)
        return tests

    def add(self, name: str, cases: Iterable[LabeledCase], store: ImageStore) -> int:
        """Remember a split's cases.

        An image that the store cannot read is passed over: no case that is trained on can have it.

        Returns:
            How many images cannot be read.
        """
        texts, unreadable = self._texts.setdefault(name, Texts()), 0
        for case in cases:
            seen = Seen(case, frozenset())
            texts.add(seen.options, seen.text)
            if seen.is_long:
                texts.add(WHATEVER, seen.text)
            for image in case.images:
                try:
                    self._pictures.setdefault(picture_of(store.put(image), store), name)
                except ImageError:
                    unreadable += 1
        return unreadable

    def why(self, seen: Seen) -> str | None:
        """Why a case may not be trained on; None: it may."""
        for picture in sorted(seen.pictures):
            if picture in self._pictures:
                return f"its image is in {self._pictures[picture]}"
        if self._by_picture and seen.pictures:
            return None
        for name, texts in self._texts.items():
            keys: list[Hashable] = [seen.options, WHATEVER] if seen.is_long else [seen.options]
            if seen.tells and any(texts.has(key, seen.text) for key in keys):
                return f"its text is in {name}"
        return None


def distinct(cases: Sequence[Seen]) -> list[Seen]:
    """The cases without those that repeat an earlier one: the same pictures and options, and near-duplicate words."""
    texts, kept = Texts(), list[Seen]()
    for seen in cases:
        key = (seen.pictures, seen.options)
        if not texts.has(key, seen.text):
            texts.add(key, seen.text)
            kept.append(seen)
    return kept
