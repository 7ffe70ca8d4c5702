"""Which distribution do counts of one feature follow, among cells of one label?

    ISD_DATA_DIR=... python benchmarks/count_shapes.py --data sperm worm five_lines

No latents: each feature has a mean, in proportion to the cell's total, and dispersion parameters of its own. They are fitted to the
training cells of the two largest labels (split 60 / 30 / 10, seed 0) and scored on the rest, in nats a cell, against the negative
binomial, with a 95% interval over cells. Rivals:

- nb1: negative binomial whose inverse dispersion grows with the mean;
- zinb: negative binomial with zeros of its own;
- pa: a Poisson number of clumps of geometric size (Polya-Aeppli);
- nb geo: a negative binomial number of clumps of geometric size, with one mean size 1 + r for all features.

Also printed: shares of ones, twos, ... among cells with few counts, which tell the shapes apart. A minute or two for each data set on one core.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from realism import REAL, load
from torch import Tensor

#: Larger counts are rare among the features that are looked at, and are set to this.
MOST = 40
_LOG_FACTORIAL = torch.lgamma(torch.arange(0, MOST + 2, dtype=torch.float64) + 1)


def negative_binomial(x: Tensor, mean: Tensor, theta: Tensor) -> Tensor:
    ratio = mean / theta
    binomial = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    return binomial - theta * torch.log1p(ratio) - x * torch.log1p(1 / ratio)


def zero_inflated(x: Tensor, mean: Tensor, theta: Tensor, logit: Tensor) -> Tensor:
    share = torch.sigmoid(logit)
    base = negative_binomial(x, mean / (1 - share), theta)
    return torch.where(x == 0, torch.log(share + (1 - share) * base.exp()), torch.log1p(-share) + base)


def clumped(x: Tensor, number: Callable[[int], Tensor], none: Tensor, r: Tensor) -> Tensor:
    """Sum over numbers of clumps; a clump has 1 + a geometric number of counts, of mean ``r``."""
    out = none.expand_as(x).clone()
    some = x > 0
    k, p = x[some], (1 / (1 + r)).expand_as(x)[some]
    terms = []
    for i in range(1, int(k.max()) + 1):
        ways = torch.lgamma(k) - _LOG_FACTORIAL[i - 1] - torch.lgamma((k - i + 1).clamp_min(1e-9))
        term = number(i).expand_as(x)[some] + ways + i * torch.log(p) + (k - i) * torch.log1p(-p)
        terms.append(torch.where(k >= i, term, torch.full_like(term, -1e30)))
    out[some] = torch.logsumexp(torch.stack(terms), 0)
    return out


def polya_aeppli(x: Tensor, mean: Tensor, r: Tensor) -> Tensor:
    rate = mean / (1 + r)
    return clumped(x, lambda i: i * torch.log(rate) - rate - _LOG_FACTORIAL[i], -rate, r)


def nb_geometric(x: Tensor, mean: Tensor, theta: Tensor, r: Tensor) -> Tensor:
    rate = mean / (1 + r)
    one = torch.ones_like(rate)
    return clumped(x, lambda i: negative_binomial(i * one, rate, theta), -theta * torch.log1p(rate / theta), r)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["sperm", "worm", "five_lines"], choices=list(REAL))
    parser.add_argument("--labels", type=int, default=2, help="how many of the largest labels")
    parser.add_argument("--features", type=int, default=1500, help="at most so many features")
    parser.add_argument("--steps", type=int, default=120, help="of Adam")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.data:
        adata, key = load(name, 0, 0.1, 0.3)
        counts, labels = adata.layers["counts"], adata.obs[key].astype(str).to_numpy()
        training = (adata.obs["isd_split"] == "train").to_numpy()
        for label in pd.Series(labels).value_counts().index[: args.labels]:
            compare(name, label, counts[(labels == label) & training], counts[(labels == label) & ~training], args)


def compare(name: str, label: str, fitted, held, args: argparse.Namespace) -> None:
    mean = np.asarray(fitted.mean(0)).ravel()
    seen = np.asarray((fitted > 0).sum(0)).ravel()
    columns = np.flatnonzero((mean > 0.01) & (mean < 5) & (seen >= 5))[: args.features]
    few = np.round(fitted[:, np.flatnonzero((mean > 0.02) & (mean < 0.3))].data)
    shares = [float((few == k).mean()) for k in range(1, 6)]
    print(f"{name} {label}: {fitted.shape[0]} + {held.shape[0]} cells, {len(columns)} features; counts of 1, 2, ... 5 among those"
          f" not zero, features of mean 0.02 to 0.3: {np.round(shares, 3).tolist()}", flush=True)  # fmt: skip
    x, y = (torch.tensor(np.minimum(m[:, columns].toarray(), MOST), dtype=torch.float64) for m in (fitted, held))
    t, u = (torch.tensor(np.asarray(m.sum(1)), dtype=torch.float64) for m in (fitted, held))
    share = x.sum(0) / t.sum()
    zero, one = torch.zeros_like(share), torch.tensor(-1.0, dtype=torch.float64)

    def at(q: list[Tensor], total: Tensor) -> Tensor:
        return total * share * q[0].exp()

    rivals = {
        "nb": (lambda x, m, q: negative_binomial(x, m, q[1].exp()), [zero, zero]),
        "nb1": (lambda x, m, q: negative_binomial(x, m, m * q[1].exp()), [zero, zero]),
        "zinb": (lambda x, m, q: zero_inflated(x, m, q[1].exp(), q[2]), [zero, zero + 1, zero]),
        "pa": (lambda x, m, q: polya_aeppli(x, m, q[1].exp()), [zero, zero - 1]),
        "nb geo": (lambda x, m, q: nb_geometric(x, m, q[1].exp(), q[2].exp()), [zero, zero, one]),
    }
    first = None
    for rival, (log_prob, start) in rivals.items():
        q = [s.clone().requires_grad_() for s in start]
        optimizer = torch.optim.Adam(q, lr=0.1)
        for _ in range(args.steps):
            # weak pulls: means towards the pooled ones, dispersions towards each other
            pull = 20 * q[0].square().sum() + 0.1 * (q[1] - q[1].mean()).square().sum()
            loss = pull - log_prob(x, at(q, t), q).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            each = log_prob(y, at(q, u), q).sum(1)
        first = each if first is None else first
        gain = each - first
        half = 1.96 * float(gain.std()) / math.sqrt(len(gain))
        size = f", r {float(q[2].exp()):.3f}" if rival == "nb geo" else ""
        print(
            f"  {rival:7s} {float(each.mean()):9.2f} nats a cell, {float(gain.mean()):+.2f} +- {half:.2f}{size}",
            flush=True,
        )


if __name__ == "__main__":
    main()
