"""Published vision transformers as extractors: DINOv2's class token and CLIP's image embedding, without class logits.

Images are resized and normalised by torch-fidelity's extractors. Their constructors, however, run code fetched from a
repository (DINOv2) or a program found in the weights file (CLIP), so the networks are built here, from tensors alone:

``dinov2``  ViT-S, B or L with patches of 14 pixels, seen at 224 x 224 (Oquab et al. 2023), as torchvision's vision
            transformer. Two things are converted. LayerScale multiplies a branch's output by gamma, so it goes into the
            branch's last layer:  gamma * (W a + b) = (diag(gamma) W) a + gamma * b. The position embeddings of the
            37 x 37 patches of pre-training are interpolated to 16 x 16, bicubically and, as published, with a scale of
            (16 + 0.1) / 37.
``clip``    the image tower of CLIP (Radford et al. 2021), of any size, as torch-fidelity builds it. OpenAI publishes
            it as TorchScript, which is a program: such a file is opened only if its sha256 is a published one.
"""

from __future__ import annotations

import hashlib
import io
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_clip import MODEL_METADATA, MODEL_URLS, FeatureExtractorCLIP, build_model
from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2
from torchvision.models.vision_transformer import VisionTransformer

from trilemma.errors import ExtractorError
from trilemma.measure.weight_files import UNREADABLE, fetch, no_words, read_state, short

DINOV2_URL = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth"
CLIP_MODEL = "clip-vit-b-32"
PUBLISHED_CLIP = {about["hash"]: name for name, about in MODEL_METADATA.items()}  # sha256 of a file -> its network
_PATCH, _GRID, _HEAD = 14, 16, 64  # DINOv2: pixels of a patch, patches along 224 pixels, width of an attention head
_OFFSET = 0.1  # added to the grid's size when the position embeddings are interpolated
_DINOV2_SIZES = {384: "s", 768: "b", 1024: "l"}  # by width


def dinov2(path: Path | None) -> tuple[str, nn.Module, Path]:
    """DINOv2's name, network (uint8 (N, 3, H, W) -> a tuple of features (N, d)) and weights file.

    The size (S, B or L) follows from the weights; without a file, ViT-B/14 is fetched.
    """
    path = fetch("dinov2", DINOV2_URL) if path is None else path
    hint = f"give a file like {DINOV2_URL} (ViT-S, B or L, without registers) with --extractor-weights FILE"
    state = read_state(path, hint)
    try:
        network = dinov2_network(state)
    except KeyError as error:
        raise ExtractorError(f"{path}: not DINOv2's weights (no {error.args[0]}); {hint}") from error
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ExtractorError(f"{path}: not DINOv2's weights ({short(error)}); {hint}") from error
    size = _DINOV2_SIZES.get(network.hidden_dim)
    name = f"dinov2-vit-{size}-14" if size else "dinov2"
    return name, _filled(FeatureExtractorDinoV2, name, "dinov2", network), path


def dinov2_network(state: dict[str, Tensor]) -> Any:
    """torchvision's vision transformer with DINOv2's weights: normalised images (N, 3, 224, 224) -> (N, d).

    Raises KeyError or RuntimeError for tensors that are missing or do not fit.
    """
    width = len(state["norm.weight"])
    depth = sum(key.endswith(".ls1.gamma") for key in state)
    if depth == 0 or width % _HEAD or "register_tokens" in state:
        raise ValueError("registers, or an unknown architecture")
    converted = {
        "class_token": state["cls_token"],
        "conv_proj.weight": state["patch_embed.proj.weight"],
        "conv_proj.bias": state["patch_embed.proj.bias"],
        "encoder.pos_embedding": _positions(state["pos_embed"].float()),
        "encoder.ln.weight": state["norm.weight"],
        "encoder.ln.bias": state["norm.bias"],
    }
    for i in range(depth):
        old, new = f"blocks.{i}", f"encoder.layers.encoder_layer_{i}"
        for part in ("weight", "bias"):
            converted[f"{new}.ln_1.{part}"] = state[f"{old}.norm1.{part}"]
            converted[f"{new}.ln_2.{part}"] = state[f"{old}.norm2.{part}"]
            converted[f"{new}.self_attention.in_proj_{part}"] = state[f"{old}.attn.qkv.{part}"]
            converted[f"{new}.mlp.0.{part}"] = state[f"{old}.mlp.fc1.{part}"]
            for gamma, source, target in (("ls1", "attn.proj", "self_attention.out_proj"), ("ls2", "mlp.fc2", "mlp.3")):
                scale, value = state[f"{old}.{gamma}.gamma"], state[f"{old}.{source}.{part}"]
                converted[f"{new}.{target}.{part}"] = scale.view(-1, *[1] * (value.dim() - 1)) * value
    with torch.device("meta"):  # the random numbers it would begin with are not wanted
        network = VisionTransformer(
            image_size=_PATCH * _GRID,
            patch_size=_PATCH,
            num_layers=depth,
            num_heads=width // _HEAD,
            hidden_dim=width,
            mlp_dim=4 * width,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
        )
    network.heads = nn.Identity()
    network.load_state_dict({key: value.float() for key, value in converted.items()}, assign=True)
    return network


def _positions(embedding: Tensor) -> Tensor:
    """Position embeddings (1, 1 + M^2, d) of M x M patches and the class token, for 16 x 16 patches."""
    side = round((embedding.shape[1] - 1) ** 0.5)
    if side == _GRID:
        return embedding
    grid = embedding[:, 1:].transpose(1, 2).reshape(1, -1, side, side)
    scale = (_GRID + _OFFSET) / side
    patches = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([embedding[:, :1], patches.flatten(2).transpose(1, 2)], 1)


def clip(path: Path | None) -> tuple[str, nn.Module, Path]:
    """CLIP's name, network (uint8 (N, 3, H, W) -> a tuple of features (N, d)) and weights file.

    Any of OpenAI's files, or the tensors of one (those of the image tower and ``text_projection``). Without a file,
    ViT-B/32 is fetched.
    """
    if path is None:
        sha256 = MODEL_METADATA[CLIP_MODEL]["hash"]
        path = fetch("clip", MODEL_URLS[CLIP_MODEL], file=f"{CLIP_MODEL}-{sha256}.pt", sha256=sha256)
    hint = "give one of OpenAI's files as published, or its tensors as .safetensors, with --extractor-weights FILE"
    name, state = _clip_state(path, hint)
    try:
        tower = build_model(state, torch.float32)
    except KeyError as error:
        raise ExtractorError(f"{path}: not CLIP's weights (no {error.args[0]}); {hint}") from error
    except (RuntimeError, ValueError, IndexError, ArithmeticError) as error:
        raise ExtractorError(f"{path}: not CLIP's weights ({short(error)}); {hint}") from error
    network = _filled(FeatureExtractorCLIP, name, "clip", tower)
    network.resolution = tower.visual.input_resolution
    return name, network, path


def _clip_state(path: Path, hint: str) -> tuple[str, dict[str, Tensor]]:
    """The name of a published network, or just clip, and the tensors."""
    try:
        # What is opened is what was digested: the file is read once.
        content = path.read_bytes()
        name = PUBLISHED_CLIP.get(hashlib.sha256(content).hexdigest())
        if name is None:
            return "clip", read_state(path, hint)
        with no_words():
            program = torch.jit.load(io.BytesIO(content), map_location="cpu")  # type: ignore[no-untyped-call]
    except UNREADABLE as error:
        raise ExtractorError(f"{path}: cannot be read ({short(error)}); {hint}") from error
    return name, dict(program.state_dict())


def _filled(kind: Any, name: str, layer: str, network: nn.Module) -> Any:
    """torch-fidelity's extractor around a network at hand, without its constructor."""
    extractor = kind.__new__(kind)
    FeatureExtractorBase.__init__(extractor, name, [layer])
    extractor.feature_extractor_internal_dtype = torch.float32
    extractor.model = network
    return extractor.requires_grad_(False).eval()
