"""How a model is pressed: attack cases, and the methods that make them."""

from mechrefusal.attacks import autodan, gcg, jailbreaks
from mechrefusal.attacks.cases import AttackCase, read_cases, write_cases
from mechrefusal.attacks.making import METHODS, TemplateSettings, cost_table, make_cases
from mechrefusal.attacks.settings import AutoDANSettings, GCGSettings
from mechrefusal.attacks.streams import random_stream
from mechrefusal.attacks.target_loss import target_losses

__all__ = [
    "METHODS",
    "AttackCase",
    "AutoDANSettings",
    "GCGSettings",
    "TemplateSettings",
    "autodan",
    "cost_table",
    "gcg",
    "jailbreaks",
    "make_cases",
    "random_stream",
    "read_cases",
    "target_losses",
    "write_cases",
]
