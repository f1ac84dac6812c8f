"""A small Kubernetes API server for tests: keeps objects, so that the real kubectl talks to it.

It knows the kinds of a sweep and does what ``kubectl get, wait, apply, patch, delete, logs`` ask
for, watches, graceful deletion and evictions included; what is immutable in a Job is refused. The
cluster behind it: ``react``, called with every Job that was made or changed, and ``nodes``, which
runs pods (:mod:`simulated_cluster`; without it a pod is an object and no more).
https://kubernetes.io/docs/reference/using-api/api-concepts/
"""

import copy
import json
import shutil
import subprocess
import threading
import uuid
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from batchsweep.jobs.patch import patched

#: Plural -> group and version, kind, short names.
KINDS = {
    "configmaps": ("v1", "ConfigMap", ["cm"]),
    "persistentvolumeclaims": ("v1", "PersistentVolumeClaim", ["pvc"]),
    "pods": ("v1", "Pod", ["po"]),
    "events": ("v1", "Event", ["ev"]),
    "jobs": ("batch/v1", "Job", []),
    "serviceaccounts": ("v1", "ServiceAccount", ["sa"]),
    "roles": ("rbac.authorization.k8s.io/v1", "Role", []),
    "rolebindings": ("rbac.authorization.k8s.io/v1", "RoleBinding", []),
}
GROUPS = ("batch", "rbac.authorization.k8s.io")
VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]
IMMUTABLE = ("completions", "completionMode", "template", "podFailurePolicy", "selector")


def _no_kubectl():
    """Why this machine's kubectl is none to test with; empty if it is one."""
    if shutil.which("kubectl") is None:
        return "no kubectl on this machine: not tested: what is submitted to a cluster"
    command = ["kubectl", "version", "--client", "--output=json"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    version = json.loads(said)["clientVersion"]
    if (int(version["major"]), int(version["minor"].rstrip("+"))) >= (1, 27):
        return ""
    return (
        f"kubectl {version['gitVersion']} is older than 1.27: it checks objects by an OpenAPI "
        "description that the tests' server hasn't, and its kustomize is an old one: not tested: "
        "what is submitted to a cluster"
    )


NO_KUBECTL = _no_kubectl()
needs_kubectl = pytest.mark.skipif(bool(NO_KUBECTL), reason=NO_KUBECTL)


class Refused(Exception):
    """A request's answer, where it isn't what was asked for."""

    def __init__(self, code, reason, message):
        super().__init__(message)
        self.status = {
            **{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code},
            **{"reason": reason, "message": message},
        }


class Cluster:
    """The objects, and the server once it is started; it may be stopped and started again."""

    def __init__(self, react=lambda job: None):
        self.objects = {}  # (plural, namespace, name) -> object
        self.requests = []
        self.react = react
        self.nodes = None
        self.lock = threading.RLock()
        #: A Job that is suspended may be given other pods, as far as resources and nodes go.
        self.suspended_change = True
        #: Method -> how many of its requests are answered with 503.
        self.away = {}
        self._changed = threading.Condition(self.lock)
        self._events = []  # (key, what a watch gets), in order
        self._version = 0
        self._server = None
        self._port = 0

    def start(self):
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), self._handler())
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self):
        server, self._server = self._server, None
        server.shutdown()
        server.server_close()
        with self.lock:
            self._changed.notify_all()

    def kubeconfig(self, path, namespace="default"):
        """Write a file for ``KUBECONFIG``."""
        context = {"cluster": "c", "user": "u", "namespace": namespace}
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "x",
                    "clusters": [
                        {"name": "c", "cluster": {"server": f"http://127.0.0.1:{self._port}"}}
                    ],
                    "users": [{"name": "u", "user": {}}],
                    "contexts": [{"name": "x", "context": context}],
                }
            )
        )

    @property
    def url(self):
        return f"http://127.0.0.1:{self._port}"

    def get(self, kind, name, namespace="default"):
        return self.objects[kind, namespace, name]

    def owned(self, owner):
        """The pods of a Job."""
        uid = owner["metadata"]["uid"]
        return [
            o
            for k, o in sorted(self.objects.items())
            if k[0] == "pods" and any(r["uid"] == uid for r in _owners(o))
        ]

    def create(self, plural, namespace, body):
        """Keep a new object; a Job gets its selector."""
        key = (plural, namespace, body["metadata"]["name"])
        if key in self.objects:
            raise Refused(409, "AlreadyExists", f'{plural} "{key[2]}" already exists')
        metadata = {
            **body["metadata"],
            "namespace": namespace,
            "uid": str(uuid.uuid4()),
            "creationTimestamp": now(),
        }
        item = {**copy.deepcopy(body), "metadata": metadata}
        if plural == "jobs":
            labels = {"batch.kubernetes.io/controller-uid": metadata["uid"]}
            item["spec"].setdefault("selector", {"matchLabels": labels})
        if plural == "pods":
            item.setdefault("status", {"phase": "Pending"})
        self.keep(key, item, "ADDED")
        if plural == "pods" and self.nodes is not None:
            self.nodes.run(item)
        return item

    def delete(self, key, grace=None, *, foreground=False):
        """Delete an object: a pod that runs is stopped first, a Job takes its pods with it."""
        item = self.objects[key]
        metadata = item["metadata"]
        if key[0] == "pods" and self.nodes is not None and self.nodes.runs(item):
            if grace is None:
                grace = item["spec"].get("terminationGracePeriodSeconds", 30)
            metadata.setdefault("deletionTimestamp", now())
            metadata["deletionGracePeriodSeconds"] = grace
            self.keep(key, item)
            self.nodes.stop(item, grace)
            return
        if key[0] == "jobs":
            metadata["deletionTimestamp"] = now()
            for pod in self.owned(item):
                self.delete(("pods", key[1], pod["metadata"]["name"]))
            if foreground and self.owned(item):
                self.keep(key, item)
                return
        self.remove(key)

    def remove(self, key):
        """Forget an object, and a Job that waited for its last pod to go."""
        item = self.objects.pop(key, None)
        if item is None:
            return
        self._tell(key, item, "DELETED")
        for owner in _owners(item):
            above = ("jobs", key[1], owner["name"])
            job = self.objects.get(above)
            ends = job is not None and "deletionTimestamp" in job["metadata"]
            if ends and not self.owned(job):
                self.remove(above)

    def answer(self, method, path, query, body, content_type):
        parts = [part for part in path.split("/") if part]
        with self.lock:
            if parts[2:3] == ["namespaces"] and len(parts) == 4:
                return {"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": parts[3]}}
            if "namespaces" in parts:
                if self.away.get(method):
                    self.away[method] -= 1
                    raise Refused(503, "ServiceUnavailable", "the server is currently unable")
                at = parts.index("namespaces")
                namespace, plural, *name = parts[at + 1 :]
                made = [body["metadata"]["name"]] if method == "POST" and not name else []
                self.requests.append((method, plural, *name, *made))
                return self._of_kind(method, plural, namespace, name, query, body)
        return _discovery(parts)

    def _of_kind(self, method, plural, namespace, name, query, body):
        version, kind, _ = KINDS[plural]
        if method == "POST" and not name:
            return self.create(plural, namespace, body)
        if not name:
            found = [
                o
                for k, o in self.objects.items()
                if k[:2] == (plural, namespace) and _fits(o, query)
            ]
            return {
                "kind": f"{kind}List",
                "apiVersion": version,
                "metadata": {"resourceVersion": str(self._version)},
                "items": found,
            }
        key = (plural, namespace, name[0])
        if key not in self.objects:
            raise Refused(404, "NotFound", f'{plural} "{name[0]}" not found')
        there = self.objects[key]
        if name[1:] == ["eviction"]:
            conditions = there.setdefault("status", {}).setdefault("conditions", [])
            reason = {"reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting"}
            conditions.append({"type": "DisruptionTarget", "status": "True", **reason})
            self.delete(key)
            return {"kind": "Status", "apiVersion": "v1", "status": "Success"}
        if name[1:] == ["log"]:
            return self.nodes.log(there, query.get("container"))
        if method == "DELETE":
            asked = body or {}
            foreground = asked.get("propagationPolicy") == "Foreground"
            self.delete(key, asked.get("gracePeriodSeconds"), foreground=foreground)
            details = {"name": name[0], "kind": plural, "uid": there["metadata"]["uid"]}
            return {"kind": "Status", "apiVersion": "v1", "status": "Success", "details": details}
        if method == "PATCH":
            (new,) = patched([there], {**_without_directives(body), "kind": kind})
            fields = IMMUTABLE if kind == "Job" else ()
            changed = [f for f in fields if new["spec"].get(f) != there["spec"].get(f)]
            if changed and self.suspended_change and there["spec"].get("suspend"):
                same = _without_resources(new) == _without_resources(there)
                changed = [f for f in changed if not (f == "template" and same)]
            if changed:
                raise Refused(422, "Invalid", f"spec.{changed[0]}: field is immutable")
            return self.keep(key, new)
        return there

    def keep(self, key, item, event="MODIFIED"):
        """Have this object now; those who watch are told."""
        with self.lock:
            self.objects[key] = item
            if key[0] == "jobs":
                self.react(item)
            self._tell(key, item, event)
            return item

    def _tell(self, key, item, event):
        self._version += 1
        item["metadata"]["resourceVersion"] = str(self._version)
        self._events.append((key, {"type": event, "object": copy.deepcopy(item)}))
        self._changed.notify_all()

    def watched(self, path, query):
        """Events of a kind from a version on, until the server goes away."""
        parts = path.split("/")
        at = parts.index("namespaces")
        kind = (parts[at + 2], parts[at + 1])
        position = 0
        since = int(query.get("resourceVersion") or 0)
        server = self._server
        while self._server is server:
            with self.lock:
                new = self._events[position:]
                position = len(self._events)
                if not new:
                    self._changed.wait(1.0)
            for key, event in new:
                later = int(event["object"]["metadata"]["resourceVersion"]) > since
                if later and key[:2] == kind and _fits(event["object"], query):
                    yield event

    def _handler(self):
        cluster = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                url = urlsplit(self.path)
                query = {k: v[0] for k, v in parse_qs(url.query).items()}
                if query.get("watch") in ("1", "true"):
                    self.watch(url.path, query)
                    return
                code = 200
                try:
                    value = cluster.answer(
                        self.command,
                        url.path,
                        query,
                        json.loads(body) if body else None,
                        self.headers.get("Content-Type"),
                    )
                except Refused as refused:
                    value, code = refused.status, refused.status["code"]
                text = isinstance(value, str)
                said = value.encode() if text else json.dumps(value).encode()
                self.send_response(code)
                self.send_header("Content-Type", "text/plain" if text else "application/json")
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def watch(self, path, query):
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Connection", "close")
                self.end_headers()
                self.close_connection = True
                try:
                    for event in cluster.watched(path, query):
                        self.wfile.write(json.dumps(event).encode() + b"\n")
                        self.wfile.flush()
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            do_GET = do_POST = do_PATCH = do_DELETE = answer

            def log_message(self, format, *args):
                pass

        return Handler


def now():
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _owners(item):
    return item["metadata"].get("ownerReferences", [])


def _fits(item, query):
    labels = item["metadata"].get("labels", {})
    asked = [part.split("=") for part in query.get("labelSelector", "").split(",") if part]
    fields = [part.split("=") for part in query.get("fieldSelector", "").split(",") if part]
    found = {**item, "metadata.name": item["metadata"]["name"]}
    return all(labels.get(k) == v for k, v in asked) and all(found.get(k) == v for k, v in fields)


def _without_resources(job):
    """A Job's pods without what may change while it is suspended."""
    template = copy.deepcopy(job["spec"]["template"])
    for name in ("nodeSelector", "tolerations"):
        template["spec"].pop(name, None)
    for container in template["spec"]["containers"]:
        container.pop("resources", None)
    return template


def _without_directives(value):
    """A strategic merge patch without what only says in which order lists were."""
    if isinstance(value, dict):
        return {k: _without_directives(v) for k, v in value.items() if not k.startswith("$")}
    return [_without_directives(v) for v in value] if isinstance(value, list) else value


def _discovery(parts):
    """What kubectl asks before it asks for anything."""
    if parts == ["version"]:
        return {"major": "1", "minor": "34", "gitVersion": "v1.34.0"}
    if parts == ["api"]:
        return {"kind": "APIVersions", "versions": ["v1"]}
    if parts == ["apis"]:
        versions = {g: {"groupVersion": f"{g}/v1", "version": "v1"} for g in GROUPS}
        groups = [{"name": g, "versions": [v], "preferredVersion": v} for g, v in versions.items()]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    if parts == ["api", "v1"] or (parts[0] == "apis" and parts[1:] in [[g, "v1"] for g in GROUPS]):
        version = "/".join(parts[1:])
        return {
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": version,
            "resources": [
                {
                    **{"name": plural, "singularName": kind.lower(), "namespaced": True},
                    **{"kind": kind, "verbs": VERBS, "shortNames": short},
                }
                for plural, (of, kind, short) in KINDS.items()
                if of == version
            ],
        }
    if parts == ["openapi", "v3"]:
        paths = ("api/v1", *(f"apis/{group}/v1" for group in GROUPS))
        return {"paths": {p: {"serverRelativeURL": f"/openapi/v3/{p}?hash=1"} for p in paths}}
    if parts[:2] == ["openapi", "v3"]:
        return _openapi("/".join(parts[2:]))
    raise Refused(404, "NotFound", "the server could not find the requested resource")


def _openapi(group):
    """As much as tells kubectl that the server checks fields itself."""
    parameters = [{"name": "fieldValidation", "in": "query"}]
    version = group.removeprefix("apis/").removeprefix("api/")
    kinds = [kind for of, kind, _ in KINDS.values() if of == version]
    # Of a List, kubectl believes what it is told of namespaces.
    kinds += ["Namespace"] if version == "v1" else []
    paths = {}
    for kind in kinds:
        name = {"group": version.rpartition("/")[0], "version": "v1", "kind": kind}
        paths[f"/{group}/{kind}/{{name}}"] = {
            "patch": {"parameters": parameters, "x-kubernetes-group-version-kind": name}
        }
    return {"openapi": "3.0.0", "info": {"title": "t", "version": "1"}, "paths": paths}
