# limbeck's two images, by target:
#   operator  controller, server and command line; no torch, no ray
#   runtime   what a job's Ray cluster runs: Ray, torch, limbeck_runtime
#
#   docker build --target operator -t limbeck-operator .
#   docker build --target runtime -t limbeck-runtime .
#
# BASE_IMAGE: any Debian (or like it) whose PATH has python3.11 with venv; what is missing in it comes by apt-get.
# Requirements are pinned and hashed. Our own code is the last layer and the smallest.
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS base
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
# Public Python images come without byte code, and a read-only root never gets any: that costs each process its start.
RUN python3.11 -m compileall -q --invalidation-mode unchecked-hash -x '/(test|tests|lib2to3|site-packages)/' \
    "$(python3.11 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"

# Our code as it will lie in /opt/venv. Byte code is found valid by nobody's clock, hence `unchecked-hash`.
FROM base AS package
COPY requirements/installer.txt /opt/requirements/
RUN python3.11 -m venv /opt/installer && python3.11 -m venv --without-pip /opt/venv \
    && /opt/installer/bin/pip install --no-cache-dir --quiet --require-hashes -r /opt/requirements/installer.txt
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY operator operator
COPY runtime runtime
RUN /opt/installer/bin/uv build --quiet --offline --wheel --no-build-isolation --python /opt/installer/bin/python \
    && /opt/installer/bin/uv pip install --quiet --offline --no-cache --no-deps --python /opt/venv/bin/python \
       --prefix /runtime dist/*.whl \
    && python3.11 -m compileall -q --invalidation-mode unchecked-hash -s /runtime -p /opt/venv /runtime/lib \
    && cp -a /runtime /operator && rm -r /operator/lib/python3.11/site-packages/limbeck_runtime

FROM base AS operator
COPY requirements/installer.txt requirements/operator.txt /opt/requirements/
RUN --mount=type=cache,target=/root/.cache/uv \
    python3.11 -m venv /tmp/installer && python3.11 -m venv --without-pip /opt/venv \
    && /tmp/installer/bin/pip install --no-cache-dir --quiet --require-hashes -r /opt/requirements/installer.txt \
    && PYC_INVALIDATION_MODE=UNCHECKED_HASH /tmp/installer/bin/uv pip install --quiet --python /opt/venv/bin/python \
       --link-mode copy --compile-bytecode --require-hashes -r /opt/requirements/operator.txt \
    && rm -r /tmp/installer \
    && groupadd --gid 1000 limbeck && useradd --uid 1000 --gid 1000 --no-create-home --home-dir /tmp limbeck \
    && install -d -o 1000 -g 1000 /var/lib/limbeck
COPY --from=package /operator /opt/venv
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="limbeck-operator" \
      org.opencontainers.image.description="limbeck's controller, server and command line" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
USER 1000:1000
WORKDIR /tmp
# Arguments choose the process: `-m limbeck.controller` or `-m limbeck.server`; the command line is `limbeck`.
ENTRYPOINT ["/opt/venv/bin/python"]
CMD ["-m", "limbeck.controller"]

FROM base AS runtime
# KubeRay's probes call wget where it cannot tell the version of Ray.
RUN command -v wget >/dev/null \
    || { apt-get update -q && apt-get install -qy --no-install-recommends wget && rm -rf /var/lib/apt/lists/*; }
COPY requirements/installer.txt requirements/runtime.txt /opt/requirements/
RUN --mount=type=cache,target=/root/.cache/uv \
    python3.11 -m venv /tmp/installer && python3.11 -m venv --without-pip /opt/venv \
    && /tmp/installer/bin/pip install --no-cache-dir --quiet --require-hashes -r /opt/requirements/installer.txt \
    && PYC_INVALIDATION_MODE=UNCHECKED_HASH /tmp/installer/bin/uv pip install --quiet --python /opt/venv/bin/python \
       --link-mode copy --compile-bytecode --require-hashes -r /opt/requirements/runtime.txt \
    && rm -r /tmp/installer \
    && groupadd --gid 1000 ray && useradd --uid 1000 --gid 1000 --create-home --shell /bin/bash ray
COPY --from=package /runtime /opt/venv
ENV RAY_USAGE_STATS_ENABLED=0
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="limbeck-runtime" \
      org.opencontainers.image.description="What a limbeck job's Ray cluster runs" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
USER 1000:1000
WORKDIR /home/ray
CMD ["python", "-m", "limbeck_runtime.driver", "--help"]
