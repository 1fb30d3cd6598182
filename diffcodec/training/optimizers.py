"""Muon for hidden matrices, AdamW for the rest."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffcodec.networks.experts import ExpertDenoisers
from diffcodec.training.config import TrainConfig

OF_THE_DEVICE = ("fused", "foreach", "capturable")  # settings of optimizers, not of a run


class StackedMuon(torch.optim.Muon):
    """Muon of all matrices of one shape at once, for devices that many small products leave idle.

    Its state is that of :class:`torch.optim.Muon`.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Change the weights by their gradients."""
        assert closure is None
        for group in self.param_groups:
            weights: list[Tensor] = []
            gradients: list[Tensor] = []
            buffers: list[Tensor] = []
            self._init_group(group, weights, gradients, buffers)
            if not weights:
                continue
            rate, momentum = group["lr"], group["momentum"]
            torch._foreach_lerp_(buffers, gradients, 1 - momentum)
            updates = torch._foreach_lerp(gradients, buffers, momentum)
            torch._foreach_mul_(weights, 1 - rate * group["weight_decay"])
            alike: dict[torch.Size, list[int]] = {}
            for i, weight in enumerate(weights):
                alike.setdefault(weight.shape, []).append(i)
            for shape, members in alike.items():
                stacked = torch.stack([updates[i] for i in members])
                turned = orthogonal(stacked, group["ns_coefficients"], group["ns_steps"])
                factor = -rate * 0.2 * max(shape) ** 0.5  # as AdamW's
                torch._foreach_add_([weights[i] for i in members], turned.unbind(), alpha=factor)


def orthogonal(matrices: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """About the nearest matrices with singular values of 1, by Newton-Schulz; [n, rows, columns].

    In bfloat16, as Muon has it (https://kellerjordan.github.io/posts/muon/).
    """
    a, b, c = coefficients
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if is_tall else matrices).bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if is_tall else x).float()


def make_optimizers(
    model: ExpertDenoisers, config: TrainConfig, on_gpu: bool = False
) -> list[torch.optim.Optimizer]:
    """Muon for the hidden convolutions (matrices), AdamW for everything else.

    In few kernels if it is ``on_gpu``.
    """
    hidden, other = [], []
    for name, p in model.named_parameters():
        inside = {"down", "up", "shrink", "grow", "blocks"} & set(name.split("."))
        is_hidden = bool(inside) and p.ndim == 2
        if config.optimizer == "muon" and is_hidden and "affine" not in name:
            hidden.append(p)
        else:
            other.append(p)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            other,
            config.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=config.weight_decay,
            fused=on_gpu or None,
        )
    ]
    if hidden:
        muon = StackedMuon if on_gpu else torch.optim.Muon
        optimizers.append(
            muon(
                hidden,
                config.learning_rate,
                weight_decay=config.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return optimizers


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Go on from a state that may have been saved on another kind of device."""
    own = [
        {name: group[name] for name in OF_THE_DEVICE if name in group}
        for group in optimizer.param_groups
    ]
    groups = [group | mine for group, mine in zip(saved["param_groups"], own, strict=True)]
    optimizer.load_state_dict(saved | {"param_groups": groups})
