"""The mean of gradients over processes, sent while the backward pass still runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from triptych.parallel import speaking

MESSAGE_BYTES = 8 * 2**20
"""On CPUs, a message costs the step a wake-up: a VAE's 2.5 MiB took less time as one than as three."""


class GradientMean:
    """Averages the gradients of some parameters over all processes.

    They are cut into messages of some mebibytes, the last parameters first, as a backward pass reaches them; each is
    sent as soon as all in it are known, so that most of the sending is done beside the arithmetic (Li et al. 2020,
    arXiv:2006.15704, section 3.2). PyTorch's DistributedDataParallel does the same for a module, but forbids what
    phases need: parameters that are frozen in turn, gradients within a loss, networks that a phase leaves out.

    Arguments:
        parameters: The same on every process, in the same order.
        n_processes: How many processes there are.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], n_processes: int) -> None:
        self.n_processes = n_processes
        # A group of its own, since a loss may exchange sums in the same pass.
        with speaking():
            self.group = torch.distributed.new_group()
        self.messages: list[list[nn.Parameter]] = [[]]
        for parameter in reversed(parameters):
            if sum(map(_bytes, self.messages[-1])) >= MESSAGE_BYTES:
                self.messages.append([])
            self.messages[-1].append(parameter)
        place = {id(parameter): i for i, message in enumerate(self.messages) for parameter in message}
        self.is_listening = False
        self.missing: list[int] = []
        """Parameters of each message whose gradient is not known yet."""
        self.sent: list[tuple[Tensor, Any]] = []
        self.hooks = [
            parameter.register_post_accumulate_grad_hook(lambda found: self._known(place[id(found)]))
            for parameter in parameters
        ]

    @contextmanager
    def of_this_pass(self) -> Iterator[None]:
        """Within, the last backward pass before a step is done; after it, each gradient is the mean."""
        self.missing = [len(message) for message in self.messages]
        self.sent = []
        self.is_listening = True
        try:
            yield
        finally:
            self.is_listening = False
        self.missing = [0] * len(self.messages)  # What no loss has touched has the gradient 0.
        self._send()
        for message, (flat, work) in zip(self.messages, self.sent, strict=True):
            with speaking():
                work.wait()
            flat /= self.n_processes
            parts = flat.split([parameter.numel() for parameter in message])
            for parameter, part in zip(message, parts, strict=True):
                parameter.grad = part.view_as(parameter)

    def close(self) -> None:
        """Lets go of the parameters, and of the group and its threads; all processes do this together."""
        for hook in self.hooks:
            hook.remove()
        self.sent = []
        torch.distributed.destroy_process_group(self.group)
        del self.group

    def _known(self, place: int) -> None:
        if self.is_listening:
            self.missing[place] -= 1
            self._send()

    def _send(self) -> None:
        """Sends the messages that are complete, in their order, which is the same on every process."""
        while len(self.sent) < len(self.messages) and self.missing[len(self.sent)] == 0:
            message = self.messages[len(self.sent)]
            for parameter in message:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            flat = torch.cat([parameter.grad.flatten() for parameter in message if parameter.grad is not None])
            with speaking():
                self.sent.append((flat, torch.distributed.all_reduce(flat, group=self.group, async_op=True)))


def _bytes(parameter: nn.Parameter) -> int:
    return parameter.numel() * parameter.element_size()
