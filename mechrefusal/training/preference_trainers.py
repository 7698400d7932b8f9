"""DPO and KTO on the rows of a study, as trainers of TRL."""

from typing import Any

from datasets import Dataset
from trl import DPOTrainer, KTOTrainer

from mechrefusal.training.own_loss import OwnLoss
from mechrefusal.training.pairs import Pair, pairs_by_micro_batch
from mechrefusal.training.trainer_setup import TrainerSetup

Batches = list[tuple[list[Pair], list[Pair]]]
"""The utility pairs and the harmful ones of each micro-batch, in the order in which processes take them in turn."""


def dpo_rows(batches: Batches, *, n_processes: int) -> dict[str, list[Any]]:
    """The columns of DPOTrainer's rows: one a pair, micro-batch after micro-batch."""
    pairs = [pair for utility, harmful in batches for pair in (*utility, *harmful)]
    return {
        "prompt_ids": [pair.prompt for pair in pairs],
        "chosen_ids": [pair.chosen for pair in pairs],
        "rejected_ids": [pair.rejected for pair in pairs],
    }


def kto_rows(batches: Batches, *, n_processes: int) -> dict[str, list[Any]]:
    """The columns of KTOTrainer's rows: two a pair, micro-batch after micro-batch.

    A row's mismatched completion, by which KTO estimates its point of reference, is that of the row before, where all
    desirable answers stand before all others: the answer to another prompt wherever there are two. TRL takes the mean
    of the estimates of all processes, so the rows are those of the micro-batches that `n_processes` run at the same
    time: as many processes estimate what one estimates of a micro-batch as large as theirs together.
    """
    columns: dict[str, list[Any]] = {
        name: [] for name in ("prompt_ids", "completion_ids", "KL_completion_ids", "label")
    }
    for start in range(0, len(batches), n_processes):
        together = batches[start : start + n_processes]
        whole = [(number, pair) for kind in (0, 1) for number, batch in enumerate(together) for pair in batch[kind]]
        answers = [pair.chosen for _, pair in whole] + [pair.rejected for _, pair in whole]
        before = [answers[-1], *answers[:-1]]
        for number, (utility, harmful) in enumerate(together):
            batch = [*utility, *harmful]
            mine = [place for place, (of, _) in enumerate(whole) if of == number]
            columns["prompt_ids"] += 2 * [pair.prompt for pair in batch]
            columns["completion_ids"] += [pair.chosen for pair in batch] + [pair.rejected for pair in batch]
            columns["KL_completion_ids"] += [before[place + half] for half in (0, len(whole)) for place in mine]
            columns["label"] += [True] * len(batch) + [False] * len(batch)
    return columns


class DPOArmTrainer(OwnLoss, DPOTrainer):
    """TRL's DPOTrainer on rows that are token ids already."""

    rows_of, rows_each = staticmethod(dpo_rows), 1

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        """The rows as they are: TRL would tokenise them anew, and end every answer, cut ones too."""
        return dataset


class KTOArmTrainer(OwnLoss, KTOTrainer):
    """TRL's KTOTrainer on rows that are token ids already."""

    rows_of, rows_each = staticmethod(kto_rows), 2

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        """The rows as they are, mismatched completions included."""
        return dataset


def preference_trainer(setup: TrainerSetup, config: Any, kind: type[DPOArmTrainer | KTOArmTrainer]) -> Any:
    """The trainer of an arm that learns from pairs: those of a step are its utility pairs and its harmful ones."""
    shares = setup.shares(config, setup.settings.harmful_per_step)
    config.per_device_train_batch_size = kind.rows_each * (shares.utility_each + shares.harmful_each)
    rows = kind.rows_of(list(pairs_by_micro_batch(setup, shares)), n_processes=config.world_size)
    return kind(**setup.own_arguments(config, rows), ref_model=setup.reference())
