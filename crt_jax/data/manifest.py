"""The manifest of packed data: its origin, counts and checksums, including its own checksum."""

import hashlib
import json
from pathlib import Path
from typing import Any

from crt_jax import json_text, storage
from crt_jax.data.token_files import DamagedCache

FORMAT_VERSION = 1
SPLITS = ('train', 'validation')


def manifest_path(folder: Path) -> Path:
  return folder / 'manifest.json'


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
  complete = {'format_version': FORMAT_VERSION, **manifest}
  complete['sha256'] = _checksum(complete)
  manifest_path(folder).write_text(json_text.dumps(complete, indent=2) + '\n', 'utf-8')


def read_manifest(folder: Path) -> dict[str, Any]:
  """Returns the manifest of a folder.

  Raises:
    DamagedCache: it is missing, not what was written, or of another format version.
    OutOfReach: it cannot be read, which says nothing against it.
  """
  path = manifest_path(folder)
  try:
    manifest = json_text.parse(storage.retried(path, path.read_bytes))
    checksum = manifest.pop('sha256')
  except (*storage.MISSING, ValueError, KeyError, AttributeError, TypeError) as error:
    raise DamagedCache(f'{path} cannot be read ({error})') from None
  if checksum != _checksum(manifest):
    raise DamagedCache(f'{path} has other contents than were written')
  if manifest['format_version'] != FORMAT_VERSION:
    raise DamagedCache(
      f'{path} has format version {manifest["format_version"]}, not {FORMAT_VERSION}'
    )
  return manifest


def _checksum(manifest: dict[str, Any]) -> str:
  return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode('utf-8')).hexdigest()
