"""What it takes to remove refusal: figures of the tables of `durability.yaml` and `durability_pairs.yaml`."""
