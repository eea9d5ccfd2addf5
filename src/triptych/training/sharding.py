"""Weights of which each process holds a part (fully sharded data parallelism), for models that outgrow a GPU.

A process stores its part of the weights, their averages, their gradients and the optimiser's moments. The weights of a
block are put together when the block runs, and let go of afterwards (Rajbhandari et al. 2020, arXiv:1910.02054, stage
3; Zhao et al. 2023, arXiv:2304.11277). Tensors that are cut so are PyTorch's DTensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from triptych.parallel import speaking

Model = TypeVar("Model", bound=nn.Module)
LEAST_WEIGHTS = 2**20
"""Weights of a block that is put together by itself; smaller ones go with what is around them."""


def shard(model: Model, device: torch.device) -> Model:
    """Cuts a model's weights, in place, over all processes; its `loss` and its blocks put them together as they run.

    Blocks are the entries of lists and sequences of modules, which a model calls as a whole.

    Arguments:
        model: With the same weights on every process, on any device.
        device: Where its parts are to be.
    """
    with speaking():
        mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
        _shard_blocks(model, mesh)
        fully_shard(model, mesh=mesh)
        register_fsdp_forward_method(model, "loss")
    return model.to(device)  # what is no weight: buffers


def _shard_blocks(module: nn.Module, mesh: DeviceMesh) -> int:
    """Cuts the blocks within a module, innermost first; the number of its weights that are left to what is around."""
    left = sum(parameter.numel() for parameter in module.parameters(recurse=False))
    for child in module.children():
        left_by_child = _shard_blocks(child, mesh)
        if isinstance(module, nn.ModuleList | nn.Sequential) and left_by_child >= LEAST_WEIGHTS:
            fully_shard(child, mesh=mesh)
            left_by_child = 0
        left += left_by_child
    return left


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Within, every process holds all weights of a model, and may call whatever it likes of it; else it may not.

    All processes enter and leave it together. A model that is not cut is left as it is.
    """
    blocks = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for block in blocks:
        with speaking():
            block.unshard()
        block.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for block in blocks:
            block.set_reshard_after_forward(True, recurse=False)
            block.reshard()


def full(of: Any) -> Any:
    """The same (a state of a model or an optimiser) with whole tensors on the CPU where it had parts.

    All processes do this together.
    """
    if isinstance(of, DTensor):
        with speaking():
            return of.full_tensor().cpu()
    if isinstance(of, Mapping):
        return {key: full(value) for key, value in of.items()}
    return [full(value) for value in of] if isinstance(of, list) else of


def is_part(tensor: Tensor) -> bool:
    """Whether other processes hold the rest of a tensor."""
    return isinstance(tensor, DTensor)


def together(value: Tensor) -> Tensor:
    """A figure of a cut tensor (a sum, a norm), the same on all processes; of another tensor the figure itself."""
    if not isinstance(value, DTensor):
        return value
    with speaking():
        return value.full_tensor()


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor, cut as another one is; the tensor itself where nothing is cut."""
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor) or tensor.shape != like.shape:
        return tensor
    with speaking():
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def load_weights(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """`model.load_state_dict` of whole tensors, or of parts."""
    parts = model.state_dict()
    model.load_state_dict(
        {name: part_of(value, parts[name]) if name in parts else value for name, value in state.items()}
    )


def check_fits(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Refuses a state that `load_weights` cannot load.

    Raises:
        ValueError: If names or shapes are others.
    """
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if {name: tensor.shape for name, tensor in state.items()} != shapes:
        raise ValueError("weights have other names or shapes")


def check_moments(weights: Sequence[Tensor], state: Mapping[str, Any]) -> None:
    """Refuses moments that are not shaped like their weights: a fused step would write beyond their end.

    Raises:
        ValueError: Naming the first.
    """
    for number, of in state["state"].items():
        shapes = {"exp_avg": weights[number].shape, "exp_avg_sq": weights[number].shape, "step": torch.Size()}
        if {key: value.shape for key, value in of.items()} != shapes:
            raise ValueError(f"the moments of weight {number} are not shaped like it")


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """`optimizer.load_state_dict` of whole tensors, but for the settings, which are the optimiser's own.

    Raises:
        ValueError: As of `check_moments`.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    check_moments(weights, state)
    moments = {
        number: {
            key: part_of(value, weights[number]) if isinstance(value, Tensor) else value for key, value in of.items()
        }
        for number, of in state["state"].items()
    }
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
