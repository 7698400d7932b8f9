"""A canary for what is read of TransformerLens beside its public interface: each test names what an update moved."""

import inspect

import pytest
from architectures import FAMILIES

from mechrefusal import models
from mechrefusal.models import bridge_internals


@pytest.mark.parametrize("name", FAMILIES)
def test_the_bridge_has_what_is_read_of_it(family, name):
    model = family(name).hooked
    for attribute in ("original_model", "blocks", "hook_dict", "ln_final", "unembed", "cfg"):
        assert hasattr(model, attribute), f"TransformerBridge.{attribute} is gone"
    block = model.blocks[0]
    for attribute in ("name", "hook_aliases", "attn", "mlp"):
        assert hasattr(block, attribute), f"BlockBridge.{attribute} is gone"
    own = dict(model.original_model.named_modules())
    for hook in ("hook_attn_out", "hook_mlp_out"):
        path = bridge_internals.module_written_by(block, hook)
        assert path.startswith(block.name), f"{hook} is written by '{path}', not inside of '{block.name}'"
    for part, hook in (("attn", "hook_z"), ("mlp", "hook_post")):
        assert bridge_internals.module_read_at(block, part, hook).startswith(block.name)
    assert any(bridge_internals._WRAPPER in module for module in own), "modules are wrapped by another name"
    backbone = bridge_internals.backbone_name(model)
    assert model.original_model.get_submodule(backbone) is not None


@pytest.mark.parametrize("name", ["gpt2", "gpt-neox"])
def test_joint_projections_can_be_split(family, name):
    assert hasattr(family(name).hooked.blocks[0].attn, "split_qkv_matrix")


def test_names_without_their_wrappers():
    name = "model.layers.0._original_component.mlp._original_component.gate_proj.weight"
    assert bridge_internals.unwrapped_name(name) == "model.layers.0.mlp.gate_proj.weight"


def test_processors_of_images_are_left_out_and_come_back():
    from transformer_lens.model_bridge.sources.transformers import source

    before = source.load_modality_processor
    with bridge_internals.text_only():
        assert source.load_modality_processor("x", y=1) is None
    assert source.load_modality_processor is before


def test_weights_are_processed_by_what_is_given_and_come_back(tiny, monkeypatch):
    """Where an update passes it by, opening a model takes several times its weights."""
    from transformer_lens.weight_processing import ProcessWeights

    before, distribute, parts = ProcessWeights.process_weights, ProcessWeights.distribute_weights_to_components, []

    def seen(state_dict, *args, **how):
        parts.append({name.split(".")[1] for name in state_dict if name.startswith("blocks.")})
        distribute(state_dict, *args, **how)

    monkeypatch.setattr(ProcessWeights, "distribute_weights_to_components", staticmethod(seen))
    models.load_hooked(tiny)
    assert ProcessWeights.process_weights is before
    assert [part for part in parts if part] == [{"0"}, {"1"}, {"2"}, {"3"}]


def test_compatibility_mode_takes_what_loading_asks_for():
    from transformer_lens.model_bridge import TransformerBridge

    known = inspect.signature(TransformerBridge.enable_compatibility_mode).parameters
    assert {"disable_warnings", "center_unembed", "fold_value_biases"} <= set(known)
    assert "start_at_layer" in inspect.signature(TransformerBridge.forward).parameters
