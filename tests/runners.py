"""The runner that models without a faster one have, for any model."""

from mechrefusal.forward import choosing

WHY = "the test asks for hooks"


def through_hooks(monkeypatch) -> None:
    """No model has an unhooked one: everything is run through hooks."""
    monkeypatch.setattr(choosing, "unhooked", lambda model: (None, WHY))
