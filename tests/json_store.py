"""The JSON part of a store, in memory."""

from __future__ import annotations

import json


class FolderStore:
    """The JSON part of a store, on a dictionary of strings."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}

    def read_json(self, path):
        return json.loads(self.files[path]) if path in self.files else None

    def write_json(self, path, value):
        self.files[path] = json.dumps(value, allow_nan=False)

    def read_jsons(self, paths):
        return [self.read_json(path) for path in paths]

    def delete_json(self, path):
        self.files.pop(path, None)

    def list_json(self, prefix):
        return [p for p in self.files if p.startswith(prefix)]
