"""The texts in the slots of a decoding batch, as tensors that advance by themselves: a step asks the host for nothing.

Ids are written into one table, and read back a few steps at a time.  What a text wrote beyond its end in these steps
is dropped by whoever reads them; nobody else has seen it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechrep.generation.requests import Continuation, Decoding, choose_tokens, lost
from mechrep.text.watch_rows import RowWatches, watched_in_rows


class SlotTexts:
    """Texts that are being written, one per slot.

    Args:
        slots: texts at a time.
        longest: tokens of the longest one, with those that may be written beyond its end.
        decoding: how tokens are chosen, and which rules end a text.
        device: where the texts are kept.

    Attributes:
        ids: prompts and what was written.
        next: position of the token that is fed next; in an empty slot it means nothing.
        given: tokens that were there when the text entered: up to there, none is chosen.
        rows: which row of the edit table each text has (0 in an empty slot).
        starts: first edited position of each text.
        there: whether there is a text in the slot.
        chosen_by: logits of the tokens that were chosen since the block began.
        known: whether a text may have some of the block's tokens already.
    """

    def __init__(self, slots: int, longest: int, decoding: Decoding, device: torch.device) -> None:
        self.decoding, self.device = decoding, device
        self.ids: Int[Tensor, "slot pos"] = torch.zeros(slots, longest, dtype=torch.long, device=device)
        self.next, self.given, self.rows, self.starts = torch.zeros(4, slots, dtype=torch.long, device=device)
        self.there: Bool[Tensor, " slot"] = torch.zeros(slots, dtype=torch.bool, device=device)
        self.chosen_by: list[Float[Tensor, " slot"]] = []
        self.known = True
        drawn = longest if decoding.temperature > 0 else 1
        self.uniforms: Float[Tensor, "slot pos"] = torch.zeros(slots, drawn, dtype=torch.float64, device=device)
        self.suppress = torch.tensor(sorted(decoding.suppress), dtype=torch.long, device=device)
        presets = [rule for rule in decoding.rules if rule != "eos"]
        at_once = all(isinstance(rule, str) and watched_in_rows(rule) for rule in presets)
        self.one_by_one = not at_once  # rules of the user's own look at one text after the other
        self.watches = RowWatches(presets, slots, longest, device) if presets and at_once else None  # pyright: ignore

    def enter(
        self, slots: Sequence[int], rows: Sequence[int], answers: Sequence[Continuation], fed: Sequence[int]
    ) -> None:
        """Lay texts into slots.

        Args:
            slots: where to.
            rows: of the edit table.
            answers: the texts.
            fed: tokens of each that have been read already.
        """
        for slot, answer, read in zip(slots, answers, fed, strict=True):
            text = torch.tensor(answer.ids, device=self.device)
            self.ids[slot, : len(text)] = text
            if self.watches is not None:
                self.watches.begin(slot, text[: read + 1])
            if self.decoding.temperature > 0:
                own = self.uniforms[slot, len(answer.request.prompt) :]
                drawn = torch.from_numpy(answer.uniforms)[: len(own)]
                own[: len(drawn)] = drawn
        index = torch.tensor(list(slots), device=self.device)
        numbers = [list(fed), [answer.length for answer in answers], list(rows), [a.request.start for a in answers]]
        self.next[index], self.given[index], self.rows[index], self.starts[index] = torch.tensor(
            numbers, device=self.device
        )
        self.there[index] = True

    def leave(self, slots: Sequence[int]) -> None:
        """Empty these slots."""
        index = torch.tensor(list(slots), dtype=torch.long, device=self.device)
        self.there[index], self.rows[index] = False, 0

    def keep(self, slots: Sequence[int]) -> None:
        """Drop the other slots."""
        index = torch.tensor(list(slots), device=self.device)
        for name in ("ids", "next", "given", "rows", "starts", "there", "uniforms"):
            setattr(self, name, getattr(self, name)[index])
        if self.watches is not None:
            self.watches.keep(index)

    def begin_block(self, known: bool = True) -> None:
        """Let empty slots begin at position 0 again: they are computed with the others, and nobody reads them.

        Args:
            known: whether a text may have some of the block's tokens already.
        """
        self.next, self.known, self.chosen_by = self.next * self.there, known, []

    def feed(self) -> Int[Tensor, " slot"]:
        """The token that each slot feeds now, which stands at :attr:`next`."""
        return self.ids.gather(1, self.next[:, None])[:, 0]

    def write(self, logits: Float[Tensor, "slot d_vocab"]) -> None:
        """Choose the token behind each fed one, where the text does not have it already, and step on."""
        logits = logits.to(self.device)
        if len(self.suppress):
            logits = logits.index_fill(1, self.suppress, -torch.inf)
        self.next = self.next + 1
        place = self.next[:, None]
        uniforms = self.uniforms.gather(1, place)[:, 0] if self.decoding.temperature > 0 else self.uniforms[:, 0]
        chosen, scores = choose_tokens(logits, uniforms, self.decoding.temperature, self.decoding.top_k)
        self.chosen_by.append(scores)
        chosen = chosen[:, None]
        if self.known:
            chosen = torch.where(place < self.given[:, None], self.ids.gather(1, place), chosen)
        self.ids.scatter_(1, place, chosen)

    def read(self, steps: int) -> tuple[list[list[int]], list[list[int]] | None]:
        """What was written in the last steps, with what stood there before it was fed.

        Returns:
            Ids of every slot, -1 where they were chosen by logits that are no numbers; and by each, whether a rule that
            is known here says that the text may end; ``None`` where only the text's own rules can say it.
        """
        first = self.next - steps + 1
        places = first[:, None] + torch.arange(steps, device=self.device)
        no_number = lost(torch.stack(self.chosen_by, 1)) & (places >= self.given[:, None])
        ids = self.ids.gather(1, places).masked_fill(no_number, -1)
        if self.one_by_one:
            return ids.tolist(), None
        if self.watches is None:
            return ids.tolist(), [[0] * steps] * len(ids)
        fired = self.watches.advance(self.ids, first, steps)
        both = torch.stack([ids, fired.long()]).tolist()
        return both[0], both[1]
