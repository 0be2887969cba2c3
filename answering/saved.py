"""A reply on disk: JSON, and a PNG with the pictures on the left and what was asked and answered on the right."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from answering.drawing import side_by_side
from answering.replies import Reply
from atomic_io import replacing, write_json
from dataset.loading.image_io import open_picture


def save_reply(reply: Reply, pictures: Sequence[Path], folder: Path, model: dict[str, Any]) -> Path:
    """Write `<picture>-<digest of question and system>.json` and `.png` into `folder`; the path of the PNG.

    model: what identifies the system. Raises PictureError.
    """
    digest = hashlib.blake2b(json.dumps([reply.question, model], default=str).encode(), digest_size=4).hexdigest()
    path = folder / f"{pictures[0].stem if pictures else 'question'}-{digest}.png"
    write_json(path.with_suffix(".json"), {"images": [str(picture) for picture in pictures], **reply.record(), "model": model})
    trusted = [] if reply.credibility is None else [("Credibility", f"{reply.credibility:.2f}")]
    texts = [("Question", reply.question), ("Answer", reply.chosen), *trusted, ("Candidates", "\n".join(_lines(reply)))]
    with replacing(path) as beside:
        side_by_side([open_picture(picture) for picture in pictures], texts).save(beside)
    return path


def _lines(reply: Reply) -> list[str]:
    """Each candidate with its scores behind it: columns would need letters of one width."""
    lines = []
    for candidate in reply.candidates():
        scored = ((name, candidate[name]) for name in (*reply.signals, *(["fused"] if reply.fused else [])))
        named = (("mean log p", candidate["mean_log_prob"]), *scored)
        scores = ", ".join(f"{name} {value:.3f}" for name, value in named if value is not None)
        lines.append(f"{candidate['text'] or '(empty)'}   ({scores})")
    return lines
