# The image of mcpo-bridge: `docker build -t mcpo-bridge .`, see docs/docker.md.
#
# Layers are ordered by how often they change, rarely changed ones first: system packages, uv, (Node,)
# the servers, the program. A separate stage compiles the program, so that the image has no compiler.

# Override these with a company's mirrors if Docker Hub cannot be reached.
ARG RUST_IMAGE=rust:1.95-slim-bookworm
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
ARG NODE_IMAGE=node:22-bookworm-slim
# Runtime for the servers of mcp-servers.json: `python` has uv and uvx, `node` also has npm and npx.
ARG RUNTIME=python
# The servers in this file are installed into the image. .dockerignore must include the file in the
# context: config/image.json for your own servers, deploy/docker/empty for none.
ARG SERVERS=mcp-servers.json.example

# ---- the program ---------------------------------------------------------------------------------
FROM ${RUST_IMAGE} AS builder
COPY deploy/docker/trust /usr/local/bin/
RUN --mount=type=secret,id=ca,target=/run/secrets/ca trust /run/secrets/ca
WORKDIR /build
# Compile the dependencies with an empty program first: this layer changes only with them.
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
# Files from the context may be older than the stubs above, and cargo compares modification times.
RUN --mount=type=secret,id=cargo,target=/usr/local/cargo/config.toml \
    --mount=type=cache,id=mcpo-cargo,target=/usr/local/cargo/registry \
    touch crates/*/src/lib.rs crates/bridge/src/main.rs && cargo build --release --locked

# ---- runtime of the program and its servers ------------------------------------------------------
FROM ${PYTHON_IMAGE} AS python
COPY deploy/docker/trust /usr/local/bin/
RUN --mount=type=secret,id=ca,target=/run/secrets/ca trust /run/secrets/ca
# fonts-noto-cjk: images with Japanese, Chinese and Korean text. tini: process 1, which also reaps the
# children of a shell that is started instead of the bridge.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates curl fonts-noto-cjk tini \
    && rm -rf /var/lib/apt/lists/*
ARG UV_VERSION=0.13.9
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install --no-cache-dir --root-user-action=ignore "uv==${UV_VERSION}"
# The folders are created here because a new volume takes owner and mode of the folder that it covers:
# this makes it writable for a user other than root.
RUN groupadd --gid 10001 mcpo \
    && useradd --uid 10001 --gid 10001 --home-dir /app --no-create-home --shell /usr/sbin/nologin mcpo \
    && install -d -o mcpo -g mcpo -m 0700 /tmp/mcpo-jobs \
    && install -d -o mcpo -g mcpo -m 0755 /tmp/mcpo-tools /app/logs \
    && install -d -m 0755 /app/config /app/assets /app/examples
# One certificate bundle for all TLS clients: uv, pip, requests, curl and Node use different defaults.
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
# The program installs them, but this stage is no layer below it: in the image they come first.
FROM ${RUNTIME} AS servers
ARG SERVERS
COPY --from=builder /build/target/release/mcpo-bridge /usr/local/bin/
ENV MCPO_ASSETS_DIR=/app/assets
# With the versions in SERVERS.lock, if that file exists.
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
# Not below MCPO_TOOLS_DIR, where a volume would hide it. Owned by root, so that no server can change it.
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
# After SIGTERM the bridge accepts no new calls and finishes running ones (docs/operations.md).
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --retries=3 --start-period=10s \
    CMD curl -f "http://localhost:${MCPO_PORT}${MCPO_PATH_PREFIX}/health"
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["mcpo-bridge", "serve"]
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="mcpo-bridge" \
      org.opencontainers.image.description="Runs MCP servers for many users: one process and folder per chat, generated files as expiring download links" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="python:3.11-slim-bookworm"
