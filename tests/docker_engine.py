"""A container engine that runs commands as processes."""

from __future__ import annotations

import os
import signal
import subprocess

import docker


class Container:
    def __init__(self, engine, name, command, options):
        self.engine = engine
        self.name = name
        self.options = options
        self.attrs = {"Config": {"Cmd": list(command)}}
        self.process = subprocess.Popen(
            [*engine.entrypoint, *command],
            cwd=options["working_dir"],
            env={**os.environ, **options["environment"]},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    @property
    def status(self):
        return "running" if self.process.poll() is None else "exited"

    def logs(self, *, stream, follow):
        assert stream and follow
        # In pieces that don't end where lines end, as the engine's do.
        while chunk := self.process.stdout.read(7):
            yield chunk

    def wait(self):
        code = self.process.wait()
        return {"StatusCode": code if code >= 0 else 128 - code}

    def kill(self, name):
        if self.process.poll() is not None:
            raise docker.errors.APIError("is not running")
        self.process.send_signal(getattr(signal, name))

    def remove(self, *, force):
        assert force
        del self.engine.there[self.name]


class Engine:
    """What the launcher uses of ``docker.DockerClient``."""

    def __init__(self, entrypoint):
        self.entrypoint = entrypoint
        self.there = {}
        self.started = []
        self.containers = self

    def run(self, image, command, *, name, **options):
        if image == "missing":
            raise docker.errors.ImageNotFound("no such image")
        if name in self.there:
            raise docker.errors.APIError(f"name {name} is in use")
        self.there[name] = Container(self, name, command, options)
        self.started.append((image, command, name, options))
        return self.there[name]

    def get(self, name):
        if name not in self.there:
            raise docker.errors.NotFound(name)
        return self.there[name]
