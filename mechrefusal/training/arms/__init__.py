"""The arms, a file each: its settings with the published defaults and their source, its terms, its trainer.

These files are read by what only needs to know settings: they import TRL where they make a trainer, not before.
"""
