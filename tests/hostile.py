"""Files that nobody should trust, made on the spot: each builder gives a name and what to write under it.

Everything random comes from a seed. Nothing here is larger than some hundred kilobytes on disk.
"""

from __future__ import annotations

import copy
import io
import json
import pickle
import random
import struct
import tarfile
import zipfile
import zlib
from typing import Any

import numpy as np
import torch
from PIL import Image

SIDE = 12
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF")
SUFFIX = {"PNG": "png", "JPEG": "jpg", "GIF": "gif", "BMP": "bmp", "WEBP": "webp", "TIFF": "tif"}
Files = dict[str, bytes]


def noise(seed: int = 0, mode: str = "RGB", side: int = SIDE) -> Image.Image:
    """A picture of random pixels."""
    shape = (side, side, 3) if mode == "RGB" else (side, side)
    return Image.fromarray(np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def good() -> bytes:
    """A gray PNG that is as it should be."""
    return encoded(noise(1, "L"), "PNG")


def garbled(content: bytes, seed: int, least: int = 0, most: int = 8) -> bytes:
    """Some bytes from number ``least`` on changed."""
    draw, changed = random.Random(seed), bytearray(content)
    for _ in range(draw.randint(1, most)):
        changed[draw.randrange(least, len(changed))] = draw.randrange(256)
    return bytes(changed)


# ------------------------------------------------------------------------------------------------------------ pictures


def png(width: int, height: int, *, depth: int = 8, colour: int = 0, data: bytes | None = None) -> bytes:
    """A PNG that states any size; its checksums are right, its pixels are ``data`` or next to none."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = zlib.compress(bytes(100)) if data is None else data
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def zeros(count: int) -> bytes:
    """``count`` zero bytes, deflated."""
    packer, piece = zlib.compressobj(1), bytes(2**16)
    parts = [packer.compress(piece) for _ in range(count // len(piece))]
    return b"".join([*parts, packer.compress(bytes(count % len(piece))), packer.flush()])


def bmp(width: int, height: int, bits: int = 24) -> bytes:
    return (
        b"BM" + struct.pack("<IHHI", 100, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, *[0] * 6)
    ) + bytes(46)


def gif(width: int, height: int) -> bytes:
    content = bytearray(encoded(noise(), "GIF"))
    content[6:10] = struct.pack("<HH", width, height)
    return bytes(content)


def jpeg(width: int, height: int) -> bytes:
    content = bytearray(encoded(noise(), "JPEG"))
    at = content.find(b"\xff\xc0")
    content[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(content)


def webp(width: int, height: int) -> bytes:
    """An animation of that size without a frame."""
    sides = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\x00\x00\x00" + sides
    body += b"ANIM" + struct.pack("<I", 6) + bytes(6)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff(width: int, height: int, strip: int = 8, count: int = 100) -> bytes:
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    tags += [(273, 4, 1, strip), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, count)]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\x00" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)


def _palette() -> Image.Image:
    image = noise(2, "L").convert("P")
    image.info["transparency"] = 3
    return image


def pictures() -> Files:
    """Broken, lying and unusual pictures; their names say what is wrong."""
    made: Files = {}
    for kind in FORMATS:
        whole, suffix = encoded(noise(), kind), SUFFIX[kind]
        for i in range(8):
            made[f"cut-{i}.{suffix}"] = whole[: i * len(whole) // 8]
            made[f"garbled-{i}.{suffix}"] = garbled(whole, i)
        for i in range(4):
            made[f"garbled-head-{i}.{suffix}"] = garbled(whole[:60], 100 + i, 4) + whole[60:]
        made[f"signature-only.{suffix}"] = whole[:4]
        made[f"twice.{suffix}"] = whole + whole
        made[f"other-name.{suffix}"] = encoded(noise(), FORMATS[FORMATS.index(kind) - 1])
    sizes = ((0, 5), (5, 0), (1, 2**31 - 1), (2**31 - 1, 2**31 - 1), (60_000, 60_000), (12_000, 12_000), (5, 7))
    for width, height in sizes:
        made[f"size-{width}x{height}.png"] = png(width, height)
        made[f"size-{width}x{height}.bmp"] = bmp(width, height)
        made[f"size-{width}x{height}.tif"] = tiff(width, height)
    for width, height in ((0, 0), (1, 65_535), (65_535, 65_535)):
        made[f"size-{width}x{height}.gif"] = gif(width, height)
        made[f"size-{width}x{height}.jpg"] = jpeg(width, height)
    made["size-negative.bmp"] = bmp(-5, 7)
    made["size-upside-down.bmp"] = bmp(5, -(2**31))
    made["bits-0.bmp"] = bmp(5, 5, 0)
    made["canvas.webp"] = webp(16_383, 16_383)
    made["strip-outside.tif"] = tiff(5, 7, strip=2**32 - 1, count=2**32 - 1)
    made["depth-99.png"] = png(5, 5, depth=99)
    made["colour-9.png"] = png(5, 5, colour=9)
    made["no-palette.png"] = png(5, 5, colour=3)
    made["not-deflated.png"] = png(5, 5, data=b"hello")
    made["text.png"] = b"hello, this is text\n"
    made["page.jpg"] = b"<html><script>alert(1)</script></html>"
    made["drawing.png"] = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    made["script.gif"] = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\nshowpage\n"
    made["paper.png"] = b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n"
    made["pickle.png"] = pickle.dumps({"a": 1})
    made["program.png"] = b"\x7fELF" + bytes(200)
    made["pack.png"] = b"PK\x03\x04" + bytes(60)
    made["nothing.png"] = b""
    made["one-byte.tif"] = b"I"
    made["zeros.webp"] = bytes(1000)
    made["sixteen.png"] = encoded(Image.fromarray(np.full((SIDE, SIDE), 999, np.uint16)), "PNG")
    made["cmyk.jpg"] = encoded(noise().convert("CMYK"), "JPEG")
    made["palette.png"] = encoded(_palette(), "PNG")
    made["float.tif"] = encoded(Image.fromarray(np.full((SIDE, SIDE), np.nan, np.float32)), "TIFF")
    made["integers.tif"] = encoded(Image.fromarray(np.full((SIDE, SIDE), -1, np.int32)), "TIFF")
    frames = [noise(i, "L") for i in range(3)]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        made[f"animated.{SUFFIX[kind]}"] = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    return made


# ---------------------------------------------------------------------------------------------------------------- zips


def zipped(entries: Files, method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return stream.getvalue()


def patched(content: bytes, name: str, *, local: dict[int, bytes] | None = None, central: dict[int, bytes]) -> bytes:
    """A zip with bytes of one entry's headers replaced: offset in the header to the new bytes."""
    changed = bytearray(content)
    for signature, at_name, changes in ((b"PK\x03\x04", 30, local or {}), (b"PK\x01\x02", 46, central)):
        at = changed.find(signature)
        while at >= 0:
            if changed[at + at_name : at + at_name + len(name)] == name.encode():
                for offset, new in changes.items():
                    changed[at + offset : at + offset + len(new)] = new
            at = changed.find(signature, at + 4)
    return bytes(changed)


OUTSIDE = (
    *("../up.png", "a/../../up.png", "/root.png", "//host/share.png", "C:\\boot.png", "C:boot.png", "..\\up.png"),
    *("a/./../../up.png", "....//up.png", "~/home.png", "a\x00b.png", "a\nb.png", "\x1b[31mred.png", "con.png"),
    *("a" * 300 + ".png", "/" * 50 + "a.png", "a/" * 200 + "b.png", "\u202egnp.exe.png", ".png", "a/.png", " .png"),
)


def _small(value: int) -> bytes:
    return struct.pack("<I", value)


def zips() -> Files:
    """Zips with one good picture, if they can be read at all."""
    made: Files = {}
    picture = good()
    for i, name in enumerate(OUTSIDE):
        made[f"name-{i}"] = zipped({"good.png": picture, name: picture})
    two = zipped({"good.png": picture, "two.png": picture}, zipfile.ZIP_DEFLATED)
    end = two.find(b"PK\x01\x02")
    for i in range(24):
        made[f"garbled-directory-{i}"] = two[:end] + garbled(two[end:], i, most=3)
        made[f"garbled-{i}"] = garbled(two, 50 + i)
    for i in range(10):
        made[f"cut-{i}"] = two[: i * len(two) // 10]
    made["garbage-before"] = b"#!/bin/sh\nexit\n" + two
    made["garbage-after"] = two + bytes(70_000)
    made["two-zips"] = two + two
    made["empty"] = zipped({})
    made["nothing"] = b""
    made["nested"] = zipped({"good.png": picture, "inner.zip": zipped({"a.png": picture})})
    made["nested-in-png"] = zipped({"good.png": picture, "inner.png": zipped({"a.png": picture})})
    made["encrypted"] = patched(two, "two.png", local={6: b"\x01\x00"}, central={8: b"\x01\x00"})
    made["strongly-encrypted"] = patched(two, "two.png", local={6: b"\x41\x00"}, central={8: b"\x41\x00"})
    made["unknown-method"] = patched(two, "two.png", local={8: b"\x63\x00"}, central={10: b"\x63\x00"})
    made["newer-version"] = patched(two, "two.png", central={6: b"\xff\x00"})
    made["no-name"] = two.replace(b"two.png", b"\x00wo.png")  # a name ends at a zero byte
    made["long-name"] = patched(two, "two.png", central={28: b"\xff\xff"})
    made["long-extra"] = patched(two, "two.png", central={30: b"\xff\xff"})
    made["long-comment"] = patched(two, "two.png", central={32: b"\xff\xff"})
    made["utf-8-that-is-none"] = patched(two, "two.png", central={8: b"\x00\x08", 46: b"\xff\xfe"})
    made["wrong-crc"] = patched(two, "two.png", central={16: b"\x00\x00\x00\x00"})
    made["offset-outside"] = patched(two, "two.png", central={42: _small(2**31)})
    made["offset-of-another"] = patched(two, "two.png", central={42: _small(0)})
    for i, size in enumerate((0, 1, 2**20, 2**28, 2**32 - 2)):
        made[f"stated-size-{i}"] = patched(two, "two.png", central={24: _small(size)})
        made[f"stated-packed-size-{i}"] = patched(two, "two.png", central={20: _small(size)})
    made["link"] = patched(zipped({"good.png": picture, "link.png": b"/etc/passwd"}), "link.png",
                           central={5: b"\x03", 38: _small(0o120777 << 16)})  # fmt: skip
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in ("good.png", "twice.png", "folder/"):
            archive.writestr(name, picture if name.endswith("png") else b"")
    made["folder-entry"] = stream.getvalue()
    first = zipped({"good.png": picture, "twice.png": picture})
    made["twice"] = first.replace(b"twice.png", b"good.png\x00")
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        packed = zipped({"good.png": picture, "two.png": picture}, method)
        for i in range(4):
            made[f"garbled-method-{method}-{i}"] = garbled(packed, i, 30 + len("good.png") + len(picture) // 2)
    return made


# ---------------------------------------------------------------------------------------------------------------- tars


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, size: int | None = None) -> bytes:
    """An entry of a tar: its header, which may state any size, and its content."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(content) if size is None else size
    info.linkname = "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
    return info.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape") + content + bytes(-len(content) % 512)


def tars() -> Files:
    """Tars with one good picture, if they can be read at all."""
    made: Files = {}
    picture, end = good(), bytes(1024)
    first = member("good.png", picture)
    for i, name in enumerate(OUTSIDE):
        made[f"name-{i}"] = first + member(name, picture) + end
    two = first + member("two.png", picture) + end
    for i in range(12):
        made[f"garbled-{i}"] = garbled(two, i)
        made[f"garbled-head-{i}"] = first + garbled(two[:512], 50 + i) + two[512:]
    for i in range(8):
        made[f"cut-{i}"] = two[: i * len(two) // 8]
    kinds = {
        **{"link": tarfile.SYMTYPE, "hard-link": tarfile.LNKTYPE, "device": tarfile.CHRTYPE, "pipe": tarfile.FIFOTYPE},
        **{"folder": tarfile.DIRTYPE, "sparse": tarfile.GNUTYPE_SPARSE, "unknown": b"Z"},
    }
    made |= {f"kind-{name}": first + member("odd.png", b"", kind) + end for name, kind in kinds.items()}
    sizes = (1, len(picture) + 1, 255 * 2**20, 2**40, 2**62, 2**80)
    for i, size in enumerate(sizes):
        made[f"stated-size-{i}"] = first + member("two.png", picture, size=size) + end
        for kind, code in (("name", b"L"), ("link", b"K"), ("pax", b"x"), ("pax-all", b"g")):
            made[f"stated-{kind}-{i}"] = first + member("odd", b"a.png", code, size) + two
    for name, text in {
        "size": b"15 size=999999\n", "path": b"17 path=a\x00b.png\n", "words": b"14 size=many\n", "bare": b"hello",
        "sparse": b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n", "long": b"9" * 600, "time": b"13 mtime=nan\n",
    }.items():  # fmt: skip
        made[f"pax-{name}"] = first + member("odd", text, b"x") + member("two.png", picture) + end
    made["names-without-end"] = first + member("odd", b"a.png", b"L") * 3000 + end
    made["class-not-text"] = first + member("good.cls", b"\xff\x00\n\x1b[31m") + end
    made["class-large"] = first + member("good.cls", b"x" * 5000) + end
    made["twice"] = first + first + end
    made["no-end"] = first
    made["packed"] = zipped({"good.png": picture})
    made["zeros"], made["nothing"] = bytes(2048), b""
    return made


# -------------------------------------------------------------------------------------------------------------- labels


def labels() -> Files:
    """Files of labels for good.png and two.png, or what passes for them, by the name each must have."""
    texts = {
        "empty.csv": "", "no-head.csv": "good.png,a\n", "head.csv": "file,label\n",
        "short.csv": "file,label\ngood.png\n",
        "long.csv": "file,label\ngood.png,a,b\n", "quote.csv": 'file,label\n"good.png,a\n',
        "zero.csv": "file,label\n\x00,a\n",
        "field.csv": "file,label\ngood.png," + "a" * 200_000 + "\n",
        "words.csv": "file,label\n" + "x" * 50_000 + ",a\n",
        "lines.csv": 'file,label\ngood.png,"a\nb"\ngood.png,"c\nd"\n', "escape.csv": "file,label\ngood.png,\x1b[31m\n",
        "wide.csv": "file,label\n" + "," * 50_000 + "\n", "outside.csv": "file,label\n../../etc/passwd,a\n",
        "digits.csv": "file,label\ngood.png," + "9" * 5000 + "\ntwo.png,1\n",
        "minus.csv": "file,label\ngood.png,-0\ntwo.png,0\n",
        "number.json": "3", "list.json": "[]", "null.json": "null", "none.json": "{}", "deep.json": "[" * 100_000,
        "nested.json": '{"good.png": ' + _nested(90) + "}", "lists.json": '{"good.png": [' + "1, " * 50_000 + "1]}",
        "float.json": '{"good.png": 0.5}', "true.json": '{"good.png": true}', "nan.json": '{"good.png": NaN}',
        "digits.json": '{"good.png": ' + "9" * 5000 + "}",
        "large.json": '{"good.png": ' + "9" * 4000 + ', "two.png": 1}',
        "surrogate.json": '{"good.png": "\\ud800", "two.png": "b"}', "name.json": '{"\\ud800": "a", "good.png": "b"}',
        "lines.json": '{"good.png": "a\\nb", "./good.png": "c\\nd"}', "table.json": '{"labels": {"good.png": {}}}',
        "pairs.json": '{"labels": [["good.png"]]}', "flat.json": '{"labels": [1, 2]}',
        "keys.json": '{"labels": [[[], 1]]}',
        "text.json": '{"labels": "x"}', "cut.json": '{"good.png": "a"',
        "long.json": '{"good.png": "' + "x" * 100_000 + '"}',
    }  # fmt: skip
    made = {name: text.encode() for name, text in texts.items()}
    return made | {"latin.csv": b"file,label\ngood.png,caf\xe9\n", "utf-16.json": '{"good.png": "a"}'.encode("utf-16")}


# ------------------------------------------------------------------------------------------------------ prepared images


def indices(whole: Any) -> Files:
    """prepared.json, changed: broken as JSON, of wrong types, of other images than there are."""
    odd: dict[str, Any] = {
        "none": None, "text": "a\nb\x1b[31m", "number": 3, "float": 1.5, "true": True, "list": [1], "table": {"a": 1},
        "minus": -1, "zero": 0, "empty": [], "large": 10**30, "words": ["a\nb", "\ud800"], "nested": [[1]],
        "many": [10**15, 10**15, 10**15], "deep": json.loads(_nested(90)),
    }  # fmt: skip

    def changed(*path: str, value: Any) -> bytes:
        new = copy.deepcopy(whole)
        inner = new
        for name in path[:-1]:
            inner = inner[name]
        inner[path[-1]] = value
        return json.dumps(new).encode()

    places = [("format",), ("name",), ("settings",), ("splits",), ("splits", "train")]
    places += [("splits", "train", key) for key in whole["splits"]["train"]]
    made = {f"{'.'.join(path)}-{name}": changed(*path, value=value) for path in places for name, value in odd.items()}
    train = whole["splits"]["train"]
    made["split-name"] = changed("splits", "a\nb", value={})
    made["labels-beyond"] = changed("splits", "train", value={**train, "labels": [99] * train["images"]})
    made["unknown"] = changed("splits", "train", value={**train, "depth": 3})
    text = json.dumps(whole).encode()
    made |= {f"cut-{i}": text[: i * len(text) // 4] for i in range(4)}
    return made | {"list": b"[]", "deep": b"[" * 100_000, "zeros": bytes(50)}


# ------------------------------------------------------------------------------------------------------------- recipes


def _nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def recipes() -> dict[str, bytes]:
    """TOML files, none of which is a recipe that holds."""
    head = 'method = "ddpm"\n'
    texts = {
        "nothing": "",
        "not-toml": "hello",
        "half": 'method = "dd',
        "json": '{"method": "ddpm"}',
        "no-method": "[options]\n",
        "method-number": "method = 3\n",
        "method-list": 'method = ["ddpm"]\n',
        "method-table": "[method]\na = 1\n",
        "method-unknown": 'method = "../../etc/passwd"\n',
        "method-dunder": 'method = "__init__"\n',
        "method-base": 'method = "base"\n',
        "unknown-key": head + "colour = 1\n",
        "many-unknown-keys": head + "".join(f"key_{i} = 1\n" for i in range(2000)),
        "long-key": head + f"{'k' * 20_000} = 1\n",
        "long-value": head + f'[training]\nbatch_size = "{"9" * 30_000}"\n',
        "options-text": head + 'options = "fast"\n',
        "options-list": head + "options = [1]\n",
        "training-number": head + "training = 3\n",
        "data-text": head + 'data = "mnist"\n',
        "data-size-text": head + '[data]\nsize = "8"\n',
        "duplicate": head + 'method = "ddpm"\n',
        "deep-list": head + f"options = {{a = {_nested(5000)}}}\n",
        "deep-list-below-the-limit": head + f"[training]\nbatch_size = {_nested(90)}\n",
        "deep-keys": head + "[training]\nbatch_size" + ".a" * 500 + " = 1\n",
        "many-digits": head + f"[training]\nbatch_size = {'9' * 5000}\n",
        "many-hex-digits": head + f"[training]\nbatch_size = 0x{'f' * 5000}\n",
        "hex-for-a-number": head + f"[training]\nema_decay = 0x{'f' * 5000}\n",
        "beyond-floats": head + f"[training]\nema_decay = {'9' * 400}\n",
        "date": head + "[training]\nminutes = 1979-05-27T07:32:00Z\n",
        "time": head + "[options]\nlearning_rate = 07:32:00\n",
        "bool": head + "[training]\nbatch_size = true\n",
        **{
            f"minutes-{word}": head + f"[training]\nminutes = {word}\n"
            for word in ("nan", "inf", "-inf", "-1", "1e999")
        },
        **{
            f"rate-{word}": head + f"[options]\nlearning_rate = {word}\n" for word in ("nan", "inf", "-1.0", "0", '"1"')
        },
        "steps-zero": head + "[options]\ntimesteps = 0\n",
        "steps-huge": head + f"[options]\ntimesteps = {10**30}\n",
        "betas-one": head + "[options]\nadam_betas = [0.9]\n",
        "betas-text": head + '[options]\nadam_betas = ["a", "b"]\n',
        "unet-list": head + "[options]\nunet = [1]\n",
        "unet-unknown": head + "[options.unet]\nchanels = 3\n",
        "variance-unknown": head + '[options]\nvariance = "huge"\n',
        "noise-chain-huge": 'method = "diffusion_gan"\n[options.noise]\nt_max = 1000000000000000\n',
        "sde-huge": 'method = "spigan"\n[options]\nsde = 1e400\n',
    }
    made = {name: text.encode() for name, text in texts.items()}
    return made | {
        "latin": 'method = "ddpm"\nabout = "café"\n'.encode("latin-1"),
        "utf-16": head.encode("utf-16"),
        "zero-bytes": bytes(100),
        "random": random.Random(0).randbytes(500),
        "too-large": head.encode() + b"#" * 2**17,
        "mark": b"\xef\xbb\xbf" + head.encode() + b"x",
    }


# -------------------------------------------------------------------------------------------------------- run folders


Config = dict[str, Any]


def configs(config: Config) -> dict[str, bytes]:
    """config.json of a run, changed: broken as JSON, of wrong types, out of range, out of all proportion."""

    def changed(*path: str, value: Any) -> bytes:
        copy = json.loads(json.dumps(config))
        inner = copy
        for name in path[:-1]:
            inner = inner.setdefault(name, {})
        inner[path[-1]] = value
        return json.dumps(copy).encode()

    made: dict[str, bytes] = {}
    odd: dict[str, Any] = {
        "none": None, "text": "x", "number": 3, "float": 1.5, "true": True, "list": [1], "table": {"a": 1},
        "nan": float("nan"), "infinite": float("inf"), "large": 10**400, "deep": json.loads(_nested(90)),
        "long": "x" * 10_000,
    }  # fmt: skip
    for name, value in odd.items():
        for path in (("method",), ("options",), ("data",), ("data", "spec"), ("data", "name")):
            if not (name in ("text", "long") and path == ("data", "name")):
                made[f"{'.'.join(path)}-{name}"] = changed(*path, value=value)
        for path in (("training",), ("training", "score_samples"), ("data", "path"), ("data", "digest")):
            made[f"{'.'.join(path)}-{name}"] = changed(*path, value=value)
    for side in ("channels", "height", "width", "classes"):
        for value in (0, -1, 10**6, 10**9, 2**63, 1.5, "8", None):
            if not (side == "classes" and value in (0,)):
                made[f"{side}-{value}"] = changed("data", "spec", side, value=value)
    made["kind"] = changed("data", "spec", "kind", value="voxels")
    made["points"] = changed("data", "spec", "kind", value="points")
    made["extra-spec"] = changed("data", "spec", "depth", value=3)
    made["extra-option"] = changed("options", "no_such", value=3)
    made["images"] = changed("kind", value="images")
    for name in ("../vae", "vae.py", "VAE", "", "base", "__init__", "os", "vae\n", "\ud800"):
        made[f"method={name!r}"] = changed("method", value=name)
    whole = json.dumps(config).encode()
    made |= {f"cut-{i}": whole[: i * len(whole) // 6] for i in range(6)}
    made |= {
        "deep": b"[" * 100_000,
        "deep-tables": b'{"a":' * 50_000,
        "deep-but-whole": b'{"method": "vae", "options": ' + _nested(400).encode() + b', "data": {}}',
        "digits": b'{"method": ' + b"9" * 10_000 + b"}",
        "latin": whole.replace(b"vae", "vaé".encode("latin-1"), 1),
        "utf-16": whole.decode().encode("utf-16"),
        "mark": b"\xef\xbb\xbf" + whole,
        "zeros": bytes(100),
        "list": b"[]",
        "two": whole + whole,
    }
    return made


def huge_settings() -> dict[str, tuple[str, dict[str, Any]]]:
    """Options of a few bytes that ask for networks or tables of any size: method and changes to its tiny options."""
    million, all_at_once = 10**6, 10**9
    return {
        "vae-channels": ("vae", {"autoencoder": {"channels": 30_000}}),
        "vae-channels-more": ("vae", {"autoencoder": {"channels": 9 * million}}),
        "vae-latent": ("vae", {"autoencoder": {"nz": 10 * million}}),
        "vae-blocks": ("vae", {"autoencoder": {"blocks": 10 * million}}),
        "vae-levels": ("vae", {"autoencoder": {"channel_mult": [1] * 100_000}}),
        "vae-multiple": ("vae", {"autoencoder": {"channel_mult": [1, 10 * million]}}),
        "vae-beyond": ("vae", {"autoencoder": {"nz": all_at_once}}),
        "style-z": ("stylegan2", {"mapping": {"z_dim": 10 * million, "w_dim": 10 * million}}),
        "style-layers": ("stylegan2", {"mapping": {"layers": 10 * million}}),
        "style-channels": ("stylegan2", {"generator": {"channel_base": 10 * million, "channel_max": 10 * million}}),
        "style-critic": ("stylegan2", {"discriminator": {"channel_base": 10 * million, "channel_max": 10 * million}}),
        "ddpm-steps": ("ddpm", {"timesteps": 10 * million}),
        "ddpm-channels": ("ddpm", {"unet": {"channels": million}}),
        "ddgan-latent": ("ddgan", {"latent": {"nz": 10 * million, "embedding": 10 * million}}),
        "spigan-dim": ("spigan", {"mapping": {"dim": million, "hidden": million}}),
        "spigan-u": ("spigan", {"u_embedding": 10 * million}),
        "diffusion-chain": ("diffusion_gan", {"noise": {"t_max": all_at_once}}),
        "diffusion-t": ("diffusion_gan", {"t_embedding": 10 * million}),
    }


# --------------------------------------------------------------------------------------------------------- safetensors


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with any header: a dict, or bytes as they are."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor_files(whole: bytes) -> dict[str, bytes]:
    """Weights that are none: lying, overlapping, misshapen, cut."""
    head = struct.unpack("<Q", whole[:8])[0]
    header, data = json.loads(whole[8 : 8 + head]), whole[8 + head :]
    first = next(name for name in header if name != "__metadata__")
    entry = header[first]

    def changed(**new: Any) -> bytes:
        return safetensors({**header, first: {**entry, **new}}, data)

    start, end = entry["data_offsets"]
    made = {
        **{f"length-{i}": safetensors(header, data, n) for i, n in enumerate((0, 1, head - 1, head + 1, 10**8 + 1))},
        **{f"length-beyond-{i}": safetensors(header, data, 2**n) for i, n in enumerate((32, 40, 63))},
        **{f"cut-{i}": whole[: i * len(whole) // 8] for i in range(8)},
        **{f"garbled-{i}": garbled(whole[: 8 + head], i) + data for i in range(12)},
        "more-data": whole + b"more",
        "empty-header": safetensors({}),
        "list-header": safetensors([1]),
        "number-header": safetensors(b"3"),
        "deep-header": safetensors(b"[" * 100_000),
        "deep-tables": safetensors(b'{"a":' * 50_000),
        "not-text": safetensors(b"\xff\xfe" * 20),
        "entry-number": safetensors({**header, first: 3}, data),
        "entry-empty": safetensors({**header, first: {}}, data),
        "metadata-number": safetensors({**header, "__metadata__": 3}, data),
        "metadata-numbers": safetensors({**header, "__metadata__": {"a": 3}}, data),
        "without-one": safetensors({name: value for name, value in header.items() if name != first}, data),
        "backwards": changed(data_offsets=[end, start]),
        "beyond": changed(data_offsets=[start, 2**40]),
        "overlapping": changed(data_offsets=[start, end + 4]),
        "negative": changed(data_offsets=[-4, end]),
        "three-offsets": changed(data_offsets=[start, end, end]),
        "offsets-text": changed(data_offsets=["0", "4"]),
        "shape-larger": changed(shape=[2**20]),
        "shape-huge": changed(shape=[2**62, 2**62]),
        "shape-negative": changed(shape=[-1]),
        "shape-text": changed(shape="1"),
        "shape-empty": changed(shape=[0, 2**62]),
        "dtype-unknown": changed(dtype="F99"),
        "dtype-number": changed(dtype=32),
        "dtype-int": changed(dtype="I32"),
        "dtype-twice-as-wide": changed(dtype="F64"),
        "dtype-bytes": changed(dtype="U8"),
        "pickle": pickle.dumps({"a": 1}),
        "zip": zipped({"a": b"b"}),
        "zeros": bytes(1000),
    }
    return made


def whole_numbers(name: str, count: int) -> bytes:
    """A file whose only tensor has whole numbers, and is as long as one of weights."""
    return safetensors({name: {"dtype": "I32", "shape": [count], "data_offsets": [0, 4 * count]}}, bytes(4 * count))


# ----------------------------------------------------------------------------------------------------------------- npz


def npy(header: str, data: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    """A .npy file with any header."""
    text = header.encode("latin-1", "replace") + b"\n"
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H", len(text)) + text + data


def described(descr: str, shape: str, order: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


def arrays() -> dict[str, bytes]:
    """.npz files that hold no images."""
    shape = "(20, 8, 8, 1)"
    pixels = bytes(20 * 64)

    def packed(content: bytes, name: str = "images.npy") -> bytes:
        return zipped({name: content})

    saved = io.BytesIO()
    np.savez(saved, images=np.zeros((20, 8, 8, 1), np.uint8))
    whole = saved.getvalue()
    objects = io.BytesIO()
    np.savez(objects, images=np.array([{"a": 1}], dtype=object))
    headers = {
        "objects": described("'|O'", "(3,)"),
        "structured": described("[('a', '|u1'), ('b', '|O')]", "(3,)"),
        "shape-huge": described("'|u1'", "(1000000000000, 8, 8, 1)"),
        "shape-beyond": described("'|u1'", "(99999999999999999999999, 8)"),
        "shape-negative": described("'|u1'", "(-1, 8, 8, 1)"),
        "shape-text": described("'|u1'", "'8'"),
        "shape-float": described("'|u1'", "(1.5, 8)"),
        "shape-many": described("'|u1'", "(" + "1, " * 200 + ")"),
        "shape-none": described("'|u1'", "None"),
        "dtype-unknown": described("'zz'", shape),
        "dtype-text": described("'<U9'", shape),
        "dtype-float": described("'<f8'", "(2, 8, 8, 1)"),
        "dtype-huge": described("'V2000000000'", "(2,)"),
        "not-a-table": "[1, 2]",
        "code": "__import__('os').system('touch it-ran')",
        "deep": "(" * 3000,
        "nothing": "",
        "extra": described("'|u1'", shape)[:-1] + "'more': 1}",
    }
    made = {f"header-{name}": packed(npy(text, pixels)) for name, text in headers.items()}
    made |= {f"cut-{i}": whole[: i * len(whole) // 8] for i in range(8)}
    made |= {f"garbled-{i}": garbled(whole, i, most=3) for i in range(8)}
    made |= {
        "pickled": objects.getvalue(),
        "pickle-inside": packed(pickle.dumps({"a": 1})),
        "pickle": pickle.dumps(np.zeros(3)),
        "bare": npy(described("'|u1'", shape), pixels),
        "version-9": packed(npy(described("'|u1'", shape), pixels, (9, 9))),
        "other-names": zipped({"a\n\x1b[31m.npy": b"x", "../up.npy": b"y"}),
        "no-array": packed(b"hello"),
        "short": packed(npy(described("'|u1'", shape), pixels[:-1])),
        "bzip2": zipped({"images.npy": npy(described("'|u1'", shape), pixels)}, zipfile.ZIP_BZIP2),
        "lzma": zipped({"images.npy": npy(described("'|u1'", shape), pixels)}, zipfile.ZIP_LZMA),
        "encrypted": patched(whole, "images.npy", local={6: b"\x01\x00"}, central={8: b"\x01\x00"}),
        "text": b"hello",
        "empty": b"",
    }
    return made


# ---------------------------------------------------------------------------------------------------------- checkpoints


def checkpoints(whole: bytes) -> dict[str, bytes]:
    """Full states that are none."""
    head = struct.unpack("<Q", whole[:8])[0]
    header, data = json.loads(whole[8 : 8 + head]), whole[8 + head :]

    def structure(text: str) -> bytes:
        return safetensors({**header, "__metadata__": {"structure": text}}, data)

    deep = '{"list": [' * 40 + '{"value": 1}' + "]}" * 40
    texts = {
        "nothing": "", "number": "3", "list": "[]", "table": "{}", "two": '{"list": [], "dict": []}',
        "no-such-tensor": '{"tensor": "nothing"}', "tensor-number": '{"tensor": 3}', "tensor-list": '{"tensor": []}',
        "dict-number": '{"dict": 3}', "dict-flat": '{"dict": [1, 2]}', "dict-long": '{"dict": [[1, 2, 3]]}',
        "list-key": '{"dict": [[[1], {"value": 2}]]}', "value": '{"value": 3}', "a-list": '{"list": [{"value": 1}]}',
        "deep": deep, "deeper": "[" * 100_000, "digits": '{"value": ' + "9" * 10_000 + "}", "null": "null",
    }  # fmt: skip
    made = {f"structure-{name}": structure(text) for name, text in texts.items()}
    made |= {f"cut-{i}": whole[: i * len(whole) // 6] for i in range(6)}
    made |= {f"garbled-{i}": garbled(whole[: 8 + head], i) + data for i in range(8)}
    return made | {
        "no-structure": safetensors({name: value for name, value in header.items() if name != "__metadata__"}, data),
        "pickle": pickle.dumps({"a": 1}),
    }


# Changes to the state of a training of the VAE, as a path and what is put there, or taken away. The first kind is no
# training's, whatever its networks; the second is one of other networks than the VAE's.
GONE = object()
Change = tuple[tuple[str | int, ...], Any]
ODD_STATES: dict[str, Change] = {
    "step-gone": (("progress", "step"), GONE), "step-text": (("progress", "step"), "1"),
    "step-float": (("progress", "step"), 1.5), "step-true": (("progress", "step"), True),
    "step-minus": (("progress", "step"), -1), "step-large": (("progress", "step"), 10**30),
    "images-gone": (("progress", "images"), GONE), "images-large": (("progress", "images"), 2**60),
    "seconds-nan": (("progress", "seconds"), float("nan")), "seconds-text": (("progress", "seconds"), "1"),
    "seconds-minus": (("progress", "seconds"), -1.0), "progress-number": (("progress",), 3),
    "random-gone": (("random",), GONE), "random-list": (("random",), [1]),
    "torch-gone": (("random", "cpu"), GONE), "torch-short": (("random", "cpu"), torch.zeros(3, dtype=torch.uint8)),
    "torch-zero": (("random", "cpu"), torch.zeros(5056, dtype=torch.uint8)),
    "torch-floats": (("random", "cpu"), torch.zeros(5056)), "torch-text": (("random", "cpu"), "x"),
    "python-short": (("random", "python", "state"), torch.zeros(3, dtype=torch.int64)),
    "python-minus": (("random", "python", "state"), torch.full((625,), -1)),
    "python-beyond": (("random", "python", "state"), torch.full((625,), 10**6)),
    "python-version": (("random", "python", "version"), 9), "python-gauss": (("random", "python", "gauss"), "x"),
    "numpy-short": (("random", "numpy", "state"), torch.zeros(3, dtype=torch.int64)),
    "numpy-beyond": (("random", "numpy", "position"), 10**9), "numpy-before": (("random", "numpy", "position"), -9),
    "numpy-list": (("random", "numpy"), [1]), "numpy-gauss": (("random", "numpy", "gauss"), [1]),
    "networks-list": (("networks",), [1]), "average-gone": (("average",), GONE),
    "optimizers-text": (("optimizers",), "x"),
    "extra-gone": (("extra",), GONE), "others-number": (("others",), 3), "others-list": (("others",), [3]),
    "others-random": (("others",), [{"random": {}, "extra": {}}]), "shown-list": (("shown",), [1]),
    "losses-text": (("shown", "losses"), {"a": "x"}), "scores-list": (("shown", "scores"), [1]),
    "looks-numbers": (("shown", "looks"), [3]), "looks-empty": (("shown", "looks"), [{}]),
    "machine-list": (("machine",), [1]), "machine-lines": (("machine", "device"), "a\nb"),
    "scaler-text": (("scaler",), {"scale": "x"}),
}  # fmt: skip
_MOMENT = ("optimizers", "autoencoder", "state", 0)
_GROUPS = ("optimizers", "autoencoder", "param_groups")
MISFITS: dict[str, Change] = {
    "network-gone": (("networks", "decoder"), GONE), "network-empty": (("networks", "decoder"), {}),
    "network-list": (("networks", "decoder"), [1]), "network-numbers": (("networks", "decoder"), {"a": 3}),
    "weight-short": (("networks", "decoder", "trunk.out.bias"), torch.zeros(77)),
    "average-empty": (("average",), {}), "averaged-shape": (("average", "n_averaged"), torch.zeros(3)),
    "optimizer-gone": (("optimizers", "autoencoder"), GONE), "optimizer-number": (("optimizers", "autoencoder"), 3),
    "groups-gone": (_GROUPS, GONE), "groups-empty": (_GROUPS, []), "groups-number": (_GROUPS, 3),
    "groups-text": (_GROUPS, ["x"]), "rate-text": ((*_GROUPS, 0, "lr"), "fast"),
    "rate-gone": ((*_GROUPS, 0, "lr"), GONE),
    "moments-list": (("optimizers", "autoencoder", "state"), [1]),
    "moments-of-more": (("optimizers", "autoencoder", "state", 999), {}),
    "moment-gone": ((*_MOMENT, "exp_avg"), GONE), "moment-short": ((*_MOMENT, "exp_avg"), torch.zeros(3)),
    "moment-turned": ((*_MOMENT, "exp_avg_sq"), torch.zeros(1, 2, 3, 4)), "moment-number": ((*_MOMENT, "exp_avg"), 3.0),
    "moment-complex": ((*_MOMENT, "exp_avg"), torch.zeros(3, dtype=torch.complex64)),
    "count-text": ((*_MOMENT, "step"), "x"), "count-many": ((*_MOMENT, "step"), torch.zeros(3)),
    "count-minus": ((*_MOMENT, "step"), torch.tensor(-1.0)), "count-whole": ((*_MOMENT, "step"), torch.tensor(1)),
    "extra-empty": (("extra",), {}), "extra-text": (("extra", "steps_done"), "many"), "flops-number": (("flops",), 3),
    "flops-text": (("flops", "total"), "x"), "flops-list": (("flops", "cost"), [1]),
    "flops-minus": (("flops", "steps"), -1),
    "flops-waiting": (("flops", "waiting"), {"a": 10**6}),
}  # fmt: skip


def with_change(state: Config, change: Change) -> Config:
    """A copy of a state in which one thing is another."""
    made = copy.deepcopy(state)
    (*way, last), value = change
    inner: Any = made
    for name in way:
        inner = inner[name]
    if value is GONE:
        del inner[last]
    else:
        inner[last] = value
    return made


# --------------------------------------------------------------------------------------------------------------- scores


ODD_NUMBERS: dict[str, str] = {
    "nan": "NaN", "infinite": "Infinity", "minus-infinite": "-Infinity", "overflow": "1e999", "large": "1e308",
    "digits": "9" * 400, "small": "5e-324", "negative": "-1e308", "text": '"3"', "true": "true", "list": "[1]",
    "table": "{}", "zero": "0", "minus-zero": "-0.0", "minus": "-1", "null": "null", "tiny": "1e-9",
}  # fmt: skip
ODD_WORDS: dict[str, str] = {
    "markup": "<script>alert(1)</script>", "brackets": "[bold red]x[/]", "escape": "\x1b[31mred\x07",
    "lines": "a\nb\r\nc", "long": "x" * 20_000, "surrogate": "\ud800", "zero": "a\x00b",
    "template": "{{ 7 * 7 }}{% raw %}", "blank": " \t ", "right-to-left": "\u202eabc",
    "table": "a | b", "plotly": "<b>%{y}</b>", "emoji": "\U0001f600",
}  # fmt: skip


def evaluations(content: Config) -> dict[str, bytes]:
    """eval.json, changed."""
    text = json.dumps(content)
    made: dict[str, bytes] = {}

    def with_literal(path: tuple[str, str], literal: str) -> bytes:
        copy = json.loads(text)
        copy[path[0]][path[1]] = "@@"
        return json.dumps(copy).replace('"@@"', literal).encode()

    places = (("scores", "fid"), ("scores", "recall"), ("scores", "images_per_second_batch_100"))
    places += (("protocol", "training_seconds"),)
    for name, literal in ODD_NUMBERS.items():
        for path in places:
            made[f"{path[1]}-{name}"] = with_literal(path, literal)
    for name, words in ODD_WORDS.items():
        for path in (("row", "title"), ("row", "sampler"), ("protocol", "data")):
            made[f"{path[1]}-{name}"] = with_literal(path, json.dumps(words))
    for name, literal in {"deep": _nested(90), "number": "3", "list": "[]", "null": "null"}.items():
        for path in (("row", "title"), ("protocol", "hardware"), ("protocol", "cautions"), ("row", "method")):
            made[f"{path[1]}-{name}"] = with_literal(path, literal)
    for name, intervals in {
        "number": 3, "list": [1], "one-end": {"fid": [1]}, "text": {"fid": ["a", "b"]}, "flat": {"fid": 3},
        "turned": {"fid": [9, 1]}, "unknown": {"x" * 500: [1, 2]}, "none": {"fid": [None, None]},
        "large": {"fid": [-1e300, 1e300]},
    }.items():  # fmt: skip
        made[f"intervals-{name}"] = json.dumps({**content, "intervals": intervals}).encode()
    for key in ("row", "scores", "protocol"):
        for name, value in {"none": None, "list": [], "text": "x", "empty": {}}.items():
            made[f"{key}-{name}"] = json.dumps({**content, key: value}).encode()
    made |= {f"cut-{i}": text[: i * len(text) // 6].encode() for i in range(6)}
    return made | {"deep": b"[" * 100_000, "latin": "é".encode("latin-1"), "list": b"[]", "zeros": bytes(50)}


def logs(line: str) -> dict[str, bytes]:
    """log.jsonl, changed; ``line`` is one that holds."""
    made = {f"step-{name}": line.replace('"step": 14', f'"step": {value}') for name, value in ODD_NUMBERS.items()}
    made |= {
        f"seconds-{name}": f'{{"step": 1, "seconds": {value}, "fid": {value}}}\n' for name, value in ODD_NUMBERS.items()
    }
    made |= {
        f"loss-{name}": f'{{"step": 1, "seconds": 2, "losses": {{"g": {v}}}}}\n' for name, v in ODD_NUMBERS.items()
    }
    made |= {
        f"words-{name}": json.dumps({"step": 1, "seconds": 1, "fid": 2, "losses": {words: 1}, "warnings": [words]})
        + "\n"
        for name, words in ODD_WORDS.items()
    }
    made |= {
        "number": "3\n", "list": "[]\n", "text": "hello\n", "half": line[:20],
        "half-then-whole": line[:20] + "\n" + line,
        "losses-list": '{"losses": [1]}\n', "watch-number": '{"watch": 3}\n', "warnings-text": '{"warnings": "x"}\n',
        "warnings-numbers": '{"warnings": [1, null, {}]}\n', "empty-record": "{}\n", "blank": "\n\n \n",
        "deep": "[" * 100_000 + "\n" + line, "deep-last": line + "[" * 100_000,
        "coverage": '{"watch": {"coverage": "x"}}\n',
    }  # fmt: skip
    return {name: text.encode("utf-8", "surrogatepass") for name, text in made.items()} | {
        "latin": b"\xe9\n",
        "zeros": bytes(100),
    }
