"""Sampling: each row by its own settings, equal to transformers' processors where these exist."""

import math
from typing import Any

import pytest
import torch
import transformers as t
from torch import Tensor

from foreword.engine import sampling
from foreword.engine.sampling import Choice, Sampler, Sampling, candidates, choose
from foreword.errors import InputError

V = 50


def logits(rows: int = 1, seed: int = 0, size: int = V) -> Tensor:
    return 3 * torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))


def distribution(scores: Tensor, settings: list[Sampling]) -> Tensor:
    ids, probabilities = candidates(scores, settings)
    return torch.zeros_like(scores).scatter_(1, ids, probabilities)


SHARED: list[dict[str, Any]] = [
    {"temperature": 0.7},
    {"temperature": 1.5, "top_k": 5},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 1.3, "min_p": 0.1},
    {"temperature": 0.9, "top_k": 12, "top_p": 0.7, "min_p": 0.05},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "top_p": 1e-6},
    {"temperature": 1.0, "top_k": 1000},
]


def by_transformers(scores: Tensor, settings: dict[str, Any]) -> Tensor:
    made = {
        "temperature": t.TemperatureLogitsWarper,
        "top_k": t.TopKLogitsWarper,
        "top_p": t.TopPLogitsWarper,
        "min_p": t.MinPLogitsWarper,
    }
    processors = [made[name](settings[name]) for name in made if name in settings]
    return t.LogitsProcessorList(processors)(torch.zeros(1, 0).long(), scores).softmax(-1)


@pytest.mark.parametrize("num_candidates", [8, 1024])
@pytest.mark.parametrize("settings", SHARED)
def test_a_distribution_is_that_of_transformers(
    settings: dict[str, Any], num_candidates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "NUM_CANDIDATES", num_candidates)
    for seed in range(20):
        scores = logits(seed=seed)
        found = distribution(scores, [Sampling(**settings)])
        torch.testing.assert_close(found, by_transformers(scores, settings), rtol=1e-5, atol=1e-6)


def test_rows_of_one_batch_keep_their_own_settings() -> None:
    scores = logits(len(SHARED))
    found = distribution(scores, [Sampling(**settings) for settings in SHARED])
    for row, settings in enumerate(SHARED):
        expected = by_transformers(scores[row : row + 1], settings)[0]
        torch.testing.assert_close(found[row], expected, rtol=1e-5, atol=1e-6)


def test_the_repetition_penalty_is_that_of_transformers() -> None:
    scores, seen = logits(), torch.tensor([[3, 3, 8, 40]])
    sampler = Sampler(Sampling(repetition_penalty=1.7), [3, 3, 8])
    sampler.record(40)
    expected = t.RepetitionPenaltyLogitsProcessor(1.7)(seen, scores)
    torch.testing.assert_close(sampling.edit(scores, [sampler]), expected)


def test_presence_and_frequency_count_the_answer_only() -> None:
    scores = logits()
    sampler = Sampler(Sampling(presence_penalty=0.5, frequency_penalty=0.25), [1, 2, 3])
    for one in (7, 7, 9):
        sampler.record(one)
    difference = scores - sampling.edit(scores, [sampler])
    assert difference[0, 7].item() == pytest.approx(1.0)
    assert difference[0, 9].item() == pytest.approx(0.75)
    assert difference.count_nonzero() == 2


def test_bias_and_mask_decide() -> None:
    biased, masked = Sampler(Sampling(logit_bias={4: 100.0})), Sampler(Sampling())
    masked.allowed = torch.zeros(30, dtype=torch.bool).index_fill_(0, torch.tensor([11]), True)
    scores = logits(3)
    kept = scores.clone()
    found = choose(scores, [biased, masked, Sampler(Sampling())])
    assert [choice.id for choice in found if choice] == [4, 11, int(scores[2].argmax())]
    torch.testing.assert_close(scores, kept, rtol=0, atol=0)


def drawn_ids(num_neighbours: int, num_steps: int = 30) -> list[int]:
    sampler = Sampler(Sampling(temperature=1.2, seed=5))
    others = [Sampler(Sampling(temperature=2.0, top_p=0.9)) for _ in range(num_neighbours)]
    found = []
    for seed in range(num_steps):
        scores = torch.cat([logits(seed=seed), logits(num_neighbours, seed + 100)])
        choice = choose(scores, [sampler, *others])[0]
        assert choice is not None
        found.append(choice.id)
    return found


def test_a_seed_gives_the_same_ids_whatever_the_neighbours() -> None:
    assert drawn_ids(0) == drawn_ids(3)
    assert len(set(drawn_ids(0))) > 5


def halves(seed: int, size: int = 6000) -> Tensor:
    """Return logits as a model in bfloat16 gives them: many are equal."""
    return logits(seed=seed, size=size).bfloat16()


@pytest.mark.parametrize(
    "neighbour", [{"top_p": 0.9}, {"top_k": 2400}, {"min_p": 1e-9}, {"num_logprobs": 40}]
)
def test_equal_logits_are_drawn_and_told_alike_whatever_the_neighbours(
    neighbour: dict[str, Any],
) -> None:
    flat = torch.zeros(1, 6000).bfloat16()
    other = Sampler(Sampling(temperature=1.0, **neighbour))
    for seed in range(20):
        own = Sampling(temperature=0.8, top_p=0.9, seed=seed, num_logprobs=seed)
        alone = choose(halves(seed), [Sampler(own)])[0]
        assert choose(torch.cat([halves(seed), flat]), [Sampler(own), other])[0] == alone


@pytest.mark.parametrize("num", [0, 1, 5, 64, 200, 256, 300])
def test_of_equal_scores_the_lowest_ids_are_the_likeliest(num: int) -> None:
    scores = (4 * torch.rand(5, 256, generator=torch.Generator().manual_seed(num))).round()
    scores[1] = -math.inf
    scores[2, 100:] = -math.inf
    scores[3] = torch.arange(256)
    values, ids = sampling.likeliest(scores, num)
    whole = scores.sort(descending=True, stable=True)
    assert ids.tolist() == whole.indices[:, :num].tolist()
    assert values.tolist() == whole.values[:, :num].tolist()


def test_draws_follow_the_probabilities() -> None:
    scores = torch.tensor([[0.0, math.log(3.0), -math.inf, math.log(4.0)]])
    for settings in (Sampling(temperature=1.0, seed=1), Sampling(temperature=1, top_k=4, seed=1)):
        sampler = Sampler(settings)
        counts = [0] * 4
        for _ in range(4000):
            choice = choose(scores, [sampler])[0]
            assert choice is not None
            counts[choice.id] += 1
        assert counts[2] == 0
        for count, share in zip(counts, (1 / 8, 3 / 8, 0, 4 / 8), strict=True):
            assert abs(count / 4000 - share) < 0.03


def test_the_lowest_draw_is_never_an_id_of_probability_zero() -> None:
    sampler = Sampler(Sampling(temperature=1.0))
    sampler.rng.random = lambda: 0.0  # type: ignore[method-assign]
    assert choose(torch.tensor([[-math.inf, 1.0, 2.0]]), [sampler]) == [Choice(1)]


def test_greedy_and_drawn_rows_mix() -> None:
    scores = logits(2)
    found = choose(scores, [Sampler(Sampling()), Sampler(Sampling(temperature=1.0, top_k=1))])
    assert [choice.id for choice in found if choice] == scores.argmax(-1).tolist()


def test_logprobs_are_the_models_own() -> None:
    scores = logits()
    sampler = Sampler(Sampling(temperature=0.3, top_k=1, logit_bias={4: 50.0}, num_logprobs=3))
    choice = choose(scores, [sampler])[0]
    expected = scores.log_softmax(-1)[0]
    assert choice is not None and choice.id == 4
    assert choice.logprob == pytest.approx(expected[4].item(), abs=1e-5)
    assert [one for one, _ in choice.top] == expected.topk(3).indices.tolist()
    assert [value for _, value in choice.top] == pytest.approx(expected.topk(3).values.tolist())


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_row_that_is_not_finite_is_named_and_the_others_go_on(wrong: float) -> None:
    scores = logits(3)
    scores[1, 4] = wrong
    samplers = [Sampler(Sampling(temperature=one, num_logprobs=1)) for one in (0.0, 1.0, 1.0)]
    found = choose(scores, samplers)
    assert found[1] is None and found[0] is not None and found[2] is not None


def test_a_mask_that_allows_nothing_is_no_choice() -> None:
    sampler = Sampler(Sampling())
    sampler.allowed = torch.zeros(V, dtype=torch.bool)
    assert choose(logits(), [sampler]) == [None]


def test_ids_without_logprobs_carry_none() -> None:
    assert choose(torch.eye(3), [Sampler(Sampling())] * 3) == [Choice(0), Choice(1), Choice(2)]


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1.0}, {"temperature": math.nan}, {"top_p": 0.0}, {"top_p": 1.1},
        {"top_k": -1}, {"min_p": 2.0}, {"repetition_penalty": 0.0},
        {"presence_penalty": math.nan}, {"logit_bias": {1: math.inf}},
    ],
)  # fmt: skip
def test_settings_without_meaning_are_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        Sampling(**settings)


def test_seeds_of_either_sign_draw_apart() -> None:
    draws = {Sampler(Sampling(temperature=1, seed=seed)).uniform for seed in range(-3, 4)}
    assert len(draws) == 7
