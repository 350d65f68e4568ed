# The image of mcpo-bridge: `docker build -t mcpo-bridge .`, explained in docs/docker.md.
#
# Layers in the order in which they change, seldom first: system packages, uv, (Node,) the servers,
# then the program. The program is compiled elsewhere, so that no compiler is in what runs.

# Mirrors of a company, if Docker Hub is out of reach.
ARG RUST_IMAGE=rust:1.95-slim-bookworm
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
ARG NODE_IMAGE=node:22-bookworm-slim
# What the servers of mcp-servers.json need: `python` has uv and uvx, `node` has npm and npx too.
ARG RUNTIME=python
# Whose servers are installed into the image: a file of this folder that .dockerignore lets through,
# config/image.json for one of your own, or deploy/docker/empty for none.
ARG SERVERS=mcp-servers.json.example

# ---- the program ---------------------------------------------------------------------------------
FROM ${RUST_IMAGE} AS builder
COPY deploy/docker/trust /usr/local/bin/
RUN --mount=type=secret,id=ca,target=/run/secrets/ca trust /run/secrets/ca
WORKDIR /build
# The dependencies alone, beside a program that does nothing: compiled again only when they change.
COPY Cargo.toml Cargo.lock ./
COPY crates/bridge/Cargo.toml crates/bridge/
COPY crates/model/Cargo.toml crates/model/
COPY crates/openapi/Cargo.toml crates/openapi/
COPY crates/process/Cargo.toml crates/process/
COPY crates/protocol/Cargo.toml crates/protocol/
COPY crates/state/Cargo.toml crates/state/
RUN --mount=type=secret,id=cargo,target=/usr/local/cargo/config.toml \
    --mount=type=cache,id=mcpo-cargo,target=/usr/local/cargo/registry \
    for crate in crates/*; do mkdir "$crate/src" && touch "$crate/src/lib.rs"; done \
    && echo 'fn main() {}' >crates/bridge/src/main.rs \
    && cargo build --release --locked && rm -r crates/*/src
COPY mcp-servers.json.example ./
COPY crates crates
# Files from the context may be older than the stubs above; cargo goes by their time.
RUN --mount=type=secret,id=cargo,target=/usr/local/cargo/config.toml \
    --mount=type=cache,id=mcpo-cargo,target=/usr/local/cargo/registry \
    touch crates/*/src/lib.rs crates/bridge/src/main.rs && cargo build --release --locked

# ---- what the program and its servers need -------------------------------------------------------
FROM ${PYTHON_IMAGE} AS python
COPY deploy/docker/trust /usr/local/bin/
RUN --mount=type=secret,id=ca,target=/run/secrets/ca trust /run/secrets/ca
# fonts-noto-cjk: pictures with Japanese, Chinese and Korean text. tini: process 1, so that a shell
# in place of the bridge is looked after too.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates curl fonts-noto-cjk tini \
    && rm -rf /var/lib/apt/lists/*
ARG UV_VERSION=0.13.9
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install --no-cache-dir --root-user-action=ignore "uv==${UV_VERSION}"
# The folders are made here because a new volume takes over owner and mode of the folder that it
# covers: this is how a user who is not root can write into it.
RUN groupadd --gid 10001 mcpo \
    && useradd --uid 10001 --gid 10001 --home-dir /app --no-create-home --shell /usr/sbin/nologin mcpo \
    && install -d -o mcpo -g mcpo -m 0700 /tmp/mcpo-jobs \
    && install -d -o mcpo -g mcpo -m 0755 /tmp/mcpo-tools /app/logs \
    && install -d -m 0755 /app/config /app/assets /app/examples
# One bundle for all who speak TLS here: uv, pip, requests, curl and Node each look elsewhere.
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    REQUESTS_CA_BUNDLE=/etc/ssl/certs/ca-certificates.crt \
    CURL_CA_BUNDLE=/etc/ssl/certs/ca-certificates.crt \
    PIP_CERT=/etc/ssl/certs/ca-certificates.crt \
    NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt \
    LANG=C.UTF-8

FROM ${NODE_IMAGE} AS node-image

FROM python AS node
COPY --from=node-image /usr/local/bin/node /usr/local/bin/
COPY --from=node-image /usr/local/lib/node_modules/npm /usr/local/lib/node_modules/npm
RUN ln -s ../lib/node_modules/npm/bin/npm-cli.js /usr/local/bin/npm \
    && ln -s ../lib/node_modules/npm/bin/npx-cli.js /usr/local/bin/npx

# ---- the servers ---------------------------------------------------------------------------------
# Made by the program, but no layer below it: the image below has them first.
FROM ${RUNTIME} AS servers
ARG SERVERS
COPY --from=builder /build/target/release/mcpo-bridge /usr/local/bin/
ENV MCPO_ASSETS_DIR=/app/assets
# With the versions of SERVERS.lock, where there is one.
COPY ${SERVERS} ${SERVERS}.loc[k] /build/
COPY deploy/docker/preinstall.py /build/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=secret,id=npm,target=/usr/local/etc/npmrc \
    --mount=type=cache,id=mcpo-uv,target=/opt/mcpo-tools/uv/cache \
    --mount=type=cache,id=mcpo-npm,target=/opt/mcpo-tools/npm \
    python3 /build/preinstall.py "/build/${SERVERS##*/}"

# ---- the image -----------------------------------------------------------------------------------
FROM ${RUNTIME} AS runtime
WORKDIR /app
# Not below MCPO_TOOLS_DIR, where a volume would hide it. It belongs to root: no server can change it.
COPY --from=servers /opt/mcpo-tools /opt/mcpo-tools
COPY assets /app/assets
COPY examples /app/examples
COPY deploy/docker/init.py /app/init.py
COPY mcp-servers.json.example /app/
COPY --from=builder /build/target/release/mcpo-bridge /usr/local/bin/
ENV MCPO_HOST=0.0.0.0 \
    MCPO_PORT=8080 \
    MCPO_CONFIG_FILE=/app/config/mcp-servers.json \
    MCPO_JOBS_DIR=/tmp/mcpo-jobs \
    MCPO_TOOLS_DIR=/tmp/mcpo-tools \
    MCPO_PREINSTALLED_DIR=/opt/mcpo-tools \
    MCPO_ASSETS_DIR=/app/assets
USER 10001:10001
EXPOSE 8080
# SIGTERM: no new calls, running ones finish (docs/operations.md).
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --retries=3 --start-period=10s \
    CMD curl -f "http://localhost:${MCPO_PORT}${MCPO_PATH_PREFIX}/health"
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["mcpo-bridge", "serve"]
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="mcpo-bridge" \
      org.opencontainers.image.description="Runs MCP servers for many people: a process and a folder for each chat, files as expiring links" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="python:3.11-slim-bookworm"
