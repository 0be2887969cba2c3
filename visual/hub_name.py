"""Names of pre-trained models: a local folder, or a model of a hub, in a revision if one is given (`Qwen/Qwen3-1.7B@main`)."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from hub_access import work_offline_if_unreachable

_HUB_NAME = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]*(/\w[\w.-]*)?)(@(?P<revision>\w[\w.-]*(/\w[\w.-]*)*))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class HubName:
    """A model of a hub. revision: branch, tag or commit; None: the default branch."""

    repository: str
    revision: str | None = None

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """The model that `name` or `name@revision` is; None if it is no hub name."""
        match = _HUB_NAME.fullmatch(name)
        return None if match is None or ".." in name else cls(match["repository"], match["revision"])


def pretrained(name: str | Path) -> dict[str, Any]:
    """The arguments of from_pretrained for a folder, a hub name or a hub name with its revision.

    An existing folder comes first. Code that lies with a model is never run, nor is anybody asked whether it may be.
    """
    hub_name = None if Path(name).is_dir() else HubName.parse(str(name))
    if hub_name is None:
        return {"pretrained_model_name_or_path": str(name), "trust_remote_code": False}
    from visual.hub_responses import check_hub_responses

    work_offline_if_unreachable()
    check_hub_responses()
    revision = {} if hub_name.revision is None else {"revision": hub_name.revision}
    return {"pretrained_model_name_or_path": hub_name.repository, **revision, "trust_remote_code": False}
