"""Computes the features that are kept on disk: once for a vision trunk, its settings and a picture's content.

In: what a run has prepared. Out: the same with `KeptFeatures`, complete. Every process of a run, and other runs on the same
data, take shards in turn; whoever finds a shard missing that nobody works on computes it. So nobody waits for a fixed share,
and a killed run goes on where it was.
"""

import dataclasses
import gc
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from dataset.loading.image_io import MAX_PIXELS, PictureError, open_picture, read_picture_file
from dataset.loading.sample_store import ImageRow
from errors import TesseraError, UsageError
from model.hub.download import readable
from model.siglip_qwen.assembly import default_dtype, load_encoder
from process_group import only_main_speaks
from progress import Progress
from training.data_loading import KeptFeatures, TrainingData
from training.feature_cache.feature_store import FeatureCache
from training.out_of_memory import naming_memory_settings
from training.run_setup import Prepared, loading_workers

LAYOUT = 1
"""Raised when what is written, or how a picture becomes pixels, changes: features of before are then not found."""

PICTURES_AT_ONCE = 32
"""Pictures that the trunk sees together."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture file and what it holds: the SHA-256 of its bytes."""

    path: Path
    digest: str
    max_pixels: int


def with_features(prepared: Prepared) -> Prepared:
    """What is prepared, with the features of every picture of the training and validation samples on disk.

    Raises UsageError when the disk has no room for them, TesseraError when a picture cannot be read.
    """
    pictures = _pictures(prepared)
    builder = _Builder(prepared, {picture.digest: picture for picture in pictures.values()})
    with naming_memory_settings("computing features"), only_main_speaks(prepared.processes.is_main_process):
        builder.build()
    kept = KeptFeatures(builder.cache, {image_id: picture.digest for image_id, picture in pictures.items()})
    del builder
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    validation = prepared.validation
    if validation is not None:
        validation = TrainingData(validation.store, validation.lengths, validation.processor, validation.seed, features=kept)
    return dataclasses.replace(prepared, features=kept, validation=validation)


class _Builder:
    """Holds the trunk while features are computed. pictures: by digest."""

    def __init__(self, prepared: Prepared, pictures: dict[str, Picture]):
        self.prepared, self.pictures = prepared, pictures
        model = prepared.config.model
        dtype = default_dtype(prepared.device) if prepared.bf16 else torch.float32
        self.encoder = load_encoder(model, dtype=dtype, device=prepared.device)
        pixels = prepared.processor.image_processor.to_dict()
        facts = json.dumps([LAYOUT, self.encoder.digest(), pixels, prepared.bf16], sort_keys=True, default=str)
        key = hashlib.sha256(facts.encode()).hexdigest()[:16]
        self.cache = FeatureCache(prepared.store.folder / "cache" / "features" / key, self.encoder.shape)

    def build(self) -> None:
        """Compute what is missing, with all other processes that do the same."""
        cache, wanted = self.cache, list(self.pictures)
        cache.folder.mkdir(parents=True, exist_ok=True)
        cache.remove_left_overs()
        cache.refresh()
        missing = cache.missing(wanted)
        self._state_room(len(missing))
        if not missing:
            return
        shards = [shard for shard in cache.shards(wanted) if cache.missing(shard)]
        first = len(shards) * self.prepared.processes.process_index // self.prepared.processes.num_processes
        shards = shards[first:] + shards[:first]
        with Progress("computing features", len(missing), "pictures") as progress:
            for shard in shards:
                self._complete(shard, False, progress)
            if any(cache.missing(shard) for shard in shards):
                self.prepared.say("waiting for other processes, which compute the rest")
            for shard in shards:
                self._complete(shard, True, progress)

    def _complete(self, shard: Sequence[str], wait: bool, progress: Progress) -> None:
        """Compute what is missing of a shard, unless another process works on it (with `wait`: when it has stopped doing so)."""
        before = len(self.cache.missing(shard))
        if not before:
            return
        with self.cache.claimed(shard, wait) as mine:
            self.cache.refresh()
            missing = self.cache.missing(shard)
            progress.update(before - len(missing))
            if mine and missing:
                self.cache.write(shard, missing, self._compute(missing, progress))

    def _compute(self, digests: Sequence[str], progress: Progress) -> torch.Tensor:
        """bf16 [pictures, patches, width] on the host."""
        device, reader = self.prepared.device, self.prepared.processor.pictures
        features = torch.empty(len(digests), *self.encoder.shape, dtype=torch.bfloat16)
        done = 0
        for raw in self._raw_pixels(digests):
            pixels = reader.normalise(raw.to(device))
            with torch.autocast(device.type, torch.bfloat16, enabled=self.prepared.bf16):
                features[done : done + len(raw)] = self.encoder(pixels).to("cpu", torch.bfloat16)
            done += len(raw)
            progress.update(len(raw))
        return features

    def _raw_pixels(self, digests: Sequence[str]) -> Iterator[torch.Tensor]:
        """Raw pixels of up to PICTURES_AT_ONCE pictures a time, read ahead in threads: decoding and resizing let others run."""
        with ThreadPoolExecutor(max(1, loading_workers(self.prepared.config.train))) as pool:
            opened = pool.map(self._open, digests)
            while batch := list(islice(opened, PICTURES_AT_ONCE)):
                yield torch.cat(batch)

    def _open(self, digest: str) -> torch.Tensor:
        picture = self.pictures[digest]
        data = read_picture_file(picture.path)
        if hashlib.sha256(data).hexdigest() != digest:
            raise TesseraError(f"{picture.path}: is not the picture that was merged; run python tools/preprocess.py again")
        try:
            return self.prepared.processor.pictures.read([open_picture(data, picture.max_pixels)])
        except PictureError as error:
            raise TesseraError(f"{picture.path}: {error}") from error

    def _state_room(self, missing: int) -> None:
        """Say what is there and how much room the rest takes. Raises UsageError when the disk has less."""
        folder, say = self.cache.folder, self.prepared.say
        say(f"features of {len(self.pictures) - missing:,} pictures are kept in {folder}, {missing:,} are to be computed")
        others = sum(path.stat().st_size for path in folder.parent.glob("*/*.safetensors") if path.parent != folder)
        if others:
            say(f"features of other models or settings take {readable(others)} beside them; delete those that are not needed any more")
        needed, free = missing * self.cache.bytes_a_picture, shutil.disk_usage(folder).free
        if needed > free:
            raise UsageError(
                f"train.cache_features: {readable(needed)} are needed for {missing:,} pictures, {readable(free)} are free in {folder}; "
                f"make room or set it to false"
            )
        if missing:
            say(f"they take {readable(needed)}; {readable(free)} are free")


def _pictures(prepared: Prepared) -> dict[int, Picture]:
    """The pictures of all training and validation samples, by image_id."""
    store = prepared.store
    lengths = [prepared.lengths, *([prepared.validation.lengths] if prepared.validation is not None else [])]
    image_ids = store.column("image_ids")
    needed = {image_id for one in lengths for talk in one.conversations for member in talk for image_id in image_ids[member.row]}
    merged_at = (store.folder / "images.parquet").stat().st_mtime_ns
    return {row.image_id: _picture(row, merged_at) for row in store.images() if row.image_id in needed}


def _picture(row: ImageRow, merged_at: int) -> Picture:
    """A file changed since the merge is hashed again."""
    digest = row.sha256
    try:
        if row.path.stat().st_mtime_ns > merged_at:
            digest = hashlib.sha256(read_picture_file(row.path)).hexdigest()
    except OSError as error:
        raise TesseraError(f"{row.path}: cannot be read ({error.strerror})") from error
    return Picture(row.path, digest, max(MAX_PIXELS, row.width * row.height))
