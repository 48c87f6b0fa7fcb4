"""Files of a checkpoint."""

from __future__ import annotations

from protos import orchestrator_pb2 as pb
from scheduler.checkpoint_layout import LayerFileInfo, ManifestError, safe_file_name

from .checked import (
    ConvertError,
)


def file_to_message(f: LayerFileInfo) -> pb.LayerFile:
    return pb.LayerFile(name=f.name, sha256=f.sha256, n_bytes=f.n_bytes)


def file_from_message(m: pb.LayerFile) -> LayerFileInfo:
    """Raises ConvertError for a name that is not a layer file's."""
    try:
        return LayerFileInfo(safe_file_name(m.name), m.sha256, m.n_bytes)
    except ManifestError as e:
        raise ConvertError(str(e)) from e
