"""GRPO on the prompts of a study, as a trainer of TRL whose samples are the same whatever runs beside it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from mechrefusal import prompts
from mechrefusal.attacks import random_stream
from mechrefusal.devices import of_random_numbers
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward.decoding import end_tokens
from mechrefusal.models import fetch
from mechrefusal.models.frozen import frozen
from mechrefusal.training import data, rewards
from mechrefusal.training.arms.rlhf import RLHFSettings
from mechrefusal.training.own_loss import OwnLoss
from mechrefusal.training.sharding import whole_weights, zero_stage
from mechrefusal.training.trainer_config import share
from mechrefusal.training.trainer_setup import TrainerSetup


class RLHFTrainer(OwnLoss, GRPOTrainer):
    """TRL's GRPOTrainer on prompts of `prompts.segments`.

    Each step draws its samples from a random stream of its own, so that a training that goes on, or is probed in
    between, samples the same; in evaluation mode, so that dropout has no part in them.

    Args:
        beta: weight of the KL from `reference` (with adapters: from the model without them).
    """

    def __init__(self, *args: Any, beta: float = 0.0, reference: PreTrainedModel | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if zero_stage(self.accelerator) == 3:
            raise MechrefusalError(
                "arm 'rlhf' would sample from weights that DeepSpeed ZeRO-3 has shared out: launch with the config of "
                "`mechrefusal accelerate fsdp2`, or train data parallel"
            )
        # TRL would read the reference from the folder that the model's config names.
        self.beta = self.args.beta = beta
        if reference is not None:
            add_fused_lm_head(reference, temperature=self.temperature)
            self.ref_model = self.accelerator.prepare_model(reference, evaluation_mode=True)
        self.eos_token_ids = sorted(end_tokens(self.accelerator.unwrap_model(self.model), self.processing_class))
        self.generation_config.eos_token_id = self.generation_kwargs["eos_token_id"] = self.eos_token_ids

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """TRL's, with the random numbers of the step."""
        name = f"completions of step {self.state.global_step} by process {self.accelerator.process_index}"
        with self.clock.part("refresh"), random_numbers(self.args.seed, name, self.accelerator.device):
            return super()._prepare_inputs(generation_batch)

    def _tokenize_prompts(self, asked: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """As everywhere else, by `prompts.segments`."""
        texts = [messages[0]["content"] for messages in asked]
        return [list(ids) for ids in prompts.prompt_ids(self.processing_class, texts)], None, {}

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's, without dropout; each process samples for itself."""
        with whole_weights(self), frozen(self.model):
            return super()._generate_single_turn(*args, **kwargs)

    def _calculate_rewards(
        self, inputs: Sequence[dict[str, Any]], asked: Any, completions: Sequence[Any], completion_ids: Any
    ) -> Tensor:
        """TRL's; beside them, the share of answers to each kind of prompt that refuse by the arm's own rule.

        Raises:
            MechrefusalError: a reward that is no finite number.
        """
        found = super()._calculate_rewards(inputs, asked, completions, completion_ids)
        if not torch.isfinite(found).all():
            place = int(torch.isfinite(found).all(1).int().argmin())
            raise MechrefusalError(
                f"reward '{self.reward_func_names[0]}' is {found[place].tolist()[0]} for completion {place} at step "
                f"{self.state.global_step + 1}: every answer needs a finite reward"
            )
        answers = [rewards.text_of(completion) for completion in completions]
        for kind in rewards.KINDS:
            for row, answer in zip(inputs, answers, strict=True):
                if row["kind"] == kind:
                    self._log_metric(f"refused/{kind}", float(rewards.refuses(answer)))
        for answer, tokens in zip(answers, completion_ids, strict=True):
            self._log_metric("degenerate", float(rewards.is_degenerate(answer, tokens)))
        return found


@contextmanager
def random_numbers(seed: int, name: str, device: torch.device) -> Iterator[None]:
    """Torch's random numbers come from the stream `name` in the block, and go on afterwards as if it had not been."""
    with torch.random.fork_rng(devices=of_random_numbers(device)):
        torch.manual_seed(random_stream(seed, name).initial_seed())
        yield


def rlhf_trainer(setup: TrainerSetup) -> RLHFTrainer:
    """The trainer of arm `rlhf`.

    Raises:
        MechrefusalError: prompts that leave no room for an answer, prompts that micro-batches cannot share, or a reward
            that cannot be used.
    """
    own: RLHFSettings = setup.arm_settings
    config = setup.config(
        GRPOConfig,
        per_device_train_batch_size=own.n_generations,
        num_generations=own.n_generations,
        max_completion_length=own.completion_tokens,
        temperature=own.temperature,
        epsilon=own.epsilon,
        loss_type=own.loss,
        use_bias_correction_kl=False,  # as published
        shuffle_dataset=False,  # rows are in the order of the steps
    )
    rows, each = _prompt_rows(setup, config)
    config.per_device_train_batch_size = own.n_generations * each
    config.generation_batch_size = config.per_device_train_batch_size * config.world_size * config.steps_per_generation
    reward, words = reward_of(own)
    return RLHFTrainer(
        **setup.own_arguments(config, rows),
        reward_funcs=[reward],
        reward_processing_classes=[words],
        beta=own.beta,
        reference=setup.reference() if own.beta else None,
    )


def _prompt_rows(setup: TrainerSetup, config: GRPOConfig) -> tuple[dict[str, list[Any]], int]:
    """Prompts and kinds in the order of the steps, and how many a micro-batch has."""
    own: RLHFSettings = setup.arm_settings
    settings, behaviours = setup.settings, setup.inputs.behaviours
    setup.rows()
    texts = {rewards.UTILITY: [row["prompt"] for row in setup.inputs.utility], rewards.HARMFUL: behaviours.texts}
    for kind, asked in texts.items():
        for number, ids in enumerate(prompts.prompt_ids(setup.tokenizer, asked)):
            if len(ids) + own.completion_tokens > setup.longest:
                name = f"behaviour '{behaviours.ids[number]}'" if kind == rewards.HARMFUL else f"utility row {number}"
                raise MechrefusalError(
                    f"{name} has a prompt of {len(ids)} tokens, which leaves no room for rlhf completion_tokens "
                    f"{own.completion_tokens} in the {setup.longest} of max_length and the model's context: lower "
                    "completion_tokens, raise max_length, or leave it out"
                )
    shares = setup.shares(config, settings.harmful_per_step)
    n_parts = shares.steps // settings.steps
    n_utility = share(own.utility_prompts or settings.utility_per_step, n_parts, "rlhf utility_prompts")
    n_harmful = share(own.harmful_prompts or settings.harmful_per_step, n_parts, "rlhf harmful_prompts")
    batches = data.micro_batches(
        texts[rewards.UTILITY],
        texts[rewards.HARMFUL],
        steps=shares.steps,
        utility_each=shares.utility_each,
        harmful_each=shares.harmful_each,
        seed=settings.seed,
    )
    rows = [
        (text, kind)
        for calm, harm in batches
        for kind, asked in ((rewards.UTILITY, calm[:n_utility]), (rewards.HARMFUL, harm[:n_harmful]))
        for text in asked
    ]
    columns: dict[str, list[Any]] = {
        "prompt": [[{"role": "user", "content": text}] for text, _ in rows],
        "kind": [kind for _, kind in rows],
    }
    return columns, n_utility + n_harmful


def reward_of(own: RLHFSettings) -> tuple[Any, PreTrainedTokenizerBase | None]:
    """What pays, and the tokenizer of a reward model.

    Raises:
        MechrefusalError: no such function, or no reward model with a chat template.
    """
    if own.reward is None:
        return rewards.checked(rewards.refuse_or_answer(own.degenerate_reward)), None
    function = rewards.function_named(own.reward) if isinstance(own.reward, str) else own.reward
    return (rewards.checked(function), None) if function is not None else _reward_model(str(own.reward))


def _reward_model(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    folder = fetch(name)
    try:
        model, loaded = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=1, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError) as error:
        raise MechrefusalError(
            f"rlhf reward '{name}' is no reward model ({' '.join(str(error).split())[:200]}): give a sequence "
            "classifier with one output"
        ) from error
    if missing := sorted(loaded["missing_keys"]):
        raise MechrefusalError(
            f"rlhf reward '{name}' has no weights for {', '.join(missing[:3])}: give a sequence classifier with one "
            "output, not a language model"
        )
    if tokenizer.chat_template is None:
        raise MechrefusalError(f"rlhf reward '{name}' has no chat template: give a reward model of conversations")
    return model, tokenizer
