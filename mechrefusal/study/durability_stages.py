"""Stages of durability: what it takes to remove refusal, at a checkpoint and from one to another."""

# (a) Cost of removal

# (b) Harmful fine-tuning

# (c) Spectrum of the update

# (d) Answers by their length

# (e) Prefilled openings

# (f) Lockstep patching
