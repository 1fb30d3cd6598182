"""Muon for hidden matrices, AdamW for the rest."""

import torch

from diffcodec.networks.experts import ExpertDenoisers
from diffcodec.training.config import TrainConfig


def make_optimizers(model: ExpertDenoisers, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the hidden convolutions (matrices), AdamW for everything else."""
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
            other, config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay
        )
    ]
    if hidden:
        optimizers.append(
            torch.optim.Muon(
                hidden,
                config.learning_rate,
                weight_decay=config.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return optimizers
