"""Label-free metrics of representations, per layer: how spread out, flat or invariant they are.

They are computed on a seeded sample of the corpus, in a pass of their own through the same hooks
as the embeddings: the sample is small, and this way an extraction that was killed and resumed
ends with the metrics of an uninterrupted one. Token states are reduced in the hooks, so no layer's
token states are kept. Everything is on the model's device, in float64 from the hooks on.

Notation: x_t is the state of token t of a text with n tokens, D the hidden size; X [N, D] holds
the mean-pooled states of the N texts of the sample (a prefix that takes no part in pooling takes
no part here). "Centred unit rows" are what the layer-by-layer study feeds to its entropies: rows
minus their mean, then each divided by its length.

The study: Skean et al., 2025, "Layer by Layer: Uncovering Hidden Representations in Language
Models", https://arxiv.org/abs/2502.02013. Its published code differs from its formulas in two
places, and the formulas are followed here: it sets negative entries of Gram matrices to 0, and it
takes the absolute value of the cosine in the curvature.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from batchsweep.forward.architecture import LoadedCheckpoint
from batchsweep.forward.forward import MakeReducer, reduced_states
from batchsweep.forward.pooling import Pooler
from batchsweep.numerics import one_compute_thread

Floats = npt.NDArray[np.float64]

#: Divisors of an entropy of N rows in D dimensions, by the study's names.
NORMALISATIONS: Mapping[str, Callable[[float, float], float]] = {
    "maxEntropy": lambda rows, hidden: min(math.log(rows), math.log(hidden)),
    "logN": lambda rows, hidden: math.log(rows),
    "logD": lambda rows, hidden: math.log(hidden),
    "logNlogD": lambda rows, hidden: math.log(rows) * math.log(hidden),
}
#: Ridge of the log-determinant, relative to the mean variance of a dimension.
RIDGE = 1e-6
#: What LiDAR adds to the diagonal of the within-text scatter (equation 2 of its paper).
LIDAR_DELTA = 1e-4
#: Temperature of InfoNCE, and shuffles of DiME, as in the study.
TEMPERATURE, SHUFFLES = 0.1, 10


def sample_rows(texts: int, sample: int, seed: int) -> npt.NDArray[np.int64]:
    """The corpus rows that the metrics are computed on: seeded, sorted, without repetition."""
    rows = np.random.default_rng(seed).choice(texts, size=min(sample, texts), replace=False)
    return np.sort(rows).astype(np.int64)


@one_compute_thread()
def representation_metrics(
    loaded: LoadedCheckpoint,
    token_ids: Sequence[npt.ArrayLike],
    *,
    layers: Sequence[int],
    layer_output: str,
    batch_tokens: int,
    prefix_lengths: npt.ArrayLike | None = None,
    views: tuple[Sequence[npt.ArrayLike], Sequence[npt.ArrayLike]] | None = None,
) -> dict[str, Floats]:
    """All metrics of a sample of texts, float64 [layer] by name.

    Args:
        loaded, layers, layer_output, batch_tokens, prefix_lengths: as in
            :func:`batchsweep.forward.forward.pooled_states`.
        token_ids: Token ids of each text of the sample, [text] of int [token].
        views: Token ids of two augmented versions of each text, for InfoNCE, DiME and LiDAR.

    Returns:
        ``prompt_entropy``, ``curvature`` (averages over the texts that are long enough; NaN if
        none is), ``dataset_entropy``, ``effective_rank``, ``anisotropy``, ``mean_cosine``,
        ``log_det_covariance``, ``spectral_norm``; with views also ``infonce``,
        ``infonce_mi``, ``dime``, ``lidar``. Entropies are in nats; behind them come the same
        divided as the study does, such as ``prompt_entropy_logN``.

    Raises:
        IndexFailed: as :func:`batchsweep.forward.forward.pooled_states`.
    """

    def run(
        texts: Sequence[npt.ArrayLike], prefixes: npt.ArrayLike | None, *, tokens: bool
    ) -> dict[str, Floats]:
        return _reduce(loaded, texts, layers, layer_output, batch_tokens, prefixes, tokens=tokens)

    reduced = run(token_ids, prefix_lengths, tokens=True)
    lengths = reduced["tokens"][0]
    metrics: dict[str, Floats] = {}
    scaled: dict[str, Floats] = {}
    # A single token has no spread, and two have no angle.
    spread, bent = lengths >= 2, lengths >= 3
    metrics["prompt_entropy"] = _mean(reduced["prompt_entropy"][:, spread])
    for key, divisor in NORMALISATIONS.items():
        divisors = np.array([divisor(n, loaded.hidden) for n in lengths[spread]])
        scaled[f"prompt_entropy_{key}"] = _mean(reduced["prompt_entropy"][:, spread] / divisors)
    metrics["curvature"] = _mean(reduced["curvature"][:, bent])

    states_LND = torch.from_numpy(reduced["mean"]).to(loaded.device)
    per_layer = [dataset_metrics(states_ND) for states_ND in states_LND]
    if views is not None:
        both = [run(view, None, tokens=False)["mean"] for view in views]
        a_LND, b_LND = (torch.from_numpy(v).to(loaded.device) for v in both)
        for values, a_ND, b_ND in zip(per_layer, a_LND, b_LND, strict=True):
            values.update(view_metrics(a_ND, b_ND))
    for name in per_layer[0]:
        metrics[name] = np.array([values[name] for values in per_layer])
        if name in ("dataset_entropy", "dime", "lidar"):
            for key, divisor in NORMALISATIONS.items():
                by = divisor(len(lengths), loaded.hidden)
                scaled[f"{name}_{key}"] = metrics[name] / by if by else np.full(len(layers), np.nan)
    return metrics | scaled


def dataset_metrics(states_ND: torch.Tensor) -> dict[str, float]:
    """The metrics of one layer's pooled states [text, hidden], by name."""
    states_ND = states_ND.double()
    centred_ND = states_ND - states_ND.mean(dim=0)
    variances = _eigenvalues(centred_ND) / max(len(states_ND) - 1, 1)
    return {
        "dataset_entropy": float(matrix_entropy(centred_unit_rows(states_ND))),
        "effective_rank": float(effective_rank(variances)),
        "anisotropy": float(anisotropy(variances)),
        "mean_cosine": float(mean_cosine(states_ND)),
        "log_det_covariance": float(log_det_covariance(variances, states_ND.shape[1])),
        "spectral_norm": float(variances.max()),
    }


def view_metrics(a_ND: torch.Tensor, b_ND: torch.Tensor) -> dict[str, float]:
    """The metrics of one layer's pooled states of two views of the same texts, by name."""
    a_ND, b_ND = centred_unit_rows(a_ND.double()), centred_unit_rows(b_ND.double())
    loss = float(infonce(a_ND, b_ND))
    return {
        "infonce": loss,
        "infonce_mi": math.log(len(a_ND)) - loss,
        "dime": float(dime(a_ND, b_ND)),
        "lidar": float(lidar(a_ND, b_ND)),
    }


def centred_unit_rows(rows: torch.Tensor) -> torch.Tensor:
    """Rows [row, hidden] minus their mean, each scaled to length 1; a zero row stays zero."""
    centred = rows - rows.mean(dim=0)
    return _unit(centred)


def matrix_entropy(rows: torch.Tensor) -> torch.Tensor:
    """Matrix-based entropy in nats: -sum_i p_i ln p_i, p = eigenvalues of K / tr K, K = Z Z^T.

    The limit alpha -> 1 of the matrix-based Rényi entropy S_alpha(Z) = ln(sum_i p_i^alpha) /
    (1 - alpha); Sanchez Giraldo, Rao & Principe, 2015, "Measures of Entropy from Data Using
    Infinitely Divisible Kernels"; the study's definition too. 0 for rows that are all zero.

    Args:
        rows: Z [..., row, hidden]; rows of zeros (padding) change nothing.
    """
    return _entropy(_eigenvalues(rows))


def curvature(states_BTD: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Mean angle in radians between successive steps v_t = x_(t+1) - x_t of a text, [text].

    C = 1/(n-2) sum_t arccos(v_(t+1) . v_t / (|v_(t+1)| |v_t|)); Hosseini & Fedorenko, 2023,
    "Large language models implicitly learn to straighten neural sentence trajectories", on the
    states as they are. A step of length 0 counts as no turn. 0 for a text of less than 3 tokens.
    """
    step_BTD = _unit(states_BTD[:, 1:] - states_BTD[:, :-1])
    before_BTD, after_BTD = step_BTD[:, :-1], step_BTD[:, 1:]
    # 2 atan2(|u - v|, |u + v|) is the arccos that does not lose half its digits near 0 and pi.
    angle_BT = 2 * torch.atan2(
        (after_BTD - before_BTD).norm(dim=2), (after_BTD + before_BTD).norm(dim=2)
    )
    moves_BT = (before_BTD != 0).any(dim=2) & (after_BTD != 0).any(dim=2)
    whole_BT = mask_BT[:, 2:] & mask_BT[:, 1:-1] & mask_BT[:, :-2]
    turns = torch.where(moves_BT & whole_BT, angle_BT, 0.0)
    mean_B: torch.Tensor = turns.sum(dim=1) / whole_BT.sum(dim=1).clamp(min=1)
    return mean_B


def effective_rank(variances: torch.Tensor) -> torch.Tensor:
    """exp(-sum_i p_i ln p_i) with p_i = sigma_i / sum sigma, sigma the singular values of X.

    Roy & Vetterli, 2007, "The effective rank: A measure of effective dimensionality"; X centred.

    Args:
        variances: Squared singular values, up to a factor.
    """
    return _entropy(variances.sqrt()).exp()


def anisotropy(variances: torch.Tensor) -> torch.Tensor:
    """sigma_1^2 / sum_i sigma_i^2, the share of the first direction; X centred.

    Razzhigaev et al., 2024, "The Shape of Learning: Anisotropy and Intrinsic Dimensions in
    Transformer-Based Models". 0 if all texts have one and the same state.
    """
    return variances.max() / variances.sum().clamp(min=torch.finfo(variances.dtype).tiny)


def mean_cosine(states_ND: torch.Tensor) -> torch.Tensor:
    """Average cosine of two different texts' states, not centred: 1/(N(N-1)) sum_(i != j) cos.

    Ethayarajh, 2019, "How Contextual are Contextualized Word Representations?",
    over all pairs of the sample. 0 for a single text.
    """
    unit_ND = _unit(states_ND)
    pairs = len(unit_ND) * (len(unit_ND) - 1)
    return (unit_ND.sum(dim=0).square().sum() - unit_ND.square().sum()) / max(pairs, 1)


def log_det_covariance(variances: torch.Tensor, hidden: int) -> torch.Tensor:
    """ln det(S + r I), S the covariance of X, r = 1e-6 tr(S) / D.

    Up to a constant twice the entropy of a Gaussian with that covariance (Cover & Thomas, 2006,
    "Elements of Information Theory", theorem 8.4.1). The ridge r keeps it finite where there
    are fewer texts than dimensions, and makes it shift by D ln c^2 when X is scaled by c.

    Args:
        variances: The eigenvalues of S, as many as there may be that are not 0.
        hidden: D.
    """
    ridge = (RIDGE * variances.sum() / hidden).clamp(min=torch.finfo(variances.dtype).tiny)
    return (variances + ridge).log().sum() + (hidden - len(variances)) * ridge.log()


def infonce(a_ND: torch.Tensor, b_ND: torch.Tensor) -> torch.Tensor:
    """-1/N sum_i ln(exp(a_i.b_i / tau) / sum_j exp(a_i.b_j / tau)), tau = 0.1, in nats.

    van den Oord, Li & Vinyals, 2018, "Representation Learning with Contrastive Predictive
    Coding"; ln N minus it (``infonce_mi``) bounds the mutual information of the
    views from below. ``a``, ``b``: centred unit rows.
    """
    logits = a_ND @ b_ND.T / TEMPERATURE
    return torch.nn.functional.cross_entropy(logits, torch.arange(len(a_ND), device=a_ND.device))


def dime(a_ND: torch.Tensor, b_ND: torch.Tensor) -> torch.Tensor:
    """E_P[S(A * P B P^T)] - S(A * B): what pairing the views tells, in nats.

    A, B are the views' Gram matrices (centred unit rows), * is the entrywise product, S the
    matrix-based entropy, and P a random permutation: 10 fixed ones. Skean et al., 2023, "DiME:
    Maximizing Mutual Information by a Difference of Matrix-Based Entropies".
    """
    gram_a, gram_b = a_ND @ a_ND.T, b_ND @ b_ND.T
    rng = np.random.default_rng(0)
    orders = [torch.arange(len(a_ND)), *(_permutation(rng, len(a_ND)) for _ in range(SHUFFLES))]
    joint = torch.stack([gram_a * gram_b[p][:, p] for p in (o.to(gram_b.device) for o in orders)])
    entropies = _entropy(torch.linalg.eigvalsh(joint).clamp(min=0))
    return entropies[1:].mean() - entropies[0]


def lidar(a_ND: torch.Tensor, b_ND: torch.Tensor) -> torch.Tensor:
    """-sum_i p_i ln p_i, p = normalised eigenvalues of W^(-1/2) B W^(-1/2), in nats.

    B is the scatter between texts, W the scatter within a text's two views plus 1e-4 I: Thilak
    et al., 2024, "LiDAR: Sensing Linear Probing Performance in Joint Embedding SSL
    Architectures", equations 1 to 3. The study reports this entropy; the paper, its exp.
    """
    middle_ND = (a_ND + b_ND) / 2
    middle_ND = middle_ND - middle_ND.mean(dim=0)
    count = len(a_ND)
    # W = H^T H / N + delta I, because a text's two views are (a - b) / 2 left and right of their
    # middle. By Woodbury's identity everything happens in N x N instead of D x D.
    half_ND = (a_ND - b_ND) / 2
    eye = torch.eye(count, dtype=a_ND.dtype, device=a_ND.device)
    inner = torch.linalg.solve(
        count * LIDAR_DELTA * eye + half_ND @ half_ND.T, half_ND @ middle_ND.T
    )
    whitened = (middle_ND @ middle_ND.T - (half_ND @ middle_ND.T).T @ inner) / LIDAR_DELTA
    return _entropy(torch.linalg.eigvalsh((whitened + whitened.T) / 2).clamp(min=0))


def _reduce(
    loaded: LoadedCheckpoint,
    texts: Sequence[npt.ArrayLike],
    layers: Sequence[int],
    layer_output: str,
    batch_tokens: int,
    prefix_lengths: npt.ArrayLike | None,
    *,
    tokens: bool,
) -> dict[str, Floats]:
    """Per layer and text: mean-pooled states; with ``tokens`` also what is made of token states."""
    prefixes = None if prefix_lengths is None else np.asarray(prefix_lengths, dtype=np.int64)

    def make_reducer(
        mask_BT: torch.Tensor, positions: npt.NDArray[np.int64]
    ) -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
        prefix_B = None
        if prefixes is not None:
            prefix_B = torch.from_numpy(prefixes[positions]).to(mask_BT.device)
        pooler = Pooler(mask_BT, ["mean"], prefix_B)
        real_BT = pooler.pooled_BT
        count_B = real_BT.sum(dim=1).double()

        def reduce(states_BTD: torch.Tensor) -> dict[str, torch.Tensor]:
            out = {"mean": pooler(states_BTD)["mean"].double()}
            if tokens:
                states_BTD = states_BTD.double()
                mean_BD = (states_BTD * real_BT[:, :, None]).sum(dim=1) / count_B[:, None]
                rows_BTD = _unit(states_BTD - mean_BD[:, None]) * real_BT[:, :, None]
                out["prompt_entropy"] = matrix_entropy(rows_BTD)
                out["curvature"] = curvature(states_BTD, real_BT)
                out["tokens"] = count_B
            return out

        return reduce

    out: dict[str, Floats] = {}
    for positions, reduced in reduced_states(
        loaded,
        texts,
        layers=layers,
        layer_output=layer_output,
        batch_tokens=batch_tokens,
        make_reducer=MakeReducer(make_reducer),
    ):
        for name, values in reduced.items():
            shape = (len(layers), len(texts), *values.shape[2:])
            out.setdefault(name, np.empty(shape))[:, positions] = values
    return out


def _eigenvalues(rows: torch.Tensor) -> torch.Tensor:
    """Eigenvalues of Z^T Z, those that may be other than 0, of Z [..., row, hidden]."""
    # Z Z^T and Z^T Z share them; the smaller one is cheaper.
    wide = rows.shape[-2] <= rows.shape[-1]
    gram = rows @ rows.mT if wide else rows.mT @ rows
    eigenvalues: torch.Tensor = torch.linalg.eigvalsh(gram)
    return eigenvalues.clamp(min=0)


def _entropy(weights: torch.Tensor) -> torch.Tensor:
    """-sum p ln p over the last axis, p = weights / their sum; 0 where all weights are 0."""
    total = weights.sum(dim=-1, keepdim=True)
    p = weights / torch.where(total > 0, total, 1.0)
    entropy: torch.Tensor = -torch.xlogy(p, p).sum(dim=-1)
    return entropy


def _unit(rows: torch.Tensor) -> torch.Tensor:
    length = rows.norm(dim=-1, keepdim=True)
    return rows / torch.where(length > 0, length, 1.0)


def _permutation(rng: np.random.Generator, size: int) -> torch.Tensor:
    return torch.from_numpy(rng.permutation(size))


def _mean(values_LN: Floats) -> Floats:
    """Mean over texts; NaN, without a warning, over none."""
    count = values_LN.shape[1]
    return values_LN.mean(axis=1) if count else np.full(len(values_LN), np.nan)
