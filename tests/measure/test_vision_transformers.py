"""DINOv2 and CLIP: the published formulas on small random weights, files by digest, and what is refused."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch_fidelity.feature_extractor_clip import VisionTransformer, build_model
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from trilemma.errors import ExtractorError
from trilemma.measure import vision_transformers
from trilemma.measure.features import extract, load_extractor
from trilemma.measure.fidelity import fidelity_from_features, fidelity_protocol
from trilemma.measure.vision_transformers import dinov2_network
from trilemma.measure.weight_files import digest_of

WIDTH, HEADS, DEPTH = 128, 2, 2
Weights = dict[str, Tensor]


def dinov2_weights(side: int = 3) -> Weights:
    """Random tensors of DINOv2's names and shapes, for a width of 128 and two blocks."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, 1 + side * side, WIDTH),
        "mask_token": (1, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, 14, 14),
        "patch_embed.proj.bias": (WIDTH,),
        "norm.weight": (WIDTH,),
        "norm.bias": (WIDTH,),
    }
    for i in range(DEPTH):
        linears = {"attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH)}
        linears |= {"mlp.fc1": (4 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 4 * WIDTH)}
        for name, shape in linears.items():
            shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"):
            shapes[f"blocks.{i}.{name}"] = (WIDTH,)
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]) if len(shape) > 1 else 1)
        for name, shape in shapes.items()
    }


def dinov2_formula(w: Weights, x: Tensor) -> Tensor:
    """The paper's network, written out: normalised images (N, 3, 224, 224) -> the normalised class token."""
    side = math.isqrt(w["pos_embed"].shape[1] - 1)
    grid = w["pos_embed"][:, 1:].reshape(1, side, side, WIDTH).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=(16.1 / side, 16.1 / side), mode="bicubic") if side != 16 else grid
    positions = torch.cat([w["pos_embed"][:, :1], grid.permute(0, 2, 3, 1).reshape(1, 256, WIDTH)], 1)
    patches = F.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=14)
    tokens = torch.cat([w["cls_token"].expand(len(x), -1, -1), patches.flatten(2).transpose(1, 2)], 1) + positions

    def norm(y: Tensor, name: str) -> Tensor:
        return F.layer_norm(y, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def linear(y: Tensor, name: str) -> Tensor:
        return F.linear(y, w[f"{name}.weight"], w[f"{name}.bias"])

    for i in range(DEPTH):
        block = f"blocks.{i}"
        qkv = linear(norm(tokens, f"{block}.norm1"), f"{block}.attn.qkv")
        q, k, v = qkv.reshape(len(x), 257, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-2, -1) / math.sqrt(WIDTH // HEADS)).softmax(-1) @ v
        attention = linear(attention.transpose(1, 2).reshape(len(x), 257, WIDTH), f"{block}.attn.proj")
        tokens = tokens + w[f"{block}.ls1.gamma"] * attention
        hidden = F.gelu(linear(norm(tokens, f"{block}.norm2"), f"{block}.mlp.fc1"))
        tokens = tokens + w[f"{block}.ls2.gamma"] * linear(hidden, f"{block}.mlp.fc2")
    return norm(tokens, "norm")[:, 0]


@pytest.mark.parametrize("side", [3, 16])
def test_dinov2_is_the_papers_formula(side: int) -> None:
    """LayerScale folded into the last layers, positions interpolated (3 x 3) or as they are (16 x 16)."""
    weights = dinov2_weights(side)
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = dinov2_network(dict(weights)).eval()(x)
        torch.testing.assert_close(found, dinov2_formula(weights, x), rtol=1e-4, atol=1e-4)


def normalised(x: Tensor, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 images resized as TensorFlow 1 did, then normalised."""
    x = interpolate_bilinear_2d_like_tensorflow1x(x.float(), size=(size, size), align_corners=False) / 255
    return (x - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)


def images(n: int = 3) -> Tensor:
    return torch.randint(0, 256, (n, 1, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_dinov2_from_a_file(tmp_path: Path, suffix: str) -> None:
    weights, path = dinov2_weights(), tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save(weights, path)
    else:
        save_file(weights, path)
    extractor = load_extractor("dinov2", path)
    found = extract(images(), extractor)
    x = normalised(images().expand(-1, 3, -1, -1), 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    torch.testing.assert_close(found.features, dinov2_formula(weights, x), rtol=1e-3, atol=1e-3)
    assert found.logits is None
    assert (found.extractor, found.digest) == ("dinov2", digest_of(path))
    with pytest.raises(ExtractorError, match="1 or 3 channels, got 2"):
        extractor.features(images().repeat(1, 2, 1, 1))


def clip_weights() -> Weights:
    """Random tensors of an image tower: patches of 8 pixels on 32 x 32, width 64, two layers, embedding of 16."""
    torch.manual_seed(0)
    tower = VisionTransformer(input_resolution=32, patch_size=8, width=64, layers=2, heads=1, output_dim=16)
    weights = {f"visual.{key}": value.detach().clone() for key, value in tower.state_dict().items()}
    return weights | {"text_projection": torch.zeros(8, 16)}


def test_clip_from_a_file_of_tensors(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(clip_weights(), path)
    found = extract(images(), load_extractor("clip", path))
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    tower = build_model(clip_weights(), torch.float32).visual
    expected = tower(normalised(images().expand(-1, 3, -1, -1), 32, mean, std))
    torch.testing.assert_close(found.features, expected, rtol=1e-3, atol=1e-3)
    assert (found.extractor, found.digest, found.logits) == ("clip", digest_of(path), None)


class Published(nn.Module):
    """What OpenAI's TorchScript files hold, as far as it matters here."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = VisionTransformer(32, 8, 64, 2, 1, 16)
        self.text_projection = nn.Parameter(torch.zeros(8, 16))
        self.load_state_dict(clip_weights())

    def forward(self, x: Tensor) -> Tensor:
        return self.visual(x)


def test_a_torchscript_file_is_opened_only_if_it_is_a_published_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, tensors = tmp_path / "ViT.pt", tmp_path / "w.safetensors"
    torch.jit.trace(Published(), torch.zeros(1, 3, 32, 32)).save(str(program))
    save_file(clip_weights(), tensors)
    opened = []
    load = torch.jit.load
    monkeypatch.setattr(torch.jit, "load", lambda *args, **kwargs: opened.append(args) or load(*args, **kwargs))
    with pytest.raises(ExtractorError, match=r"ViT\.pt: cannot be read as bare weights"):
        load_extractor("clip", program)
    assert opened == []
    sha256 = hashlib.sha256(program.read_bytes()).hexdigest()
    monkeypatch.setitem(vision_transformers.PUBLISHED_CLIP, sha256, "clip-vit-x")
    found, same = (extract(images(), load_extractor("clip", path)) for path in (program, tensors))
    assert found.extractor == "clip-vit-x"
    assert torch.equal(found.features, same.features)


def test_the_published_digests_are_whole() -> None:
    """A short one would let a file be made to fit it."""
    assert all(len(sha256) == 64 for sha256 in vision_transformers.PUBLISHED_CLIP)
    assert vision_transformers.CLIP_MODEL in vision_transformers.PUBLISHED_CLIP.values()


@pytest.mark.parametrize("name", ["dinov2", "clip"])
def test_files_that_are_no_such_weights(tmp_path: Path, name: str) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    whole = dinov2_weights() if name == "dinov2" else clip_weights()
    save_file({key: value for key, value in whole.items() if "mlp" not in key}, tmp_path / "part.safetensors")
    save_file({key: value[..., :-1].contiguous() for key, value in whole.items()}, tmp_path / "short.safetensors")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    (tmp_path / "broken.safetensors").write_bytes(b"nonsense")
    for file in (
        "other.safetensors",
        "part.safetensors",
        "short.safetensors",
        "list.pth",
        "broken.safetensors",
        "no.pt",
    ):
        with pytest.raises(ExtractorError, match=file) as caught:
            load_extractor(name, tmp_path / file)
        assert "\n" not in str(caught.value)
        assert "--extractor-weights FILE" in str(caught.value)


def test_dinov2_with_registers_is_refused(tmp_path: Path) -> None:
    save_file(dinov2_weights() | {"register_tokens": torch.zeros(1, 4, WIDTH)}, tmp_path / "reg.safetensors")
    with pytest.raises(ExtractorError, match="registers"):
        load_extractor("dinov2", tmp_path / "reg.safetensors")


@pytest.mark.parametrize(("name", "file"), [("dinov2", "dinov2_vitb14_pretrain.pth"), ("clip", "ViT-B-32.pt")])
def test_without_the_net_the_way_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, file: str
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ExtractorError, match=f"cannot download the {name} weights") as caught:
        load_extractor(name)
    assert file in str(caught.value)
    assert "--extractor-weights FILE" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.pth")) and not list(tmp_path.rglob("*.pt"))


def test_no_classes_no_inception_score(tmp_path: Path) -> None:
    save_file(clip_weights(), tmp_path / "w.safetensors")
    extractor = load_extractor("clip", tmp_path / "w.safetensors")
    a, b = extract(images(12), extractor), extract(images(24)[12:], extractor)
    scores = fidelity_from_features(a, b)
    assert scores["inception_score"] is None
    assert all(isinstance(scores[name], float) for name in ("fid", "kid", "precision", "recall"))
    assert fidelity_protocol(a, b)["inception_score_splits"] is None
    assert fidelity_protocol(a, b)["extractor"] == "clip"
