"""Text models lose the words that decide least and keep their accuracy on texts that were not judged."""

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline

from edgeml import graph
from edgeml.artifacts import Rows, Skipped
from edgeml.convert.sklearn import convert
from edgeml.graph.proto import attribute
from edgeml.quantize import Options, quantize
from edgeml_runtime.session import Session

PATTERN = "[a-zA-Z0-9_]{2,}"


def sentences(real_data):
    """Return 1,000 reviews of Amazon as (n, 1) and whether they are good, shuffled."""
    lines = next(iter(sorted(real_data("sentences_amazon").glob("*.txt")))).read_text(encoding="utf-8").splitlines()
    pairs = [line.rsplit("\t", 1) for line in lines if "\t" in line]
    order = np.random.default_rng(0).permutation(len(pairs))
    texts = np.array([pairs[i][0] for i in order], dtype=object)
    return texts, np.array([int(pairs[i][1]) for i in order])


@pytest.mark.parametrize("vectorizer", [TfidfVectorizer, CountVectorizer])
def test_a_text_classifier_loses_words_and_keeps_its_accuracy(vectorizer, real_data):
    texts, target = sentences(real_data)
    fitted = make_pipeline(vectorizer(token_pattern=PATTERN), LogisticRegression()).fit(texts[:700], target[:700])
    model = convert(fitted, {"categorical": 1}, source="reviews")
    rows = Rows({"categorical": texts[:700].reshape(-1, 1)}, target[:700])
    options = Options(metric="accuracy", task="classification", max_drop=0.02)
    made = quantize(model, rows, ["compact"], options=options)[-1]
    assert made.recipe == "vocabulary-pruned", made
    assert len(made.model.data) < 0.8 * len(model.data)
    asked = {"categorical": texts[700:].reshape(-1, 1)}
    before, after = (Session(each.data).run(asked)["label"] for each in (model, made.model))
    assert (after == target[700:]).mean() > (before == target[700:]).mean() - 0.03
    words = next(
        attribute(n, "pool_strings") for n in graph.load(made.model).graph.node if n.op_type == "TfIdfVectorizer"
    )
    assert b"great" in words  # which decides


def test_pairs_of_words_are_left_alone_and_the_reason_says_so(real_data):
    texts, target = sentences(real_data)
    fitted = make_pipeline(CountVectorizer(token_pattern=PATTERN, ngram_range=(1, 2)), Ridge()).fit(texts, target)
    model = convert(fitted, {"categorical": 1}, source="reviews")
    made = quantize(model, Rows({"categorical": texts.reshape(-1, 1)}), ["vocabulary-pruned"])[-1]
    assert isinstance(made, Skipped)
    assert "no vocabulary of single words" in made.reason
