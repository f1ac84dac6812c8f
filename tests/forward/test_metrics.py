"""Label-free metrics: against plain float64 numpy, one text at a time, and known answers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from architectures import random_model

from batchsweep.forward import metrics as m
from batchsweep.forward.architecture import describe
from batchsweep.forward.augment import augmented

RNG = np.random.default_rng(0)
LENGTHS = (5, 9, 1, 12, 2, 3, 20, 7, 30, 9, 4, 6)
TEXTS = [RNG.integers(3, 61, n) for n in LENGTHS]
VIEWS = ([t[::-1] for t in TEXTS], [np.concatenate([t, [7]]) for t in TEXTS])


# Direct implementations: numpy, float64, loops, no shortcut.


def entropy(p):
    p = np.asarray(p)[np.asarray(p) > 1e-15]
    p = p / p.sum()
    return -(p * np.log(p)).sum()


def unit_rows(x):
    x = x - x.mean(axis=0)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def matrix_entropy(z):
    return entropy(np.linalg.eigvalsh(z @ z.T))


def curvature(x):
    v = np.diff(x, axis=0)
    angles = [
        math.acos(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1))
        for a, b in itertools.pairwise(v)
    ]
    return np.mean(angles)


def direct_dataset_metrics(x):
    n, d = x.shape
    sigma = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
    covariance = np.cov(x.T)
    cosines = [
        x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j])
        for i in range(n)
        for j in range(n)
        if i != j
    ]
    ridge = 1e-6 * np.trace(covariance) / d
    return {
        "dataset_entropy": matrix_entropy(unit_rows(x)),
        "effective_rank": math.exp(entropy(sigma)),
        "anisotropy": sigma[0] ** 2 / (sigma**2).sum(),
        "mean_cosine": np.mean(cosines),
        "log_det_covariance": np.linalg.slogdet(covariance + ridge * np.eye(d))[1],
        "spectral_norm": np.linalg.norm(covariance, 2),
    }


def direct_view_metrics(a, b):
    a, b = unit_rows(a), unit_rows(b)
    n, d = a.shape
    logits = a @ b.T / 0.1
    loss = np.mean([math.log(np.exp(logits[i]).sum()) - logits[i, i] for i in range(n)])
    rng = np.random.default_rng(0)
    shuffled = []
    for _ in range(10):
        p = rng.permutation(n)
        shuffled.append(entropy(np.linalg.eigvalsh((a @ a.T) * (b[p] @ b[p].T))))
    dime = np.mean(shuffled) - entropy(np.linalg.eigvalsh((a @ a.T) * (b @ b.T)))
    pairs = np.stack([a, b], axis=1)
    classes = pairs.mean(axis=1)
    between = np.zeros((d, d))
    within = 1e-4 * np.eye(d)
    for i in range(n):
        offset = classes[i] - pairs.mean(axis=(0, 1))
        between += np.outer(offset, offset) / n
        for j in range(2):
            within += np.outer(pairs[i, j] - classes[i], pairs[i, j] - classes[i]) / (2 * n)
    values, vectors = np.linalg.eigh(within)
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    lidar = entropy(np.linalg.eigvalsh(root @ between @ root))
    return {"infonce": loss, "infonce_mi": math.log(n) - loss, "dime": dime, "lidar": lidar}


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)])
def test_against_direct_float64(shape):
    rng = np.random.default_rng(1)
    x = rng.normal(size=shape) * rng.lognormal(size=shape[1]) + 1
    got = m.dataset_metrics(torch.from_numpy(x))
    want = direct_dataset_metrics(x)
    assert got.keys() == want.keys()
    for name in want:
        assert got[name] == pytest.approx(want[name], rel=1e-6, abs=1e-9), name
    a, b = x, x + 0.3 * rng.normal(size=shape)
    got = m.view_metrics(torch.from_numpy(a), torch.from_numpy(b))
    want = direct_view_metrics(a, b)
    assert got.keys() == want.keys()
    for name in want:
        assert got[name] == pytest.approx(want[name], rel=1e-6, abs=1e-9), name


def load(name):
    model = random_model(name)
    model.config.use_cache = False
    return describe("tiny@main", model.requires_grad_(False))


@pytest.fixture(scope="module", params=["gpt_neox", "modernbert"])
def loaded(request):
    return load(request.param)


def measure(loaded, texts=TEXTS, *, views=VIEWS, batch_tokens=64, **more):
    return m.representation_metrics(
        loaded,
        texts,
        layers=(1, 2, 3),
        layer_output="hidden_states",
        batch_tokens=batch_tokens,
        views=views,
        **more,
    )


def token_states(loaded, texts, layer):
    """[text] of float64 [token, hidden]."""
    with torch.inference_mode():
        return [
            loaded.model(input_ids=torch.tensor(t.copy())[None], output_hidden_states=True)
            .hidden_states[layer][0]
            .double()
            .numpy()
            for t in texts
        ]


def test_every_metric_of_a_model(loaded):
    got = measure(loaded)
    norms = ("maxEntropy", "logN", "logD", "logNlogD")
    for place, layer in enumerate((1, 2, 3)):
        states = token_states(loaded, TEXTS, layer)
        a, b = (np.stack([s.mean(axis=0) for s in token_states(loaded, v, layer)]) for v in VIEWS)
        x = np.stack([s.mean(axis=0) for s in states])
        want = direct_dataset_metrics(x) | direct_view_metrics(a, b)
        n, d = x.shape
        for name in ("dataset_entropy", "dime", "lidar"):
            by = (
                min(math.log(n), math.log(d)),
                math.log(n),
                math.log(d),
                math.log(n) * math.log(d),
            )
            want |= {f"{name}_{k}": want[name] / y for k, y in zip(norms, by, strict=True)}
        long = [s for s in states if len(s) >= 2]
        entropies = np.array([matrix_entropy(unit_rows(s)) for s in long])
        log_n, log_d = np.log([len(s) for s in long]), math.log(d)
        want["prompt_entropy"] = entropies.mean()
        parts = (np.minimum(log_n, log_d), log_n, log_d, log_n * log_d)
        for key, divisor in zip(norms, parts, strict=True):
            want[f"prompt_entropy_{key}"] = (entropies / divisor).mean()
        want["curvature"] = np.mean([curvature(s) for s in states if len(s) >= 3])
        assert got.keys() == want.keys()
        for name, value in want.items():
            assert got[name].dtype == np.float64
            assert got[name][place] == pytest.approx(value, rel=1e-3, abs=1e-4), (name, layer)


def test_batching_does_not_matter(loaded):
    alone, together = measure(loaded, batch_tokens=1), measure(loaded, batch_tokens=10_000)
    for name in alone:
        np.testing.assert_allclose(alone[name], together[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_prefix_takes_no_part():
    loaded = load("gpt_neox")
    prefixed = [np.concatenate([[9, 8], t]) for t in TEXTS]
    got = measure(loaded, prefixed, views=None, prefix_lengths=[2] * len(TEXTS))
    states = token_states(loaded, prefixed, 2)
    x = np.stack([s[2:].mean(axis=0) for s in states])
    assert got["anisotropy"][1] == pytest.approx(direct_dataset_metrics(x)["anisotropy"], rel=1e-4)
    want = np.mean([matrix_entropy(unit_rows(s[2:])) for s in states if len(s) >= 4])
    assert got["prompt_entropy"][1] == pytest.approx(want, rel=1e-3)


def test_texts_too_short_for_an_angle_give_nan(loaded):
    got = measure(loaded, [np.array([5]), np.array([6])], views=None)
    assert np.isnan(got["prompt_entropy"]).all() and np.isnan(got["curvature"]).all()
    assert np.isfinite(got["mean_cosine"]).all()


def test_the_sample_is_seeded_sorted_and_without_repetition():
    rows = m.sample_rows(1000, 50, seed=3)
    assert len(rows) == 50 and (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, m.sample_rows(1000, 50, seed=3))
    assert (rows != m.sample_rows(1000, 50, seed=4)).any()
    assert m.sample_rows(7, 50, seed=0).tolist() == list(range(7))


# Known answers.


def test_entropy_of_orthogonal_rows_is_ln_n_and_of_equal_rows_is_0():
    assert m.matrix_entropy(torch.eye(8, dtype=torch.float64)).item() == pytest.approx(math.log(8))
    assert m.matrix_entropy(torch.ones(8, 3, dtype=torch.float64)).item() == pytest.approx(0)
    half = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]], dtype=torch.float64)
    assert m.matrix_entropy(half).item() == pytest.approx(math.log(2))


def test_curvature_of_a_line_a_square_and_a_return():
    line = [[0.0, 0], [1, 0], [3, 0], [4, 0]]
    corner = [[0.0, 0], [1, 0], [1, 1], [0, 1]]
    back = [[0.0, 0], [1, 0], [0, 0], [1, 0]]
    still = [[0.0, 0], [0, 0], [1, 0], [1, 0]]
    states = torch.tensor([line, corner, back, still], dtype=torch.float64)
    got = m.curvature(states, torch.ones(4, 4, dtype=torch.bool))
    np.testing.assert_allclose(got, [0, math.pi / 2, math.pi, 0], atol=1e-12)
    mask = torch.tensor([[True, True, True, False]]).expand(4, 4)
    np.testing.assert_allclose(m.curvature(states, mask)[1], math.pi / 2, atol=1e-12)


def test_a_cross_of_four_texts_in_the_plane():
    # Along the axes, lengths 2 and 1: variances 8/3 and 2/3, singular values 2 to 1.
    x = torch.tensor([[2.0, 0], [-2, 0], [0, 1], [0, -1]], dtype=torch.float64)
    got = m.dataset_metrics(x)
    assert got["spectral_norm"] == pytest.approx(8 / 3)
    assert got["anisotropy"] == pytest.approx(8 / 10)
    assert got["effective_rank"] == pytest.approx(math.exp(entropy([2 / 3, 1 / 3])))
    assert got["log_det_covariance"] == pytest.approx(math.log(8 / 3 * 2 / 3), abs=1e-5)
    assert got["dataset_entropy"] == pytest.approx(math.log(2))
    assert got["mean_cosine"] == pytest.approx(-1 / 3)  # two pairs of six are opposite


def test_one_and_the_same_state_for_all_texts():
    got = m.dataset_metrics(torch.ones(5, 3))
    assert got["mean_cosine"] == pytest.approx(1)
    assert got["effective_rank"] == pytest.approx(1)
    assert got["anisotropy"] == got["spectral_norm"] == got["dataset_entropy"] == 0
    assert math.isfinite(got["log_det_covariance"])


def test_views_that_agree_and_views_that_say_nothing():
    # Rows of unit length that are orthogonal but for their mean: the simplex.
    x = torch.eye(6, dtype=torch.float64)
    same = m.view_metrics(x, x)
    cosine = -1 / 5
    loss = math.log(1 + 5 * math.exp((cosine - 1) / 0.1))
    assert same["infonce"] == pytest.approx(loss)
    assert same["infonce_mi"] == pytest.approx(math.log(6) - loss)
    assert same["lidar"] == pytest.approx(math.log(5))  # 5 equal directions between texts
    assert same["dime"] == pytest.approx(0, abs=1e-12)  # a simplex looks alike in any order
    rng = np.random.default_rng(0)
    a, noise, other = (torch.from_numpy(rng.normal(size=(64, 8))) for _ in range(3))
    related, unrelated = m.view_metrics(a, a + 0.1 * noise), m.view_metrics(a, other)
    assert related["dime"] > 0.2 > abs(unrelated["dime"])
    assert related["infonce"] < unrelated["infonce"]


def test_augmented_views_are_seeded_typing_errors():
    text = "the quick brown fox jumps over the lazy dog near the riverbank " * 4
    first, second = augmented(text, 0), augmented(text, 1)
    assert first == augmented(text, 0) and first != second
    words, original = first.split(), text.split()
    assert len(words) > len(original), "some words are split"
    assert 0.1 < sum(word in original for word in words) / len(words) < 0.9
    letters, were = first.replace(" ", ""), text.replace(" ", "")
    assert len(letters) == len(were)
    changed = np.mean([a != b for a, b in zip(letters, were, strict=True)])
    assert 0.05 < changed < 0.35
    assert augmented("", 0) == ""
