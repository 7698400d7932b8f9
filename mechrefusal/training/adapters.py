"""Adapters under training as files: what of a model is theirs, and how they name the model that they belong to."""

import copy
import re
from collections.abc import Mapping
from pathlib import Path

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from mechrefusal.devices import HOST
from mechrefusal.errors import MechrefusalError
from mechrefusal.models.model_files import ADAPTER_WEIGHTS
from mechrefusal.models.sources import name_of

_ANCHOR = re.compile(r"step-\d+")


def require_linear(model: PeftModel) -> None:
    """Raise a MechrefusalError for adapters of anything but linear layers.

    Those of an embedding would make another model once they are merged, where the output matrix is the embedding's.
    """
    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, BaseTunerLayer) and not (isinstance(layer, LoraLayer) and len(layer.lora_A)):
            raise MechrefusalError(
                f"lora target_modules hold '{name}', a {type(layer.get_base_layer()).__name__}: name linear layers only"
            )


def adapter_weights(model: PeftModel) -> dict[str, Tensor]:
    """What PEFT keeps of a model, under the names that it has in an adapter's file: the active adapter, layers that
    are trained whole, an embedding that was resized.

    They are the model's own tensors, of which a process may have a part alone (`sharding.gathered`).
    """
    return get_peft_model_state_dict(
        model, state_dict=model.state_dict(keep_vars=True), adapter_name=str(model.active_adapter)
    )


def write_adapter(model: PeftModel, folder: Path, *, weights: Mapping[str, Tensor] | None, base: Path) -> None:
    """Write the active adapter of `model` to `folder`: config and weights.

    Args:
        weights: what `adapter_weights` gives, whole; None: the model has all of them.
        base: folder of the model that the adapter belongs to.
    """
    weights = adapter_weights(model) if weights is None else weights
    whole = {name: weight.detach().to(HOST, copy=True).contiguous() for name, weight in weights.items()}
    save_file(whole, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = copy.copy(model.peft_config[str(model.active_adapter)])
    # Sets would be written in an order of the process, and the same adapter would have another hash in the next.
    vars(config).update({key: sorted(value) for key, value in vars(config).items() if isinstance(value, set)})
    config.base_model_name_or_path, config.revision = name_of_base(base, folder)
    config.inference_mode = True
    config.save_pretrained(str(folder))


def name_of_base(base: Path, folder: Path) -> tuple[str, str | None]:
    """How the adapter in `folder` (`<run>/<arm>/step-00050`) names its base model, and the base's revision.

    A model that is packaged or of a hub has its name and commit, which another machine knows too; an anchor of another
    arm of the same run is named from the adapter's folder, so that the run can be moved; all else by its path.
    """
    if (named := name_of(base)) is not None:
        return named
    base, folder = base.resolve(), folder.resolve()
    if _ANCHOR.fullmatch(base.name) and base.parent.parent == folder.parent.parent:
        return f"../../{base.parent.name}/{base.name}", None
    return str(base), None
