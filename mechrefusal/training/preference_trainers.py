"""DPO and KTO on the rows of a study, as trainers of TRL."""

from typing import Any

from datasets import Dataset
from trl import DPOTrainer, KTOTrainer

from mechrefusal.training.own_loss import OwnLoss
from mechrefusal.training.pairs import Pair, pairs_by_micro_batch
from mechrefusal.training.trainer_setup import TrainerSetup


def dpo_rows(batches: list[list[Pair]]) -> dict[str, list[Any]]:
    """The columns of DPOTrainer's rows: one a pair, micro-batch after micro-batch."""
    pairs = [pair for batch in batches for pair in batch]
    return {
        "prompt_ids": [pair.prompt for pair in pairs],
        "chosen_ids": [pair.chosen for pair in pairs],
        "rejected_ids": [pair.rejected for pair in pairs],
    }


def kto_rows(batches: list[list[Pair]]) -> dict[str, list[Any]]:
    """The columns of KTOTrainer's rows: two a pair, micro-batch after micro-batch.

    In a micro-batch all desirable answers stand before all others, so that the mismatched completion of a row (that of
    the row before, by which KTO estimates its point of reference) is the answer to another prompt wherever there are
    two.
    """
    columns: dict[str, list[Any]] = {
        name: [] for name in ("prompt_ids", "completion_ids", "KL_completion_ids", "label")
    }
    for batch in batches:
        completions = [pair.chosen for pair in batch] + [pair.rejected for pair in batch]
        columns["prompt_ids"] += 2 * [pair.prompt for pair in batch]
        columns["completion_ids"] += completions
        columns["KL_completion_ids"] += [completions[-1], *completions[:-1]]
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
    batches = [[*utility, *harmful] for utility, harmful in pairs_by_micro_batch(setup, shares)]
    return kind(**setup.own_arguments(config, kind.rows_of(batches)), ref_model=setup.reference())
