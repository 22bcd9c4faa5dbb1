# ContextEngine: `worker`, `deliver` and every other command, without the embedded broker.
#
# Not built yet where it was written, for want of Docker. tests/test_compose.py checks what can be checked without it:
# versions, lock, user, health check. Whoever builds it first adds the base image's digest.

FROM python:3.11.14-slim-bookworm AS build
WORKDIR /build
RUN python -m venv /opt/contextengine
ENV PATH=/opt/contextengine/bin:$PATH
COPY requirements-image.lock .
RUN pip install --no-cache-dir --only-binary :all: --require-hashes -r requirements-image.lock
COPY pyproject.toml README.md LICENSE ./
COPY contextengine contextengine
RUN pip install --no-cache-dir --no-deps --no-build-isolation --no-index .

FROM python:3.11.14-slim-bookworm
RUN useradd --system --uid 10001 --home-dir /data --create-home contextengine
COPY --from=build /opt/contextengine /opt/contextengine
# One port for both commands: a container runs one of them.
ENV PATH=/opt/contextengine/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    CONTEXTENGINE_DATA_DIR=/data \
    CONTEXTENGINE_WORKER_MONITORING_PORT=8800 \
    CONTEXTENGINE_DELIVER_MONITORING_PORT=8800
USER 10001
WORKDIR /data
VOLUME /data
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8800/health/ready', timeout=4)"]
ENTRYPOINT ["contextengine"]
CMD ["--help"]
