"""The file systems of object storage, by fsspec, and what is wrong with one in a sentence.

File systems are asked of fsspec for each operation and kept nowhere else: it makes new ones in a process that was forked.
"""

import errno
import functools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from errors import TesseraError

PACKAGES = {"s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3"), "gs": ("gcsfs", "gs"), "gcs": ("gcsfs", "gs")}
"""Protocol -> package that fsspec needs for it, and the extra of this project that installs it."""

ANSWER_SECONDS = 6.0
"""Time in which a service must answer the first request of a process for a bucket."""

S3_OPTIONS = {"connect_timeout": 5, "read_timeout": 8, "retries": {"mode": "standard", "total_max_attempts": 2}}
"""Settings of botocore: its own wait for minutes. FSSPEC_S3_CONFIG_KWARGS in the environment replaces them."""

_HUB_KINDS = ("datasets", "spaces", "buckets")
"""First part of an hf:// URL, before OWNER/NAME; models have none."""

_BAD_CREDENTIALS = re.compile("ExpiredToken|InvalidAccessKeyId|InvalidToken|SignatureDoesNotMatch|RequestTimeTooSkewed")


class StorageError(TesseraError):
    """Object storage cannot be used: it does not answer, refuses the credentials, or its package is not installed."""


def protocol_of(url: str) -> str:
    """The part of a URL before ://, in lower case."""
    return url.partition("://")[0].lower()


def name_in(storage: Any, path: str) -> str:
    """The name that a file system gives to a path."""
    return str(storage._strip_protocol(path)).rstrip("/")


@contextmanager
def storage_of(url: str, is_listing: bool = False) -> Iterator[Any]:
    """Context with the file system of a URL, in which errors of its client become OSError as of a local file, or StorageError.

    Args:
        url: What is read.
        is_listing: Nothing can be done without this right, so its absence is a StorageError too.
    """
    protocol = protocol_of(url)
    try:
        storage = _file_system(protocol)
        if (container := _container(protocol, name_in(storage, url))) is not None:
            find_container(protocol, container, os.getpid())
        yield storage
    except (StorageError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, error.strerror or os.strerror(errno.ENOENT), url) from error
    except PermissionError as error:
        if _BAD_CREDENTIALS.search(f"{error} {error.__cause__}"):
            raise StorageError(f"{url}: the service refuses the credentials ({_reason(error)}); {_CREDENTIALS}") from error
        reason = f"{_reason(error)}: the account of the credentials in the environment may not {'list' if is_listing else 'read'} it"
        if is_listing:
            raise StorageError(f"{url}: {reason}") from error
        raise PermissionError(errno.EACCES, reason, url) from error
    except (IsADirectoryError, NotADirectoryError):
        raise
    except Exception as error:  # the clients' exceptions have no common class
        raise StorageError(f"{url}: {_failure(protocol, error)}") from error


_CREDENTIALS = "give them in the environment, as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or in the files of the service's tools"


def _failure(protocol: str, error: Exception) -> str:
    """What is wrong with a storage, in words."""
    if isinstance(error, ImportError) and protocol in PACKAGES:
        package, extra = PACKAGES[protocol]
        return f'{protocol}:// needs the package {package}, which is not installed: pip install {package}, or "tessera-vlm[{extra}]"'
    if "credentials" in type(error).__name__.lower():
        return f"no credentials for {protocol}:// were found ({_reason(error)}); {_CREDENTIALS}"
    return f"{protocol}:// cannot be read ({_reason(error)})"


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _container(protocol: str, name: str) -> str | None:
    """The bucket or repository in the name of a file; None where a protocol has none."""
    parts = name.split("/")
    if protocol == "hf":
        return "/".join(parts[: 3 if parts[0] in _HUB_KINDS else 2])
    return parts[0] if protocol in PACKAGES else None


def _file_system(protocol: str) -> Any:
    """The file system of a protocol in this process."""
    # Imported here: local files do without them.
    import fsspec
    from fsspec.config import conf

    fsspec.get_filesystem_class(protocol)  # raises what is missing
    if protocol == "hf":
        from hub_access import work_offline_if_unreachable

        if work_offline_if_unreachable():
            raise ConnectionError("the Hugging Face Hub cannot be reached, and hf:// paths are not read from a cache")
    if protocol in ("gs", "gcs"):
        _check_google(os.environ.get("STORAGE_EMULATOR_HOST") or "https://storage.googleapis.com", os.getpid())
    options: dict[str, Any] = {"use_listings_cache": False}
    if protocol in ("s3", "s3a") and "config_kwargs" not in conf.get("s3", {}):
        options["config_kwargs"] = S3_OPTIONS
    storage = fsspec.filesystem(protocol, **options)
    if protocol in ("s3", "s3a"):
        storage.retries = 1  # of s3fs, around those of botocore
    if protocol == "hf":
        storage.invalidate_cache()
    return storage


@functools.cache
def _check_google(address: str, _process: int) -> None:
    """Raise ConnectionError when Google Cloud Storage cannot be reached: gcsfs would look for credentials on the network for 20 s first."""
    from hub_access import connects

    if not connects(address):
        raise ConnectionError(f"{address} cannot be reached")


@functools.cache
def find_container(protocol: str, container: str, _process: int) -> None:
    """Ask for a bucket or repository, once in a process: a service that does not answer is found out here, in a few seconds.

    Raises FileNotFoundError when there is none of this name, and TimeoutError when there is no answer.
    """
    from fsspec.asyn import sync
    from fsspec.exceptions import FSTimeoutError

    storage = _file_system(protocol)
    try:
        if storage.async_impl:
            sync(storage.loop, storage._info, container, timeout=ANSWER_SECONDS)
        else:
            storage.info(container)
    except PermissionError:
        return  # its files may be readable all the same
    except FSTimeoutError as error:
        raise TimeoutError(f"the service does not answer within {ANSWER_SECONDS:g} s") from error
    except FileNotFoundError as error:
        kind = "repository" if protocol == "hf" else "bucket"
        raise FileNotFoundError(errno.ENOENT, f"there is no {kind} {protocol}://{container}") from error
