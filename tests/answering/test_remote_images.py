"""Questions about images in a bucket."""

from pathlib import Path

import numpy as np

from answering.request_images import data_url, image_digest, load_image
from answering.rerank.calibration_range import image_statistics
from tests.dataset.raw_files import RawFiles
from tests.object_storage import Bucket


def test_an_image_in_a_bucket_is_loaded_sent_and_identified_as_its_local_file(tmp_path: Path, bucket: Bucket) -> None:
    raw = RawFiles(tmp_path)
    local = raw.images / raw.image("a.png", shade=40, size=(64, 48))
    remote = bucket.put("a.png", local.read_bytes())
    assert load_image(remote).tobytes() == load_image(local).tobytes()
    assert data_url(remote, 32) == data_url(local, 32)
    assert image_digest(remote) == image_digest(local)
    assert np.array_equal(image_statistics(remote), image_statistics(local))
