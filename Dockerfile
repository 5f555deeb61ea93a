# docker build -t strapi-qstash .
#
# The image holds the binary and nothing else: no shell, no libc, no certificates (Mozilla's roots are
# compiled in; --ca-file adds yours), no user but a number. It needs no writable root: run it with
# --read-only, and keep /data.

# Anything with the Rust toolchain, a C compiler, and a libc to link statically.
ARG BUILD_IMAGE=rust:1.95-slim-bookworm

FROM ${BUILD_IMAGE} AS build
WORKDIR /src
COPY . .
RUN install -D "$(packaging/build-static)" /out/strapi-qstash && mkdir /out/data

FROM scratch
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="strapi-qstash" \
      org.opencontainers.image.description="Takes Strapi's webhooks, makes each one durable, and publishes it to Upstash QStash" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

COPY --from=build /out/strapi-qstash /strapi-qstash
# A new volume takes over the owner of the folder that it is mounted on.
COPY --from=build --chown=65532:65532 /out/data /data
USER 65532:65532
VOLUME /data

# The process that was started first keeps the listening socket, and starts a worker anew that dies.
ENV STRAPI_QSTASH_DATA_DIR=/data \
    STRAPI_QSTASH_SUPERVISE=true
# Where Strapi posts. Health and metrics are at 8788. Both listen on loopback until they are told
# otherwise, since a pod shares it, and since anything wider needs a secret.
EXPOSE 8787 8788
HEALTHCHECK --interval=10s --timeout=6s --start-period=5s --retries=3 CMD ["/strapi-qstash", "healthcheck"]
ENTRYPOINT ["/strapi-qstash"]
