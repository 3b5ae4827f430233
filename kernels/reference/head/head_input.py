"""Definition of head_input."""

import torch

from ..forward.coded import values_of


def head_input(
    input_ids: torch.Tensor,
    weight: torch.Tensor,
    features: torch.Tensor,
    places: torch.Tensor | None,
    ends: torch.Tensor | None,
    embedded_norm: torch.Tensor,
    feature_norm: torch.Tensor,
    eps: float,
    keeps_norm: bool,
    x: torch.Tensor,
    residual: torch.Tensor,
    scales: torch.Tensor | None = None,
    group: int = 32,
) -> None:
    """Row by row: norm(weight[id]), norm(feature) into x, the feature or its norm into residual."""
    hidden = features.shape[1]

    def normed(row: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        return row * (row.square().mean() + eps).rsqrt() * norm.float()

    if places is not None:
        fed = list(enumerate(places.tolist()))
    else:
        assert ends is not None
        fed = [(int(ends[b]), b) for b in range(len(features)) if ends[b + 1] > ends[b]]
    for row, source in fed:
        token = int(input_ids[row].clamp(0, weight.shape[0] - 1)) if source >= 0 else 0
        picked = None if scales is None else scales[:, token : token + 1]
        embedded = values_of(weight[token : token + 1], picked, group, hidden)[0].float()
        feature = features[source].float() if source >= 0 else torch.zeros_like(features[0]).float()
        own = normed(feature, feature_norm)
        x[row, :hidden] = normed(embedded, embedded_norm).to(x.dtype)
        x[row, hidden:] = own.to(x.dtype)
        residual[row] = own if keeps_norm else feature
