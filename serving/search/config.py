"""Settings of the image search."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from config_schema import section
from visual.config import ModelNameOrPath

PositiveInt = Annotated[int, Field(ge=1)]


@section
class SearchConfig:
    """The image search: its images, its CLIP and its index."""

    images: Path | None = None
    """Folder of images that `tools/clip.py index` indexes unless --images is given."""
    index: str | None = None
    """Folder of the index, or its URI on object storage such as s3://bucket/images; null: data/<name>/search."""
    storage: dict[str, str] | None = None
    """LanceDB's storage options, such as {endpoint: https://minio.example:9000, region: eu-west-1}. Credentials are read from the
    environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY on S3)."""
    clip: ModelNameOrPath | None = None
    """Folder or hub name of a CLIP, Chinese-CLIP or SigLIP; null: that of rerank.clip."""
    batch_size: PositiveInt = 64
    """Images encoded in one batch."""
    workers: PositiveInt = 2
    """Threads that read and decode images."""
    exact_search_limit: Annotated[int, Field(ge=0)] = 20_000
    """An index of at most this many images is searched exactly, a larger one approximately (HNSW)."""
    recall: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    """Required recall at 10 of the approximate search, measured against the exact search. If it is not reached, the search stays
    exact."""
