"""A user's own extractor: a TorchScript file, or a program saved by ``torch.export.save`` (.pt2).

The contract: uint8 images (N, C, H, W) as the data has them (gray ones also as N, 3, H, W) in; features (N, d), or a
pair of features (N, d) and class logits (N, k), out. It holds for any N, and a row depends on its image alone.

**Both kinds of file are programs, and loading one can do anything its maker wished.** PyTorch's security policy asks
to treat TorchScript like executable code from a stranger, and the documentation of ``torch.jit.load`` warns of files
that run code while they load. ``torch.export.load`` unpickles: it tries ``weights_only=True`` first, but what that
refuses it then unpickles freely, and an archive may bring compiled libraries too. No check of the file's content
mends this. So nothing is loaded unless the path is given as ``trust:PATH``, by somebody who knows where the file is
from. Weights in safetensors (`classifier`) need no trust.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trilemma.errors import ExtractorError
from trilemma.measure.weight_files import no_words, short
from trilemma.types import DataSpec

TRUST = "trust:"
Judge = Callable[[Tensor], tuple[Tensor, Tensor | None]]
_TOLERANCE = 1e-3  # of the largest feature: a row may differ so much when other images are beside it
_ANY_IMAGES = DataSpec("images", 3, 32, 32)


def load_program(path: Path, device: torch.device, spec: DataSpec | None, *, trusted: bool) -> Judge:
    """The program of a file as a function of uint8 images (N, C, H, W), checked on images of the shape of ``spec``.

    Without a ``spec`` it is checked on colour images of 32 x 32. Raises ExtractorError for a file that is no program,
    is not trusted, cannot be loaded, or does not keep the contract above.
    """
    kind = _kind(path)
    if not trusted:
        raise ExtractorError(
            f"{path} is a {kind}, and loading one can run anything on this machine: "
            f"if you know who made it, write {TRUST}{path}"
        )
    try:
        with no_words():
            if kind == "TorchScript program":
                program = torch.jit.load(path, map_location=device).eval()  # type: ignore[no-untyped-call]
            else:
                program = torch.export.load(path).module().to(device)
    except Exception as error:  # a foreign program may raise whatever it likes
        raise ExtractorError(f"{path}: cannot be loaded as a {kind} ({short(error)})") from error
    return _checked(program, path, device, spec or _ANY_IMAGES)


def _kind(path: Path) -> str:
    """What the file is, told by the names inside it; nothing is loaded."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.split("/", 1)[-1] for name in archive.namelist()}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ExtractorError(
            f"{path}: cannot be read as an extractor ({short(error)}); give a .safetensors file that trilemma "
            "extractor train has written, a TorchScript file or a torch.export program"
        ) from error
    if "constants.pkl" in names:
        return "TorchScript program"
    if "serialized_exported_program.json" in names or any(name.startswith("models/") for name in names):
        return "torch.export program"
    raise ExtractorError(
        f"{path}: neither a TorchScript file nor a torch.export program; weights alone are no extractor, "
        "save the whole network with torch.jit.save or torch.export.save"
    )


def _checked(program: Any, path: Path, device: torch.device, spec: DataSpec) -> Judge:
    """The program with every answer checked, after it has answered for three and for two images."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, *spec.shape), dtype=torch.uint8, generator=generator).to(device)
    channels = _channels(program, images, path)

    def judge(x: Tensor) -> tuple[Tensor, Tensor | None]:
        n = len(x)
        if n == 1:  # torch.export may have fixed that there is more than one
            x = x.expand(2, -1, -1, -1)
        if x.shape[1] == 1:
            x = x.expand(-1, channels, -1, -1)
        features, logits = _answer(_run(program, x, path), len(x), path)
        return features[:n], None if logits is None else logits[:n]

    with torch.inference_mode():
        three, two = judge(images)[0], judge(images[:2])[0]
        if three.shape[1:] != two.shape[1:] or (three[:2] - two).abs().max() > _TOLERANCE * three.abs().max():
            raise ExtractorError(
                f"{path}: an image's features change with the images beside it, or by chance; "
                "save the network in evaluation mode"
            )
    return judge


@torch.inference_mode()
def _channels(program: Any, images: Tensor, path: Path) -> int:
    """How many channels the program takes: those of the images, or three for gray ones."""
    own = images.shape[1]
    try:
        _run(program, images, path)
    except ExtractorError:
        if own != 1:
            raise
        _run(program, images.expand(-1, 3, -1, -1), path)
        return 3
    return own


def _run(program: Any, x: Tensor, path: Path) -> Any:
    """What the program says of images; ExtractorError when it raises."""
    try:
        return program(x)
    except Exception as error:  # a foreign program may raise whatever it likes
        size = " x ".join(map(str, x.shape[1:]))
        words = str(error).strip().splitlines()
        told_last = bool(words) and "TorchScript interpreter" in words[0]
        reason = words[-1][:160] if told_last else short(error)
        raise ExtractorError(
            f"{path}: fails on {len(x)} uint8 images of {size} ({reason}); it must take any number of images"
        ) from error


def _answer(answer: Any, n: int, path: Path) -> tuple[Tensor, Tensor | None]:
    """Features and logits of an answer for ``n`` images, or ExtractorError."""
    parts = list(answer) if isinstance(answer, tuple | list) else [answer]
    if not 1 <= len(parts) <= 2 or not all(isinstance(part, Tensor) for part in parts):
        raise ExtractorError(f"{path}: must return features, or features and logits, not {_described(answer)}")
    for what, part in zip(("features", "logits"), parts, strict=False):
        if part.dim() != 2 or len(part) != n or part.shape[1] == 0 or not part.is_floating_point():
            raise ExtractorError(f"{path}: {what} of {n} images must be floats ({n}, d), not {_described(part)}")
        if not bool(torch.isfinite(part).all()):
            raise ExtractorError(f"{path}: {what} hold NaN or infinite values")
    return parts[0], parts[1] if len(parts) == 2 else None


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
