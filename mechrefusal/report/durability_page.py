"""How deep refusal goes, of all arms: what it takes to remove it."""

from mechrefusal.report.sections import Page


class DurabilityPage(Page):
    """What was found on the durability of refusal. Its attributes are named by `pages/durability.yaml`."""

    name = "durability"
