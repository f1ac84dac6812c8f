# One image for every command of batchsweep. Build it with BuildKit:
#
#   docker build -t batchsweep:0.1.0 .                 CUDA: the torch wheel brings its runtime
#   docker build -t batchsweep:cpu --build-arg VARIANT=cpu .
#
# The CPU variant needs a CPU wheel of torch ("+cpu"). Put it into wheels/ in this folder, or name
# an index that has one: --build-arg PIP_EXTRA_INDEX_URL=... (PyTorch's install page says which).
# Behind a proxy with its own certificate authority: --secret id=ca,src=<bundle.pem>.
ARG BASE_IMAGE=python:3.11-slim-bookworm

# Wheels that lie in the build context, if there are any ("wheel[s]" may match nothing).
FROM scratch AS wheels
COPY LICENSE wheel[s] /

FROM ${BASE_IMAGE} AS dependencies
ARG VARIANT=cuda
ARG PIP_EXTRA_INDEX_URL=
WORKDIR /build
COPY pyproject.toml constraints.txt ./
# Only what pyproject.toml asks for, at the versions of constraints.txt. The environment has no pip
# of its own (the base's pip fills it), no package's tests or C headers, and is compiled here,
# because at run time its root is read-only: by hashes that nobody checks then, instead of times
# that no two builds share, and with one seed of hashes, in whose order sets are written. (What
# starts with Python may not write its own.)
# (compileall also meets templates that aren't Python: "|| true".)
# hadolint ignore=DL3042
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=secret,id=ca \
    set -e; \
    if [ -s /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi; \
    if [ -n "${PIP_EXTRA_INDEX_URL}" ]; then export PIP_EXTRA_INDEX_URL; \
    else unset PIP_EXTRA_INDEX_URL; fi; \
    python3 -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
      > requirements.txt; \
    case "${VARIANT}" in \
      cuda) ;; \
      cpu) sed -n 's/^\(torch==[0-9.]*\)$/\1+cpu/p' constraints.txt >> requirements.txt ;; \
      *) echo "VARIANT must be cuda or cpu, not '${VARIANT}'"; exit 2 ;; \
    esac; \
    python3 -m venv --without-pip /opt/batchsweep; \
    python3 -m pip --python /opt/batchsweep/bin/python install --no-compile --find-links /wheels \
      -r requirements.txt -c constraints.txt; \
    find /opt/batchsweep/lib -type d \( -name tests -o -path '*/torch/test' -o -path '*/include' \) \
      -prune -exec rm -rf {} +; \
    PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0 /opt/batchsweep/bin/python -m compileall -q -j 0 \
      --invalidation-mode unchecked-hash /opt/batchsweep/lib || true

FROM dependencies AS package
# The wheel's times and modes are not those of this checkout: the same files, the same bytes.
ARG SOURCE_DATE_EPOCH=315532800
COPY . .
# hadolint ignore=DL3042
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=ca \
    if [ -s /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi; \
    chmod -R u=rwX,go=rX . && \
    PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
    python3 -m pip wheel --no-deps --wheel-dir /dist .

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="batchsweep" \
      org.opencontainers.image.description="Find the (model, training checkpoint, layer) with the best text embeddings at a fraction of the usual cost" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0"
COPY --from=dependencies /opt/batchsweep /opt/batchsweep
# Any uid may run it (--user, runAsUser): nothing below needs a passwd entry or a home folder. The
# mounted volumes and /tmp are the only places that are written to.
RUN --mount=type=bind,from=package,source=/dist,target=/dist \
    export PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0 && \
    python3 -m pip --python /opt/batchsweep/bin/python install --no-cache-dir --no-compile \
      --no-index --no-deps /dist/*.whl && \
    /opt/batchsweep/bin/python -m compileall -q --invalidation-mode unchecked-hash \
      /opt/batchsweep/lib/python3*/site-packages/batchsweep && \
    install -d -m 1777 /runs /cache && install -d /configs
ENV PATH=/opt/batchsweep/bin:$PATH \
    HOME=/tmp \
    USER=batchsweep \
    HF_HOME=/cache \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
# The config's relative store path, runs/NAME/store.zarr, is then in the volume at /runs.
WORKDIR /
USER 10001:10001
ENTRYPOINT ["batchsweep"]
