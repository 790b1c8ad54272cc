"""The optimizers of mechrep-tiny: Muon makes induction form early, and then gives the attention matrices to AdamW."""

from __future__ import annotations

import torch
from torch import nn

from scripts.train_tiny.recipe import Recipe

_HANDOVER_STEPS = 200  # in which AdamW warms up on the attention matrices


class Optimizers:
    """Steps all optimizers of one run at the learning rates that the recipe gives for a step.

    Muon orthogonalizes each update, so that many directions of a query-key product grow at the same rate.  That is what
    lets previous-token and induction heads form within a few million tokens.  It also works against the few large
    directions by which heads rest on the first position, so it stops after ``recipe.muon_steps``.
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        attention = [p for name, p in model.named_parameters() if "self_attn" in name and p.ndim == 2]
        chosen = {id(p) for p in attention}
        rest = [p for p in model.parameters() if id(p) not in chosen]
        decay = recipe.weight_decay
        self.recipe = recipe
        self.muon = torch.optim.Muon(attention, lr=recipe.muon_learning_rate, weight_decay=decay, momentum=0.95)
        self.rest = torch.optim.AdamW(rest, lr=recipe.learning_rate, weight_decay=decay, betas=(0.9, 0.95))
        self.attention = torch.optim.AdamW(attention, lr=recipe.learning_rate, weight_decay=decay, betas=(0.9, 0.95))

    def all(self) -> list[torch.optim.Optimizer]:
        """In a fixed order, for checkpoints."""
        return [self.muon, self.rest, self.attention]

    def step(self, step: int) -> None:
        """Update the weights and clear the gradients."""
        recipe = self.recipe
        factor = recipe.learning_rate_factor(step)
        rates: list[tuple[torch.optim.Optimizer, float]] = [(self.rest, recipe.learning_rate * factor)]
        if step < recipe.muon_steps:
            rates.append((self.muon, recipe.muon_learning_rate * factor))
        else:
            warm = min(1.0, (step - recipe.muon_steps + 1) / _HANDOVER_STEPS)
            rates.append((self.attention, recipe.learning_rate * factor * warm))
        for optimizer, rate in rates:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        for optimizer in self.all():
            optimizer.zero_grad(set_to_none=True)
