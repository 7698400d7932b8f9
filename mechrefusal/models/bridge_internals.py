"""What is read of TransformerLens' bridge beside its public interface, in one place."""


def written_scale(model) -> float:
    """What the blocks of a hooked transformer multiply what attention and MLP return by before they add it."""
    (scale,) = {float(getattr(block, "residual_contribution_scale", 1.0)) for block in model.blocks}
    return scale


def written_by(block, hook: str) -> tuple[str, ...]:
    """The part of a block whose output the hook sees: ("attn",), ("mlp",), the norm after one, or ("attn", "o")."""
    if hook not in block.hook_aliases and hasattr(block, "residual_contribution_scale"):
        return ({"hook_attn_out": block.scaled_attn_submodule, "hook_mlp_out": block.scaled_mlp_submodule}[hook],)
    *parts, point = block.hook_aliases[hook].split(".")
    if point != "hook_out":
        raise KeyError(f"{hook} is {block.hook_aliases[hook]}")
    return tuple(parts)
