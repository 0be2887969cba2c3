"""A source whose files are in a bucket."""

from dataset.source_config import Source
from tests.dataset.raw_files import RawFiles, conversation
from tests.object_storage import Bucket


def ten_images(raw: RawFiles, bucket: Bucket) -> Source:
    """A source in the bucket of ten images, files of one size, and a name that is missing."""
    names = [raw.image(f"{i}.bmp", shade=i * 10) for i in range(10)]
    local = raw.llava([conversation(name, "?", f"answer {name}") for name in (*names, "late.bmp")])
    bucket.upload(raw.folder)
    return bucket.source(local, raw.folder)
