"""Definition of keep_rows."""

import torch


def keep_rows(
    x: torch.Tensor,
    out: torch.Tensor,
    sources: torch.Tensor | None = None,
    places: torch.Tensor | None = None,
    norm: torch.Tensor | None = None,
    eps: float = 0.0,
) -> None:
    """out[places[i]] = x[sources[i]], normed with norm; places below 0 keep nothing."""
    named = sources if sources is not None else places
    for i in range(len(x) if named is None else len(named)):
        place = i if places is None else int(places[i])
        row = x[i if sources is None else int(sources[i])].float()
        if norm is not None:
            row = row * (row.square().mean() + eps).rsqrt() * norm.float()
        if place >= 0:
            out[place] = row.to(out.dtype)
