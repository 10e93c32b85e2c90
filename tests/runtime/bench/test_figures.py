"""Percentiles, rates, errors, and how they are shown."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from runtime.bench.figures import count_errors, figures, percentile, percentiles, report
from runtime.bench.plot import plot, shares, token_rates
from runtime.bench.request import MeasuredRequest
from runtime.bench.table import MAX_ADAPTERS, render


def answered(number: int, adapter: str = "base") -> MeasuredRequest:
    """Due at 1 s, first text at 3 s, two more pieces in 1 s steps, ended at 5.5 s."""
    return MeasuredRequest(number, adapter, 1.0, 3.0, 5.0, 5.5, [1.0, 1.0], 10, 3)


def failed(number: int, error: str) -> MeasuredRequest:
    """A request that was refused."""
    return MeasuredRequest(number, "pirate", 0.0, end_s=1.0, error=error)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 101])
def test_percentiles_are_numpys(n: int) -> None:
    """Percentiles lie between two values where numpy puts them."""
    values = np.random.default_rng(n).random(n)
    found = percentiles(values.tolist())
    assert (found.p50, found.p90, found.p99) == pytest.approx(np.percentile(values, [50, 90, 99]))
    assert (found.n, found.max) == (n, values.max())
    assert found.mean == pytest.approx(values.mean())


def test_nothing_has_no_percentile() -> None:
    """Percentiles of nothing are shown as nothing; one percentile of nothing is an error."""
    assert percentiles([]).n == 0
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_times_count_from_when_a_request_was_due() -> None:
    """A request's first token is 2 s and its end 4.5 s after its due time; the gaps and the speed follow from them."""
    found = figures([answered(0)], 10.0)
    assert (found.first_token_s.p50, found.total_s.p50, found.gap_s.p99, found.gap_s.n) == (2.0, 4.5, 1.0, 2)
    assert (found.speed.p50, found.tokens_per_s) == (1.0, 0.3)


def test_failed_and_cancelled_requests_are_counted_apart() -> None:
    """A refused request has no times; one that Ctrl-C ended is cancelled and no error, and its tokens count."""
    cut = MeasuredRequest(2, "base", 0.0, 1.0, 1.0, 2.0, [], 10, 1, error="the answer broke off", is_cancelled=True)
    whole = report([answered(0), failed(1, "429: busy"), cut], 10.0)
    found = whole.together
    assert (found.n_requests, found.n_answered, found.n_failed, found.n_cancelled) == (3, 1, 1, 1)
    assert (found.first_token_s.n, found.n_tokens, whole.requests_per_s) == (1, 4, 0.1)
    assert whole.errors == {"429: busy": 1}
    assert {name: one.n_requests for name, one in whole.by_adapter.items()} == {"base": 2, "pirate": 1}


def test_errors_that_differ_in_numbers_are_one() -> None:
    """Errors are counted by their words, the most frequent first; another status is another error."""
    errors = ["500: lost", "429: 72 wait; try again in 3 s", "429: 70 wait; try again in 9 s", "503: lost"]
    assert count_errors(errors) == {"429: 72 wait; try again in 3 s": 2, "500: lost": 1, "503: lost": 1}


def test_the_table_shows_everything() -> None:
    """The table has the percentiles, the counts, the errors and a line for each adapter."""
    text = render(report([answered(0), answered(1, "tag"), failed(2, "429: busy")], 10.0))
    assert re.search(r"time to first token +2\.00 s +2\.00 s +2\.00 s +2\.00 s +2\.00 s\n", text)
    assert "3 requests in 10.0 s: 2 answered (0.20 a second), 1 failed\n" in text
    assert "20 prompt tokens (2.0/s), 6 answer tokens (0.6/s)\n  1 x 429: busy\n" in text
    assert re.search(r"^tag +1 +0 +2\.00 s", text, re.MULTILINE)


def test_the_table_stays_short() -> None:
    """Of many adapters and errors the first are shown, and how many there are beside them."""
    many = [answered(number, f"adapter-with-quite-a-long-name-{number}") for number in range(40)]
    many += [failed(number, f"{400 + number}: no") for number in range(9)]
    text = render(report(many, 10.0))
    assert f"and {41 - MAX_ADAPTERS} other adapters; --json FILE has all" in text
    assert "and 4 other errors" in text
    assert max(map(len, text.splitlines())) <= 100


def test_where_nothing_was_measured_the_table_says_so() -> None:
    """A load of which nothing was answered shows dashes, and draws panels that say so."""
    records = [failed(0, "429: busy")]
    assert re.search(r"end to end +- +- +- +- +-\n", render(report(records, 1.0)))
    assert plot("none", records).count("nothing was measured") == 4


def test_the_plot_is_an_svg_of_what_was_measured() -> None:
    """Tokens a second add up to the pieces of text; curves of shares rise to 100; the title is escaped."""
    records = [answered(number) for number in range(3)]
    rates = token_rates(records)
    assert sum(rate for _, rate in rates) * (5.0 / len(rates)) == pytest.approx(9)
    assert shares([3.0, 1.0, 2.0]) == [(1.0, 0.0), (2.0, 50.0), (3.0, 100.0)]
    root = ElementTree.fromstring(plot("a <b> & c", records))  # noqa: S314 - our own
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert "a <b> & c" in texts
    assert "p50 2 s" in texts
