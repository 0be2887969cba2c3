"""Compute the cached vision features: once for each vision encoder, its settings and an image's content.

In: a RunSetup. Out: the same with complete `CachedFeatures`. Every rank of a run, and other runs on the same data, go through the
shards and compute those that are missing and not locked by another process. So faster processes compute more shards, and a killed
run resumes where it stopped.
Shapes: N images, P patches, D hidden size of the vision encoder.
"""

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from accelerate.utils.memory import clear_device_cache
from PIL import Image

from dataset.loading.image_io import MAX_PIXELS, ImageError, open_image, read_image_file, read_with_retries
from dataset.loading.packed_images import file_of_image
from dataset.loading.sample_store import ImageRow
from dataset.remote_files import FilePath
from errors import TesseraError, UsageError, command
from model.hub.download import format_bytes
from model.kernels.autocast import autocast, frozen_dtype
from model.siglip_qwen.assembly import load_encoder
from model.siglip_qwen.checkpoint import load_whole
from model.siglip_qwen.config import siglip_qwen_settings
from model.siglip_qwen.initial_weights import vision_tower_folder
from process_group import main_process_only
from progress import Progress
from training.data_loading import CachedFeatures
from training.feature_cache.feature_store import FeatureCache
from training.out_of_memory import explain_out_of_memory
from training.run_setup import RunSetup, num_loader_workers
from training.unreadable_images import UnreadableLimit

CACHE_VERSION = 1
"""Incremented when the file format or the image preprocessing changes, so that older features are not used."""

PRECISION_KEYS = {"bf16": True, "fp32": False, "fp16": "fp16"}
"""What the precision is called in the key of the cache: first there was only the question whether it is bf16."""

IMAGES_PER_BATCH = 32
"""Images in a batch of the vision encoder."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image file. digest: SHA-256 of its bytes; max_pixels: size limit of the decoded image."""

    path: FilePath
    digest: str
    max_pixels: int


def with_cached_features(run_setup: RunSetup, weights: Path | None = None) -> RunSetup:
    """The setup with cached features of all images of the training and validation samples; computes those that are missing.

    Images that cannot be read get no features.

    weights: folder that the run takes its weights from, which may have a vision encoder of its own; None for the base models.

    Raises UsageError when there is not enough disk space, TesseraError when more than train.max_unreadable_images cannot be read.
    """
    store, used_images = run_setup.store, run_setup.used_images()
    merged_at = (store.folder / "images.parquet").stat().st_mtime_ns
    images = {row.image_id: _image_file(row, merged_at) for row in store.images() if row.image_id in used_images}
    extractor = _FeatureExtractor(run_setup, {image.digest: image for image in images.values()}, weights)
    with explain_out_of_memory("computing features"), main_process_only(run_setup.partial_state.is_main_process):
        extractor.build()
    extractor.report_unreadable(UnreadableLimit(run_setup.config.train.max_unreadable_images, len(images)))
    cached_features = CachedFeatures(extractor.cache, {image_id: image.digest for image_id, image in images.items()})
    del extractor
    clear_device_cache(garbage_collection=True)
    validation = run_setup.validation and dataclasses.replace(run_setup.validation, features=cached_features)
    return dataclasses.replace(run_setup, features=cached_features, validation=validation)


class _FeatureExtractor:
    """Holds the vision encoder while features are computed. images: by digest; unreadable: errors of those that failed, by digest."""

    def __init__(self, run_setup: RunSetup, images: dict[str, ImageFile], weights: Path | None):
        self.run_setup, self.images = run_setup, images
        self.unreadable: dict[str, str] = {}
        model = siglip_qwen_settings(run_setup.config.model, "train.cache_vision_features")
        dtype = frozen_dtype(run_setup.device, run_setup.precision)
        tower_folder = weights and vision_tower_folder(weights)
        whole = load_whole(tower_folder) if tower_folder else None
        self.encoder = load_encoder(model, dtype=dtype, device=run_setup.device, whole=whole)
        pixels = run_setup.processor.image_processor.to_dict()
        parts = [CACHE_VERSION, self.encoder.digest(), pixels, PRECISION_KEYS[run_setup.precision]]
        key = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
        self.cache = FeatureCache(run_setup.store.folder / "cache" / "features" / key, self.encoder.shape)

    def build(self) -> None:
        """Compute all missing features, sharing the work with every other process that does the same."""
        cache, wanted = self.cache, list(self.images)
        cache.folder.mkdir(parents=True, exist_ok=True)
        cache.remove_partial_files()
        cache.refresh()
        missing = self._missing(wanted)
        self._report_disk_usage(len(missing))
        if not missing:
            return
        shards = [shard for shard in cache.shards(wanted) if cache.missing(shard)]
        first = len(shards) * self.run_setup.partial_state.process_index // self.run_setup.partial_state.num_processes
        shards = shards[first:] + shards[:first]
        with Progress("computing features", len(missing), "images") as progress:
            for shard in shards:
                self._complete_shard(shard, False, progress)
            if any(self._missing(shard) for shard in shards):
                self.run_setup.print_once("waiting for other processes, which compute the rest")
            for shard in shards:
                self._complete_shard(shard, True, progress)

    def _missing(self, digests: Sequence[str]) -> list[str]:
        """Images without features that were not found unreadable."""
        return [digest for digest in self.cache.missing(digests) if digest not in self.unreadable]

    def report_unreadable(self, limit: UnreadableLimit) -> None:
        """Name the images that have no features. Raises TesseraError when they are too many; equal on all ranks, which share the cache."""
        for error in self.unreadable.values():
            self.run_setup.print_once(f"no features: {error}")
        if self.unreadable:
            limit.check(len(self.unreadable), next(reversed(self.unreadable.values())))

    def _complete_shard(self, shard: Sequence[str], wait: bool, progress: Progress) -> None:
        """Compute a shard's missing features. When another process has locked it, skip it or, with `wait`, wait for the lock."""
        before = len(self._missing(shard))
        if not before:
            return
        with self.cache.lock_shard(shard, wait) as acquired:
            self.cache.refresh()
            missing = self._missing(shard)
            progress.update(before - len(missing))
            if acquired and missing:
                computed, features = self._compute(missing, progress)
                if computed:
                    self.cache.write(shard, computed, features)

    def _compute(self, digests: Sequence[str], progress: Progress) -> tuple[list[str], torch.Tensor]:
        """The images that could be read, and their features bf16 [N, P, D] on the host."""
        device, processor = self.run_setup.device, self.run_setup.processor
        features = torch.empty(len(digests), *self.encoder.shape, dtype=torch.bfloat16)
        done, computed = 0, list[str]()
        for batch in self._raw_pixels(digests):
            progress.update(len(batch))
            readable = {digest: pixels for digest, pixels in batch if pixels is not None}
            if not readable:
                continue
            raw = torch.cat(list(readable.values()))
            pixels = processor.normalize({"pixel_values": raw.to(device)})["pixel_values"]
            with autocast(device, self.run_setup.precision):
                features[done : done + len(raw)] = self.encoder(pixels).to("cpu", torch.bfloat16)
            done += len(raw)
            computed += readable
        return computed, features[:done]

    def _raw_pixels(self, digests: Sequence[str]) -> Iterator[list[tuple[str, torch.Tensor | None]]]:
        """Digest and pixels (None: unreadable) of up to IMAGES_PER_BATCH images at a time, read ahead in threads: decoding and resizing
        release the GIL."""
        with ThreadPoolExecutor(max(1, num_loader_workers(self.run_setup.config.train))) as pool:
            opened = pool.map(self._open, digests)
            while batch := list(islice(opened, IMAGES_PER_BATCH)):
                yield batch

    def _open(self, digest: str) -> tuple[str, torch.Tensor | None]:
        """Raises TesseraError when the file is not the one that was preprocessed."""
        image = self.images[digest]
        try:
            opened, read_digest = read_with_retries(partial(_open_and_hash, image))
        except ImageError as error:
            self.unreadable[digest] = str(error)
            return digest, None
        if read_digest != digest:
            raise TesseraError(f"{image.path}: differs from the preprocessed image; run {command('tools/preprocess.py')} again")
        return digest, self.run_setup.processor.read([opened])["pixel_values"]

    def _report_disk_usage(self, missing: int) -> None:
        """Print what is cached and the disk space of the rest. Raises UsageError when there is not enough."""
        folder, print_once = self.cache.folder, self.run_setup.print_once
        print_once(f"features of {len(self.images) - missing:,} images are cached in {folder}, {missing:,} are missing")
        other_bytes = sum(path.stat().st_size for path in folder.parent.glob("*/*.safetensors") if path.parent != folder)
        if other_bytes:
            print_once(f"features of other models or settings take {format_bytes(other_bytes)} next to them; delete those no longer needed")
        needed, free = missing * self.cache.bytes_per_image, shutil.disk_usage(folder).free
        if needed > free:
            raise UsageError(
                f"train.cache_vision_features: {missing:,} images need {format_bytes(needed)}, "
                f"{format_bytes(free)} are free in {folder}; free disk space or set it to false"
            )
        if missing:
            print_once(f"they need {format_bytes(needed)} of disk space; {format_bytes(free)} are free")


def _open_and_hash(image: ImageFile) -> tuple[Image.Image, str]:
    """The decoded image and the SHA-256 of its file. Raises ImageError naming the file."""
    data = read_image_file(image.path, image.max_pixels)
    try:
        return open_image(data, image.max_pixels), hashlib.sha256(data).hexdigest()
    except ImageError as error:
        raise ImageError(error.reason, f"{image.path}: {error}") from error


def _image_file(row: ImageRow, merged_at: int) -> ImageFile:
    """The file of an image; a local one is hashed again when it was modified after preprocessing."""
    digest, max_pixels = row.sha256, max(MAX_PIXELS, row.width * row.height)
    # A file that is gone keeps the digest of the merge: its features may be there already.
    with contextlib.suppress(OSError, ImageError):
        if isinstance(row.path, Path) and file_of_image(row.path).stat().st_mtime_ns > merged_at:
            digest = hashlib.sha256(read_image_file(row.path, max_pixels)).hexdigest()
    return ImageFile(row.path, digest, max_pixels)
