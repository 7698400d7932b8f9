"""How much is run at once: a memory budget that starts from an estimate and halves where memory runs out."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from transformers import PreTrainedModel

from mechrefusal.devices import free_bytes, is_gpu
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward.tree import Branch

Result = TypeVar("Result")

CPU_TOKENS, CPU_BYTES = 1024, 1 << 29
"""On a CPU more at once gains nothing: activations of this many tokens still fit its caches."""

SHARE_OF_FREE = 0.5
"""Share of an accelerator's free memory that an attack may fill."""


class Budget:
    """Splits branches into batches that fit.

    A branch costs one unit of the tokens, and of the bytes of its activations and logits; `at_most` bounds the branches
    of a batch. `run` halves the budget for good, down to single branches, when the allocator fails.
    """

    def __init__(self, model: PreTrainedModel, *, at_most: int | None = None) -> None:
        config = model.config.get_text_config()
        size = model.get_input_embeddings().weight.element_size()
        width = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
        self._token_bytes = size * (4 * config.hidden_size + 3 * width)
        self._logit_bytes = config.vocab_size * (size + 8)  # as they come, in float32, and one intermediate result
        self.at_most = at_most
        device = model.get_input_embeddings().weight.device
        if is_gpu(device):
            self.tokens, self.bytes = 1 << 17, int(SHARE_OF_FREE * free_bytes(device))
        else:
            self.tokens, self.bytes = CPU_TOKENS, CPU_BYTES

    def cost(self, branch: Branch) -> int:
        """Bytes that one branch takes, by estimate."""
        return len(branch.tokens) * self._token_bytes + len(branch.keep) * self._logit_bytes

    def batches(self, branches: Sequence[Branch]) -> Iterator[range]:
        """Consecutive ranges of `branches`, each within the budget or a single branch."""
        start, tokens, taken = 0, 0, 0
        for place, branch in enumerate(branches):
            full = self.at_most is not None and place - start >= self.at_most
            more = len(branch.tokens)
            if place > start and (full or tokens + more > self.tokens or taken + self.cost(branch) > self.bytes):
                yield range(start, place)
                start, tokens, taken = place, 0, 0
            tokens, taken = tokens + more, taken + self.cost(branch)
        if start < len(branches):
            yield range(start, len(branches))

    def run(
        self,
        branches: Sequence[Branch],
        one: Callable[[Sequence[Branch]], Result],
        *,
        name: Callable[[Branch], str] = lambda branch: "a single prompt",
    ) -> list[Result]:
        """`one` of every batch, in order.

        Args:
            name: what a branch is called in an error.

        Raises:
            MechrefusalError: a single branch does not fit the memory.
        """
        results: list[Result] = []
        done = 0
        while done < len(branches):
            batch = next(self.batches(branches[done:]))
            part = branches[done : done + len(batch)]
            try:
                results.append(one(part))
            except Exception as error:
                if not should_reduce_batch_size(error):
                    raise
                if len(part) == 1:
                    raise MechrefusalError(
                        f"{name(part[0])}, {len(part[0].context) + len(part[0].tokens)} tokens long, does not fit the "
                        "memory that is left: free memory, shorten the prompt or use a smaller model"
                    ) from error
                self.at_most = max(1, len(part) // 2)
                clear_device_cache(garbage_collection=True)
                continue
            done += len(part)
        return results
