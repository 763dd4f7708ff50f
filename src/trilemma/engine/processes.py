"""Several processes that train or sample as one, as torchrun and accelerate launch start them.

Every process holds all networks and gets its share of each batch. Gradients are averaged here, in one message a
backward pass, and not by DistributedDataParallel. That waits for a gradient of every parameter of a network, and the
penalties leave some without one: the last bias of a discriminator has no part in the gradient by its input. And it
writes over buffers between the two passes of a discriminator whose gradients are still to come. Here a parameter
without a gradient stays without one, so that Adam treats it as in a single process. StyleGAN3's published code does
likewise (Karras et al. 2021).
"""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from trilemma.config import require_all
from trilemma.errors import RunError

if TYPE_CHECKING:  # one process that samples does without
    from accelerate import PartialState  # type: ignore[import-untyped]

PATIENCE = timedelta(days=1)  # how long a process waits for one that scores or reads data; a dead one is noticed
_LOST = ("gloo", "nccl", "connection closed by peer", "connection reset by peer")


def launched() -> bool:
    """Whether a launcher has started this process, alone or with others."""
    return int(os.environ.get("LOCAL_RANK", "-1")) != -1


def join() -> PartialState:
    """This process among all: its ``process_index`` of ``num_processes``, its ``device``; alone, it is 0 of 1.

    The first call waits until all are there. A launcher of torch's does not say that there is no GPU, and accelerate
    connects processes on CPUs only where it is told to: else each would take itself for the only one.
    """
    from accelerate import PartialState

    wanted = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes", "on", "y", "t")
    cpu = wanted or (launched() and not torch.cuda.is_available())
    if launched() and _starts() > 0 and os.environ.get("GROUP_WORLD_SIZE") == "1":
        _connect_again("gloo" if cpu else "nccl")
    state = PartialState(cpu=cpu, timeout=PATIENCE)
    if state.num_processes > 1:
        atexit.unregister(_leave)
        atexit.register(_leave)
    return state


def _connect_again(backend: str) -> None:
    """Find the others where those that died did not look for each other.

    torchrun keeps its store over restarts, and with it the addresses of processes that are gone: who reads one of these
    waits for ever. Several machines count their restarts apart, so that a count would not bring them together.
    """
    if torch.distributed.is_initialized():
        return
    store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
    store.set_timeout(PATIENCE)
    own = PrefixStore(f"start {_starts()}", store)
    torch.distributed.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=PATIENCE)


def _starts() -> int:
    """How often torchrun has started this process anew (``--max-restarts``)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def restarted() -> bool:
    """Whether torchrun has started any of these processes again; all of them must call this."""
    return bool(together(torch.tensor([_starts() > 0], device=join().device)).any())


def together(x: Tensor) -> Tensor:
    """The rows of all processes, which have equally many: (N, ...) on the process's device -> (processes N, ...)."""
    from accelerate.utils import gather  # type: ignore[import-untyped]

    rows: Tensor = gather(x) if join().num_processes > 1 else x
    return rows


def told(value: Any) -> Any:
    """What the main process passes here; what others pass does not matter."""
    from accelerate.utils import broadcast_object_list

    [agreed] = broadcast_object_list([value]) if join().num_processes > 1 else [value]
    return agreed


@contextlib.contextmanager
def company() -> Iterator[None]:
    """Where another process of the job ends inside, this one ends with a line instead of a traceback.

    Raises:
        RunError: the connection to another process broke.
    """
    try:
        yield
    except RuntimeError as error:
        words = str(error).lower()
        if isinstance(error, torch.distributed.DistError) or any(sign in words for sign in _LOST):
            reason = str(error).strip().splitlines()[0].split(". ")[0]  # gloo goes on with advice
            raise RunError(
                f"lost the other processes of this job ({reason}): what the first of them said is the cause, mend it "
                "and go on with --resume"
            ) from error
        raise


class Gradients:
    """The backward passes of one training: gradients are averaged over all processes as soon as they are there.

    Every optimiser step has one backward pass (or one a part), so each network is averaged once for it.
    """

    def __init__(self, networks: Mapping[str, nn.Module], backward: Callable[[Tensor], None], parts: int = 1) -> None:
        """``networks``: all that are trained; ``backward``: of a loss on this process; ``parts``: see ``parts``."""
        self._backward, self._count, self._processes = backward, parts, join().num_processes
        self._parameters = [parameter for network in networks.values() for parameter in network.parameters()]
        self._touched: set[int] = set()
        self._held = False
        if self._processes > 1:
            for index, parameter in enumerate(self._parameters):
                hook = partial(_touch, self._touched, index)  # it must not keep the parameters
                parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def backward(self, loss: Tensor) -> None:
        """Gradients of the mean of all processes' losses, for every parameter that ``loss`` depends on."""
        self._backward(loss)
        if self._processes > 1 and not self._held:
            self._average()

    def number(self, n: int) -> int:
        """Of the parts of n images."""
        return min(self._count, n)

    def parts(self, n: int) -> Iterator[slice]:
        """A batch of n images in consecutive parts, all but equally large; gradients are averaged after the last."""
        count = self.number(n)
        bounds = [index * n // count for index in range(count + 1)]
        try:
            for index, (start, stop) in enumerate(zip(bounds, bounds[1:], strict=False)):
                self._held = index < count - 1
                yield slice(start, stop)
        finally:
            self._held = False

    def _average(self) -> None:
        gradients = [self._parameters[index].grad for index in sorted(self._touched)]
        self._touched.clear()
        present = [gradient for gradient in gradients if gradient is not None]
        if not present:
            return
        flat = torch.cat([_in_order_of_memory(gradient) for gradient in present])
        torch.distributed.all_reduce(flat)
        flat /= self._processes
        means = torch.split(flat, [gradient.numel() for gradient in present])
        torch._foreach_copy_([_in_order_of_memory(gradient) for gradient in present], list(means))


def _in_order_of_memory(gradient: Tensor) -> Tensor:
    """All numbers of a gradient in one dimension, not copied: gradients lie as their parameters do, without gaps."""
    in_order = gradient.is_contiguous(memory_format=torch.channels_last) if gradient.dim() == 4 else False
    return (gradient.permute(0, 2, 3, 1) if in_order else gradient).view(-1)


def _touch(touched: set[int], index: int, _: Tensor) -> None:
    touched.add(index)


def check_shares(batch_size: int, accumulate: int, processes: int) -> None:
    """Refuse a batch that processes cannot share equally: the mean of their means would not be the batch's.

    Raises:
        ConfigError: no whole share, or fewer images in it than parts.
    """
    share = batch_size // processes
    near = [str(images * processes) for images in (share, share + 1) if images > 0]
    require_all(
        (
            batch_size % processes == 0,
            f"training.batch_size {batch_size} cannot be shared equally by {processes} processes: "
            f"take {' or '.join(near)}",
        ),
        (
            accumulate <= max(1, share),
            f"training.accumulate {accumulate} is more than the {share} images of a batch in each process: lower it",
        ),
    )
