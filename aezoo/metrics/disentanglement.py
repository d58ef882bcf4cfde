"""Does each number of a code stand for one factor of the data? Four answers: MIG, SAP, DCI and the FactorVAE score.

All take codes z (N, K) and a table of factors (N, F): whole numbers are classes, floating-point columns are cut into `bins` classes of
equal width. Factors that never vary are left out. A comparison of the answers: arXiv:1811.12359.

Legend: N samples, K numbers of a code, F factors, V classes of a factor, C samples of a class.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..base import positive
from ..randomness import checked_seed
from ..registry import choice
from .checks import Scores, as_tensor, checked_codes, jackknife, proportion

Sampler = Callable[[int, int, torch.Generator], Any]
GROUPS = 10  # of samples, for the jackknife
CHUNK = 2**24  # numbers of codes held at once by the FactorVAE score


# ----------------------------------------------------------------------------------------------------------------- MIG


def mig(z: Any, factors: Any, *, bins: int = 20, seed: int = 0) -> Scores:
    """Mutual information gap (arXiv:1802.04942, eq. 6): how much more the best number knows of a factor than the second best,

        1/F sum_j (I(z_(1); v_j) - I(z_(2); v_j)) / H(v_j),     in [0, 1]

    The paper estimates I from the posterior of each sample; here, as in arXiv:1811.12359, from counts of the codes cut into `bins`
    intervals of equal width. Counts of few samples make any I a little too large, mostly for the best and the second best alike.
    With K = 1 the second best knows nothing.
    Returns {"mig"}; the error is the jackknife's over ten groups of samples, which are drawn by `seed`.
    Raises ValueError or TypeError for codes and factors that do not fit each other, and where no factor varies."""
    z, table = _checked(z, factors, bins)
    cut = binned(z, bins)
    group = torch.randperm(len(z), generator=torch.Generator().manual_seed(checked_seed(seed))).to(z.device) % GROUPS
    parts = [_gap(cut[group != g], table[group != g]) for g in range(GROUPS)] if len(z) >= 10 * GROUPS else []
    whole = _gap(cut, table)
    return {"mig": (whole, jackknife(whole, parts), len(z))}


def binned(z: Tensor, bins: int) -> Tensor:
    """Each column cut into `bins` intervals of equal width between its lowest and highest value: (N, K) -> (N, K) int64."""
    low, high = z.aminmax(dim=0)
    width = torch.where(high > low, high - low, 1.0)
    return ((z - low) / width * positive("bins", bins)).long().clamp(0, bins - 1)


def mutual_information(a: Tensor, b: Tensor) -> Tensor:
    """I(a_i; b_j) in nats, from counts: whole numbers from 0 on, (N, K) and (N, F) -> (K, F) float64 on the CPU."""
    bins, out = int(a.max()) + 1, []
    offset = torch.arange(a.shape[1], device=a.device) * bins
    for column in b.T:
        values = int(column.max()) + 1
        cells = (a + offset) * values + column[:, None]  # (N, K), each code in a table of its own
        counts = torch.bincount(cells.flatten(), minlength=a.shape[1] * bins * values)
        p = counts.view(a.shape[1], bins, values).cpu().double() / len(a)
        independent = p.sum(2, keepdim=True) * p.sum(1, keepdim=True)
        out.append(torch.special.xlogy(p, p / independent.clamp_min(1e-300)).sum((1, 2)))
    return torch.stack(out, 1)


def _gap(cut: Tensor, table: Tensor) -> float:
    entropy = mutual_information(table, table).diagonal()  # I(v; v) = H(v)
    known = mutual_information(cut, table).sort(0, descending=True).values
    second = known[1] if len(known) > 1 else torch.zeros_like(entropy)
    varies = entropy > 0
    return float(((known[0] - second)[varies] / entropy[varies]).mean())


# ----------------------------------------------------------------------------------------------------------------- SAP


def sap(z: Any, factors: Any, *, bins: int = 20, samples: int = 10_000, seed: int = 0) -> Scores:
    """Separated attribute predictability (arXiv:1711.00848, section 3): the gap between the accuracies with which the best and the
    second best single number of the code tell a factor, averaged over the factors.

    The classifier on one number is V - 1 thresholds, found greedily (a decision tree of V leaves), and accuracy is the mean over a factor's
    classes of the accuracy in each, on the third of the samples that the thresholds were not fitted to. (The paper fits its scores and
    reads them on the same samples, and takes the squared correlation where a factor is a real number.)
    "sap" is at most 1 - 1/V, since the second best has a chance of 1/V; "sap_corrected" divides each factor's gap by that: 1 at best.
    The errors are those of the held-out samples, the thresholds taken as given. At most `samples` samples count, drawn by `seed`.
    Raises ValueError or TypeError for codes and factors that do not fit each other, and where no factor varies."""
    from sklearn.tree import DecisionTreeClassifier

    z, table = _checked(z, factors, bins)
    fitted, judged = _split(len(z), samples, seed)
    z, table = z.double().cpu(), table.cpu()
    gaps, corrected = [], []  # what each held-out sample adds, (n,) a factor
    for column in table.T:
        y, answers = column[fitted].numpy(), column[judged]
        right = []
        for code in z.T:
            tree = DecisionTreeClassifier(max_leaf_nodes=len(column.unique()), class_weight="balanced", random_state=0)
            tree.fit(code[fitted, None].numpy(), y)
            right.append(torch.from_numpy(tree.predict(code[judged, None].numpy())) == answers)
        classes, which, counts = answers.unique(return_inverse=True, return_counts=True)
        weight = len(judged) / (len(classes) * counts[which].double())  # its mean is 1
        scores = torch.stack(right).double() * weight  # (K, n)
        order = scores.mean(1).argsort(descending=True, stable=True)
        second = scores[order[1]] if len(scores) > 1 else weight / len(classes)  # of no second number, chance
        gaps.append(scores[order[0]] - second)
        corrected.append(gaps[-1] / max(1 - 1 / len(classes), 1e-12))
    found = {"sap": torch.stack(gaps).mean(0), "sap_corrected": torch.stack(corrected).mean(0)}
    return {name: _mean(each) for name, each in found.items()}


# ----------------------------------------------------------------------------------------------------------------- DCI


def dci(
    z: Any,
    factors: Any,
    *,
    learner: str = "forest",
    bins: int = 20,
    samples: int = 5_000,
    trees: int = 20,
    seed: int = 0,
) -> Scores:
    """Disentanglement, completeness and informativeness (Eastwood & Williams 2018).

    A classifier of each factor j gives importances R_ij >= 0 of the numbers i of the code. With P_ij = R_ij / sum_j R_ij and
    Q_ij = R_ij / sum_i R_ij,

        disentanglement = sum_i w_i (1 + sum_j P_ij log_F P_ij), w_i = sum_j R_ij / sum_ij R_ij     1: a number tells one factor only
        completeness    = 1/F sum_j (1 + sum_i Q_ij log_K Q_ij)                                     1: one number tells the factor
        informativeness = mean accuracy of the classifiers on a third of the samples that they have not seen

    learner: "forest" (a random forest of `trees` trees; every split looks at all numbers, so that no importance leaks to those that
    tell nothing) or "boosting" (gradient boosting in `trees` stages, far slower). R is the trees' decrease of impurity; it sums to 1 for each
    factor. The paper takes the lasso, or forests, and reports an error instead of the accuracy, whose chance is 1/V.
    Returns {"dci_disentanglement", "dci_completeness", "dci_informativeness"}: the last has the error of its held-out samples, the first two
    belong to all of the forests and have none: NaN. With one factor disentanglement means nothing, with one number completeness: NaN.
    At most `samples` samples count, drawn by `seed`, which also grows the trees.
    Raises ValueError or TypeError for codes and factors that do not fit each other, and where no factor varies."""
    from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier

    choice("learner", learner, ["forest", "boosting"])
    z, table = _checked(z, factors, bins)
    fitted, judged = _split(len(z), samples, seed)
    z, table = z.double().cpu(), table.cpu()
    importance, right = [], []
    for j, column in enumerate(table.T):
        state = (checked_seed(seed) + j) % 2**32
        if learner == "forest":
            model: Any = RandomForestClassifier(positive("trees", trees), max_features=None, random_state=state)
        else:
            model = GradientBoostingClassifier(n_estimators=positive("trees", trees), random_state=state)
        model.fit(z[fitted].numpy(), column[fitted].numpy())
        importance.append(torch.from_numpy(model.feature_importances_))
        right.append(torch.from_numpy(model.predict(z[judged].numpy())) == column[judged])
    disentangled, complete = concentration(torch.stack(importance, 1))
    return {
        "dci_disentanglement": (disentangled, math.nan, len(fitted)),
        "dci_completeness": (complete, math.nan, len(fitted)),
        "dci_informativeness": _mean(torch.stack(right).double().mean(0)),
    }


def concentration(importance: Tensor) -> tuple[float, float]:
    """(disentanglement, completeness) of importances (K, F), as `dci` defines them."""

    def spread(p: Tensor) -> Tensor:  # entropies of the rows, in units of the largest possible one
        p = p / p.sum(1, keepdim=True).clamp_min(1e-300)
        return -torch.special.xlogy(p, p).sum(1) / math.log(p.shape[1]) if p.shape[1] > 1 else p.sum(1) * math.nan

    weight = importance.sum(1) / importance.sum()
    disentangled = float((weight * (1 - spread(importance))).sum())
    return disentangled, float((1 - spread(importance.T)).mean())


# ------------------------------------------------------------------------------------------------------ FactorVAE score


def factor_vae_score(
    z: Any,
    factors: Any = None,
    *,
    sampler: Sampler | None = None,
    num_factors: int | None = None,
    votes: int = 800,
    batch: int = 64,
    bins: int = 20,
    seed: int = 0,
) -> Scores:
    """The metric of FactorVAE (arXiv:1802.05983, section 4).

    A vote: draw a factor, fix it at a value, take a `batch` of codes that have it, and name the number of the code whose variance
    among them, over its variance in all of z, is smallest. A classifier that says for each number the factor which most of `votes`
    votes were about is judged on as many new votes. (The paper judges on the votes that it counted, which flatters a little.)

    Batches come from the table of factors (the value of a sample at random, then samples that share it, drawn with replacement), or from
    `sampler(factor, n, generator)`, which returns n codes with that factor fixed at a random value; then give `num_factors`.
    Numbers of the code that never vary are left out.
    Returns {"factor_vae_score"}, by chance 1/F, and {"factor_vae_score_corrected"}, (score - 1/F) / (1 - 1/F), by chance 0; the errors are
    binomial over the judged votes. A function of its arguments and `seed`.
    Raises ValueError or TypeError for codes and factors that do not fit each other, where fewer than two factors vary, or nothing
    in the codes."""
    g = torch.Generator().manual_seed(checked_seed(seed))
    for name, value in (("votes", votes), ("batch", batch)):
        positive(name, value)
    if batch < 2:
        raise ValueError(f"batch={batch!r} must be at least 2: one code has no variance")
    if (factors is None) == (sampler is None):
        raise ValueError("factor_vae_score needs either a table of factors, or a sampler with num_factors")
    table = None
    if sampler is None:
        z, table = _checked(z, factors, bins)
        number = table.shape[1]
    else:
        z, number = checked_codes("z", z), positive("num_factors", num_factors)
    if number < 2:
        raise ValueError(f"the FactorVAE score tells factors apart; {number} varies")
    variance = z.var(0)
    alive = variance > 1e-10 * variance.max()
    if not bool(alive.any()):
        raise ValueError("no number of the codes varies")
    about = torch.randint(number, (2 * votes,), generator=g)
    named = torch.empty(2 * votes, dtype=torch.long)
    for j in range(number):
        mine = (about == j).nonzero()[:, 0]
        if table is not None:
            spread = _spread_in_table(z[:, alive], table[:, j], len(mine), batch, g)
        else:
            spread = (
                torch.stack([_spread_of(sampler, j, batch, g, z)[alive] for _ in mine]) if len(mine) else z[:0, alive]
            )
        named[mine] = (spread / variance[alive]).argmin(1).cpu()
    cells = torch.bincount(named[:votes] * number + about[:votes], minlength=int(alive.sum()) * number)
    said = cells.view(-1, number).argmax(1)
    score, error, n = proportion(float((said[named[votes:]] == about[votes:]).double().mean()), votes)
    chance = 1 / number
    corrected = (score - chance) / (1 - chance), error / (1 - chance), n
    return {"factor_vae_score": (score, error, n), "factor_vae_score_corrected": corrected}


def _spread_of(sampler: Any, factor: int, batch: int, g: torch.Generator, z: Tensor) -> Tensor:
    """Variances (K,) of one batch of a sampler of the user's own."""
    codes = checked_codes("what the sampler returns", sampler(factor, batch, g), z.shape[1])
    return codes.to(z).var(0)


def _spread_in_table(z: Tensor, factor: Tensor, votes: int, batch: int, g: torch.Generator) -> Tensor:
    """Variances of batches of rows that share a value of the factor, (votes, K)."""
    order = factor.argsort(stable=True)  # rows of equal value lie side by side
    counts = torch.bincount(factor)
    start = counts.cumsum(0) - counts
    able = factor[counts[factor] > 1]  # a value that one sample has alone has no variance
    if not len(able):
        raise ValueError("no two samples share the value of a factor; the FactorVAE score needs some that do")
    out = []
    for part in torch.arange(votes).split(max(1, CHUNK // (batch * z.shape[1]))):
        value = able[torch.randint(len(able), (len(part),), generator=g).to(z.device)]
        share = torch.rand(len(part), batch, generator=g, dtype=torch.float64)
        within = (share * counts[value][:, None].cpu()).long().to(z.device)
        rows = order[start[value][:, None] + within]  # (votes, batch)
        out.append(z[rows].var(1))
    return torch.cat(out) if out else z[:0]


# -------------------------------------------------------------------------------------------------------------- shared


def _checked(z: Any, factors: Any, bins: int) -> tuple[Tensor, Tensor]:
    """Codes (N, K), and the factors that vary as classes 0, 1, ..., (N, F)."""
    z = checked_codes("z", z)
    table = as_tensor("factors", factors).detach().to(z.device)
    if table.dim() != 2 or len(table) != len(z) or table.is_complex():
        raise ValueError(
            f"factors must be a table of a row for each code, ({len(z)}, F); got {table.dtype} of shape {tuple(table.shape)}"
        )
    if table.is_floating_point():
        if not bool(torch.isfinite(table).all()):
            raise ValueError("factors hold NaN or infinity")
        table = binned(table.float() if table.dtype != torch.float64 else table, bins)
    columns = [column.unique(return_inverse=True)[1] for column in table.T]
    columns = [column for column in columns if int(column.max()) > 0]
    if not columns:
        raise ValueError("no factor varies")
    return z, torch.stack(columns, 1)


def _split(n: int, samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Positions to fit and to judge, two thirds and one third of at most `samples` that `seed` draws."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(checked_seed(seed)))[
        : positive("samples", samples)
    ]
    held = len(order) // 3
    if held < 1:
        raise ValueError(f"{len(order)} samples are too few to hold a third out")
    return order[held:], order[:held]


def _mean(each: Tensor) -> tuple[float, float, int]:
    """Mean of what each sample adds, with its standard error."""
    n = len(each)
    return float(each.mean()), float(each.std()) / math.sqrt(n) if n > 1 else math.nan, n
