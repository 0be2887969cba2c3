"""Images that came inside a file are packed into few large files, each once."""

import tarfile
from pathlib import Path

import pytest

from atomic_io import remove_leftovers
from dataset.build.image_shards import ImageShards
from dataset.loading.image_io import ImageError, read_image_file
from dataset.loading.packed_images import PackedImage, file_of_image


def pack(folder: Path, images: list[bytes], shard_bytes: int = 10_000) -> list[Path]:
    with ImageShards(folder, shard_bytes) as shards:
        return [Path(shards.add(image)) for image in images]


IMAGES = [bytes([i]) * (1000 + i) for i in range(20)]


def test_images_are_read_back_from_shards_of_limited_size(tmp_path: Path) -> None:
    paths = pack(tmp_path, IMAGES)
    assert [read_image_file(path) for path in paths] == IMAGES
    shards = sorted(tmp_path.glob("*.tar"))
    assert len(shards) == 4 and all(shard.stat().st_size <= 10_000 for shard in shards)
    assert {file_of_image(path) for path in paths} == set(shards)


def test_a_shard_is_a_tar_archive(tmp_path: Path) -> None:
    pack(tmp_path, IMAGES[:3])
    with tarfile.open(tmp_path / "images-00000.tar") as archive:
        members = archive.getmembers()
        assert [archive.extractfile(member).read() for member in members] == IMAGES[:3]  # type: ignore[union-attr]
    assert all(len(member.name) == 68 for member in members)


def test_an_image_is_packed_once_also_by_a_later_merge(tmp_path: Path) -> None:
    first = pack(tmp_path, [*IMAGES[:3], IMAGES[0]])
    assert first[0] == first[3]
    before = (tmp_path / "images-00000.tar").read_bytes()
    again = pack(tmp_path, [*IMAGES[:3], IMAGES[4]])
    assert again[:3] == first[:3] and file_of_image(again[3]).name == "images-00001.tar"
    assert (tmp_path / "images-00000.tar").read_bytes() == before


def test_an_error_keeps_what_was_packed(tmp_path: Path) -> None:
    with pytest.raises(KeyError), ImageShards(tmp_path) as shards:
        shards.add(IMAGES[0])
        raise KeyError
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["images-00000.parquet", "images-00000.tar"]
    assert read_image_file(pack(tmp_path, IMAGES[:1])[0]) == IMAGES[0]
    assert len(list(tmp_path.glob("*.tar"))) == 1


def test_what_a_killed_merge_left_is_removed(tmp_path: Path) -> None:
    shards = ImageShards(tmp_path)
    shards.add(IMAGES[0])
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_or_missing_shard_is_an_image_error(tmp_path: Path) -> None:
    [path] = pack(tmp_path, IMAGES[:1])
    shard = file_of_image(path)
    shard.write_bytes(shard.read_bytes()[:900])
    with pytest.raises(ImageError, match="388 of 1,000 bytes at 512: the shard is truncated"):
        read_image_file(path)
    shard.unlink()
    with pytest.raises(ImageError, match="there is no such file"):
        read_image_file(path)


@pytest.mark.parametrize("path", ["a.tar", "images-00000.tar#1", "a#1+2", "a.tar#-1+2", "a.tar.gz#1+2"])
def test_other_paths_are_files(path: str) -> None:
    assert PackedImage.parse(path) is None and file_of_image(path) == Path(path)
