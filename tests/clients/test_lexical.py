from __future__ import annotations

import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.clients.lexical import DIMENSIONS, MAX_PASSAGE_CHARS, Passage, Ranking, hashed_vector, passages, words

README = """
# Nightshift

Nightshift is an async task service
for agents. It runs on Redis. See https://example.com/a.b for more.

| queue | concurrency of the queue | for |
|---|---|---|
| git | 8 workers | clone. Commit. Push. |

- waits cost nothing at all
- a second item that is
  wrapped over two lines

```
requires-python = ">=3.11"
name = "nightshift"
version = "0.1.0 or so"
```
"""


def cosine(one: str, other: str) -> float:
    return sum(a * b for a, b in zip(hashed_vector(one), hashed_vector(other), strict=True))


def test_running_text_is_cut_into_sentences_and_the_rest_into_lines() -> None:
    assert [passage.text for passage in passages("README.md", README)] == [
        "Nightshift is an async task service for agents.",
        "It runs on Redis.",
        "See https://example.com/a.b for more.",
        "queue | concurrency of the queue | for",
        "git | 8 workers | clone. Commit. Push.",
        "waits cost nothing at all",
        "a second item that is wrapped over two lines",
        'requires-python = ">=3.11"',
        'version = "0.1.0 or so"',
    ]


def test_passages_count_their_position_and_name_their_source() -> None:
    found = passages("README.md", README)
    assert [passage.position for passage in found] == list(range(len(found)))
    assert {passage.source for passage in found} == {"README.md"}


@given(st.text(alphabet="ab .!\n|-#*`1=\t", max_size=300))
def test_every_passage_stands_in_its_text_and_is_short_enough(text: str) -> None:
    flat = " ".join(text.split())
    for passage in passages("s", text):
        assert passage.text in flat
        assert len(passage.text) <= MAX_PASSAGE_CHARS


def test_lines_too_long_to_quote_are_left_out() -> None:
    assert passages("app.min.js", "var a = 1; " * 100) == []


@pytest.mark.parametrize(
    ("question", "best"),
    [
        ("Which queues are there?", "The queue agent runs four tasks."),
        ("what CHANGED?", "It changes the lease."),
        ("changes.txt", "It changes the lease."),
        ("Tell me of zebras", "Start here, this is the beginning."),
        ("", "Start here, this is the beginning."),
    ],
)
def test_the_most_relevant_passage_comes_first(question: str, best: str) -> None:
    material = [
        Passage("Start here, this is the beginning.", "a", 0),
        Passage("The lease is renewed every three seconds.", "a", 1),
        Passage("The queue agent runs four tasks.", "a", 2),
        Passage("It changes the lease.", "changes.txt", 3),
    ]
    ranked = Ranking(material).best(question)
    assert ranked[0].text == best
    assert sorted(map(repr, ranked)) == sorted(map(repr, material))


def test_words_of_the_question_count_more_than_those_of_the_context() -> None:
    material = [Passage("the lease of a worker", "a", 1), Passage("the colour of a wall", "a", 1)]
    assert Ranking(material).best("lease", "colour")[0].text == "the lease of a worker"
    assert Ranking(material).best("colour", "lease")[0].text == "the colour of a wall"
    assert Ranking(material).best("nothing", "colour")[0].text == "the colour of a wall"


def test_a_vague_question_is_answered_with_how_the_sources_begin() -> None:
    material = [Passage(f"passage {n} of {source}", source, n) for source in ("a", "b") for n in range(3)]
    order = [(passage.source, passage.position) for passage in Ranking(material).best("Tell me of zebras")]
    assert order == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]


def test_no_material_has_no_best_passage() -> None:
    assert Ranking([]).best("anything") == []


def test_forms_of_a_word_are_one_word() -> None:
    assert words("changes, Changed, changing change") == ["chang"] * 4
    assert words("the of and") == []
    assert words("llm_base_url") == ["llm", "bas", "url"]


@given(st.text())
def test_vectors_have_their_length_and_size(text: str) -> None:
    vector = hashed_vector(text)
    assert len(vector) == DIMENSIONS
    length = math.sqrt(sum(value * value for value in vector))
    assert length == pytest.approx(1.0) or (length == 0.0 and vector == [0.0] * DIMENSIONS)


def test_texts_that_share_words_or_their_parts_are_closer() -> None:
    text = "the worker renews its lease every three seconds"
    same_words = cosine(text, "every three seconds a lease is renewed by the worker")
    same_parts = cosine(text, "working on renewal of leasing")
    unrelated = cosine(text, "tomatoes grow well in sunny gardens")
    assert cosine(text, text) == pytest.approx(1.0)
    assert same_words > 0.5
    assert same_words > same_parts > unrelated
    assert unrelated < 0.2


def test_vectors_are_the_same_in_every_process() -> None:
    code = "from app.clients.lexical import hashed_vector; print(hashed_vector('night shift')[:40])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str(hashed_vector("night shift")[:40])
