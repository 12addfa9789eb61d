# An image with nothing in it but the program, certificates and a user without rights.
#
#   docker build -t keystead .
#   docker run --rm keystead check-config
#
# Inside a container loopback cannot be reached from outside, so a server needs
# KEYSTEAD__SERVER__LISTEN=0.0.0.0:8080 and KEYSTEAD__SERVER__DANGEROUS_PLAIN_HTTP=true: publish its
# port only to a proxy that speaks TLS, as docker-compose.yml does by 127.0.0.1.

FROM rust:1.95-slim-bookworm AS build
# For the allocator.
RUN apt-get update \
 && apt-get install -y --no-install-recommends make \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin keystead

FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --user-group --no-create-home --home-dir /data keystead \
 && install -d -m 700 -o keystead -g keystead /data
COPY --from=build /src/target/release/keystead /usr/local/bin/keystead
# By number, so that an orchestrator can see that it is not root.
USER 10001
WORKDIR /data
ENV KEYSTEAD__DATA_DIR=/data
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD ["keystead", "health"]
ENTRYPOINT ["keystead"]
CMD ["serve"]
