"""Settings of the picture search."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from config_schema import section
from visual.config import ModelNameOrPath

PositiveInt = Annotated[int, Field(ge=1)]


@section
class SearchConfig:
    """The picture search: which pictures are indexed, with which CLIP, and where the index stands."""

    images: Path | None = None
    """Folder of pictures that `tools/clip.py index` indexes where --images names none."""
    index: str | None = None
    """Folder of the index, or its address on object storage such as s3://bucket/pictures; null: data/<name>/search."""
    storage: dict[str, str] | None = None
    """Options of the object storage by LanceDB's names, such as {endpoint: https://minio.example:9000, region: eu-west-1}; keys come
    from the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY on S3)."""
    clip: ModelNameOrPath | None = None
    """CLIP, Chinese-CLIP or SigLIP folder or hub name; null: that of rerank.clip."""
    batch_size: PositiveInt = 64
    """Pictures encoded together."""
    workers: PositiveInt = 2
    """Threads that read and decode pictures."""
    exact_search_limit: Annotated[int, Field(ge=0)] = 20_000
    """An index of at most this many pictures is searched exactly, a larger one approximately."""
    recall: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    """Least recall of the approximate search: the share of the true ten best that it finds, on questions put to the index itself.
    Where it cannot be reached, the search stays exact."""
