"""Pack the image files of a merge into shards, reduced in size on request, for file systems that are slow with many small files."""

import hashlib
import io
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from atomic_io import free_bytes
from cpu_cores import available_cores
from dataset.build.fingerprint import file_states
from dataset.build.image_shards import ImageShards
from dataset.build.image_validation import in_processes
from dataset.config import DataConfig
from dataset.loading.image_io import ImageError, open_image, read_image_file
from dataset.loading.packed_images import PackedImage
from dataset.remote_files import parse_path
from errors import TesseraError
from progress import track

JPEG_QUALITY = 95


def pack_images(images: pa.Table, folder: Path, config: DataConfig) -> pa.Table:
    """The images of a merge (see `MergeResult`), all of them in shards: `path`, and of reduced ones `width`, `height` and `sha256`.

    Args:
        images: One row per image.
        folder: Where the shards are.
        config: `pack_max_side`, and how many processes work.

    Raises:
        TesseraError: There is not enough space, or an image has become unreadable since it was checked.
    """
    rows: list[dict[str, Any]] = images.to_pylist()
    to_pack = [row for row in rows if PackedImage.parse(row["path"]) is None or _is_reduced(row, config.pack_max_side)]
    size = sum(state[1] for state in file_states([row["path"] for row in to_pack if PackedImage.parse(row["path"]) is None]))
    free = free_bytes(folder)
    if config.pack_max_side is None and size > free:
        raise TesseraError(f"data.pack: the images take {size:,} bytes, and {free:,} are free in {folder}")
    title = f"packing images ({size / 1e9:,.2f} GB of files, {free / 1e9:,.1f} GB free)"
    with ImageShards(folder) as shards:
        missing = [row for row in to_pack if shards.find(_key(row, config.pack_max_side)) is None]
        prepare = partial(_packed_bytes, max_side=config.pack_max_side, max_pixels=config.max_pixels)
        results = in_processes(prepare, [row["path"] for row in missing], config.workers or available_cores(), _killed)
        for row, result in zip(missing, track(results, title, len(missing), "images"), strict=True):
            if isinstance(result, str):
                raise TesseraError(f"data.pack: {result}")
            shards.add(result, _key(row, config.pack_max_side))
        for row in to_pack:
            row["path"] = shards.find(_key(row, config.pack_max_side))
    for row in to_pack:
        if _is_reduced(row, config.pack_max_side):
            data = read_image_file(Path(row["path"]))
            row["sha256"] = hashlib.sha256(data).hexdigest()
            row["width"], row["height"] = Image.open(io.BytesIO(data)).size
    return pa.Table.from_pylist(rows, images.schema)


def _is_reduced(row: dict[str, Any], max_side: int | None) -> bool:
    return max_side is not None and max(row["width"], row["height"]) > max_side


def _key(row: dict[str, Any], max_side: int | None) -> str:
    """Name of an image in the shards: its content, and the side to which it is reduced."""
    return f"{row['sha256']}-{max_side}" if _is_reduced(row, max_side) else str(row["sha256"])


def _packed_bytes(path: str, max_side: int | None, max_pixels: int) -> bytes | str:
    """The bytes of an image, encoded anew if it is reduced; a message if it can no longer be read."""
    try:
        data = read_image_file(parse_path(path), max_pixels)
        if max_side is None:
            return data
        image = open_image(data, max_pixels)
    except ImageError as error:
        return str(error)
    if max(image.size) <= max_side:
        return data
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def _killed(path: str) -> bytes | str:
    return f"{path}: the process that read it was ended by the system, as happens when memory runs out"
