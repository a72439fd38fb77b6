"""The decoding loop: what it draws, against transformers and closed forms; when it ends."""

import itertools
import math

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from triptych.nn.decoding import Sampling, candidates, decode, most_likely

TABLE = 3 * torch.randn(12, 12, generator=torch.Generator().manual_seed(0))
"""The logits after each of twelve tokens."""


def after(tokens):
    return TABLE[tokens]


def run(first, **settings):
    """The tokens of each row, by a model whose next token depends on the last one only."""
    rows = [[] for _ in first]
    steps = decode(TABLE[first], after, **settings)
    for token in itertools.chain.from_iterable(steps):
        rows[token.row].append(token)
    return rows


def ids(row):
    return [token.id for token in row]


def test_greedy_takes_the_most_likely_token():
    (row,) = run([3], limit=10)
    last = 3
    for token in row:
        assert token.id == int(TABLE[last].argmax())
        assert token.log_prob == pytest.approx(float(TABLE[last].log_softmax(0).max()), abs=1e-6)
        last = token.id
    assert [token.reason for token in row] == [""] * 9 + ["limit"]


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "penalty"),
    [
        (1.0, 0, 1.0, 1.0),
        (0.7, 0, 1.0, 1.0),
        (1.0, 4, 1.0, 1.0),
        (1.0, 0, 0.6, 1.0),
        (2.0, 6, 0.8, 1.0),
        (1.5, 5, 0.9, 1.8),
    ],
)
def test_draws_have_the_distribution_of_transformers(temperature, top_k, top_p, penalty):
    """10,000 draws; each share within five of its standard deviations."""
    prompt, logits = [1, 4, 4, 9], TABLE[2]
    steps = [TemperatureLogitsWarper(temperature)]
    steps += [TopKLogitsWarper(top_k)] if top_k else []
    steps += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    if penalty != 1:
        steps.insert(0, RepetitionPenaltyLogitsProcessor(penalty))
    expected = LogitsProcessorList(steps)(torch.tensor([prompt]), logits[None].clone())
    expected = expected.softmax(1)[0].double()
    count = 10_000
    sampling = Sampling(temperature, top_k, top_p, penalty)
    (tokens,) = decode(
        logits.expand(count, -1), after, limit=1, sampling=sampling, prompts=[prompt] * count
    )
    shares = torch.bincount(torch.tensor(ids(tokens)), minlength=12) / count
    error = (expected * (1 - expected) / count).sqrt()
    assert ((shares - expected).abs() <= 5 * error).all()
    assert ((shares > 0) <= (expected > 0)).all()
    alone = logits.log_softmax(0)
    assert all(abs(t.log_prob - float(alone[t.id])) < 1e-5 for t in tokens)


def test_a_draw_of_zero_is_no_token_that_cannot_be(monkeypatch):
    nothing = torch.zeros((), dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *shape, **settings: nothing)
    logits = torch.tensor([[-math.inf, 0.0, 0.0]])
    (token,) = itertools.chain.from_iterable(
        decode(logits, lambda _: logits, limit=1, sampling=Sampling(temperature=1.0))
    )
    assert token.id == 1


def test_the_first_token_is_always_a_candidate():
    """A top p below the probability of the most likely token leaves that one."""
    weights, tokens = candidates(TABLE[:1], Sampling(1.0, top_p=1e-6))
    assert tokens[0, weights[0] > 0].tolist() == [int(TABLE[0].argmax())]


def test_a_repeated_token_is_penalised_also_when_generated():
    logits = torch.tensor([2.0, 1.5, -1.0])
    steps = decode(
        logits[None], lambda _: logits[None], limit=3, sampling=Sampling(repetition_penalty=4.0)
    )
    # 2 -> 0.5, then 1.5 -> 0.375: the first is ahead again; -1 -> -4 would be last
    assert [token.id for (token,) in steps] == [0, 1, 0]


def test_a_row_is_the_same_alone_and_in_any_company():
    sampling = Sampling(0.9, 8, 0.95, 1.2, seed=5)
    first = [0, 3, 7, 7]
    together = run(first, limit=30, sampling=sampling, prompts=[[f] for f in first], ends=[11])
    for row, token in enumerate(first):
        alone = run(
            [token], limit=30, prompts=[[token]], ends=[11],
            sampling=Sampling(0.9, 8, 0.95, 1.2, seed=5 + row),
        )[0]  # fmt: skip
        assert ids(alone) == ids(together[row])
    assert ids(together[2]) != ids(together[3])  # of the same start, by different seeds


def test_rows_end_for_themselves_and_nothing_is_computed_after_the_last():
    """An end token is the last of its row; the step after the last token is not computed."""
    calls = []

    def step(tokens):
        calls.append(tokens.tolist())
        return torch.eye(5)[[(t + 1) % 5 for t in tokens.tolist()]]

    steps = list(decode(torch.eye(5)[[1, 3]], step, limit=99, ends={4}))
    shown = [[(t.row, t.id, t.reason) for t in step] for step in steps]
    assert shown == [
        [(0, 1, ""), (1, 3, "")],
        [(0, 2, ""), (1, 4, "end")],
        [(0, 3, "")],
        [(0, 4, "end")],
    ]
    assert len(calls) == 3


def test_the_caller_may_stop_a_row_and_closes_the_loop():
    rows = run([0, 1], limit=9, stop=lambda row, token: row == 1)
    assert len(rows[0]) == 9 and [token.reason for token in rows[1]] == ["stop"]
    calls = []
    steps = decode(TABLE[[0]], lambda t: calls.append(t) or TABLE[t], limit=9)
    next(steps), steps.close()
    assert calls == []


def test_a_grammar_forbids_tokens_and_keeps_the_model_s_log_probabilities():
    def alternate(row, made, scores):
        even = torch.arange(12) % 2 == 0
        return None if row else (even if len(made) % 2 == 0 else ~even)

    for sampling in (Sampling(), Sampling(1.0), Sampling(1.0, top_k=3), Sampling(1.0, top_p=0.5)):
        rows = run([4, 4], limit=40, sampling=sampling, grammar=alternate)
        assert [t % 2 for t in ids(rows[0])] == [0, 1] * 20
        last = 4
        for token in rows[0]:
            expected = float(TABLE[last].log_softmax(0)[token.id])
            assert math.isclose(token.log_prob, expected, abs_tol=1e-5)
            last = token.id
    greedy = run([4, 4], limit=40)
    assert ids(run([4, 4], limit=40, grammar=alternate)[1]) == ids(greedy[1])


def test_a_grammar_is_told_what_the_model_would_say():
    told = []

    def listen(row, made, scores):
        told.append((row, scores.clone()))

    run([4, 5], limit=1, grammar=listen)
    assert [row for row, _ in told] == [0, 1]
    torch.testing.assert_close(torch.stack([scores for _, scores in told]), TABLE[[4, 5]])


def test_a_grammar_that_permits_nothing_is_an_error():
    with pytest.raises(ValueError, match="permits no token after"):
        run([0], limit=3, grammar=lambda row, made, scores: torch.zeros(12, dtype=torch.bool))


def test_logits_that_are_no_numbers_are_an_error():
    for sampling in (Sampling(), Sampling(1.0)):
        with pytest.raises(FloatingPointError, match="not a number"):
            list(decode(torch.full((1, 12), torch.nan), after, limit=1, sampling=sampling))


@pytest.mark.parametrize("size", [7, 64, 640, 1000])
def test_the_most_likely_token_is_the_first_of_the_largest(size):
    torch.manual_seed(0)
    scores = torch.randint(0, 50, (3, size)).float()
    assert torch.equal(most_likely(scores), scores.argmax(1))
    assert torch.equal(most_likely(scores[:, 1:]), scores[:, 1:].argmax(1))


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"repetition_penalty": 0.0},
    ],
)
def test_a_setting_out_of_range_is_named(fields):
    with pytest.raises(ValueError, match=f"{next(iter(fields))} must be"):
        Sampling(**fields)


@pytest.mark.parametrize("fields", [
    {"temperature": 0.0}, {"temperature": 100.0}, {"top_k": 0}, {"top_p": 1.0},
    {"repetition_penalty": 0.01}, {"repetition_penalty": 100.0},
])  # fmt: skip
def test_the_ends_of_a_range_belong_to_it(fields):
    assert Sampling(**fields)
