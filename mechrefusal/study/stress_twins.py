"""Harmless twins of attacked behaviours: what a suffix is put behind to see whether the suffix itself is refused."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from mechrefusal.attacks import AttackCase
from mechrefusal.attacks.cases import whole_prompt
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation.suites import COPYRIGHT, Suite
from mechrefusal.prompts import PromptSet

TWIN = "twin"
"""Column of both sets that a behaviour shares with its harmless twin."""


@dataclass(frozen=True)
class Twins:
    """Harmless twins by the place of their behaviour; a behaviour without one has no entry.

    Fields:
        name: of the set that they are of, for messages.
        prompts: what checkpoints are asked.
        requests: what judges are shown: the same, without a context.
    """

    name: str = "twins"
    prompts: Mapping[int, str] = field(default_factory=dict)
    requests: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompts)

    @classmethod
    def of(cls, behaviours: PromptSet, harmless: PromptSet | None) -> "Twins":
        """The twin of each behaviour, found by column `twin`; none where there are no harmless prompts.

        Raises:
            MechrefusalError: a set without that column, two harmless prompts of one twin, no twin of any behaviour.
        """
        if harmless is None:
            return cls()
        for prompt_set in (behaviours, harmless):
            if TWIN not in prompt_set.table:
                raise MechrefusalError(
                    f"prompt set '{prompt_set.name}' has no column '{TWIN}', which says whose twin each prompt is: "
                    "add it, as in prompts.builtin().evaluation, or leave harmless out"
                )
        known = harmless.table[harmless.table[TWIN].notna()]
        if again := known[TWIN][known[TWIN].duplicated()].tolist():
            raise MechrefusalError(f"twin '{again[0]}' stands twice in prompt set '{harmless.name}': keep one of them")
        shown = known.get("behavior", known["text"])
        texts, requests = dict(zip(known[TWIN], known["text"], strict=True)), dict(zip(known[TWIN], shown, strict=True))
        places = {place: twin for place, twin in enumerate(behaviours.table[TWIN]) if twin in texts}
        if not places and len(behaviours):
            raise MechrefusalError(
                f"prompt set '{harmless.name}' has the twin of none of the {len(behaviours)} behaviours of "
                f"'{behaviours.name}': give the harmless side of the same prompts, or leave harmless out"
            )
        return cls(
            harmless.name,
            {place: texts[twin] for place, twin in places.items()},
            {place: requests[twin] for place, twin in places.items()},
        )

    def with_suffixes(self, cases: Sequence[AttackCase]) -> dict[int, str]:
        """The twin of each case with the case's suffix behind it, as in the attack; cases in the order of behaviours.

        Cases without a suffix (their attack rewrites the whole prompt) are left out.
        """
        return {
            place: whole_prompt(self.prompts[place], case.suffix)
            for place, case in enumerate(cases)
            if case.suffix and place in self.prompts
        }


def attacked(suites: Sequence[Suite], n: int) -> tuple[PromptSet, PromptSet | None]:
    """The harmful prompts of suites that are attacked, and the harmless ones, where a suite holds twins of these.

    Args:
        n: harmful prompts, evenly spaced over all suites; HarmBench's copyright rows are none.

    Returns:
        Two sets with the column `twin`, ids and twins led by the name of their suite; None where no prompt that is
        attacked has its twin in its suite.

    Raises:
        MechrefusalError: no harmful prompt, or n below 1.
    """
    table = pd.concat([_named(suite) for suite in suites], ignore_index=True)
    harmful = table[(table["side"] == "harmful") & (table["group"] != COPYRIGHT)]
    if harmful.empty or n < 1:
        raise MechrefusalError(f"there is nothing to attack: {len(harmful)} harmful prompts in the suites, n is {n}")
    behaviours = Suite("attacked", harmful.reset_index(drop=True)).take(n).prompt_set()
    twin_ids = behaviours.table[TWIN].dropna()
    twins = table[(table["side"] == "harmless") & table[TWIN].isin(twin_ids)]
    return behaviours, Suite("twins", twins.reset_index(drop=True)).prompt_set() if len(twins) else None


def _named(suite: Suite) -> pd.DataFrame:
    """The suite's table, with its name before ids and twins: two suites may use the same ones."""
    nothing = pd.Series([None] * len(suite), index=suite.table.index, dtype=object)
    twins = [None if pd.isna(twin) else f"{suite.name}-{twin}" for twin in suite.table.get(TWIN, nothing)]
    ids = [f"{suite.name}-{prompt_id}" for prompt_id in suite.table["prompt_id"]]
    return suite.table.assign(prompt_id=ids, twin=pd.Series(twins, index=suite.table.index, dtype=object))
