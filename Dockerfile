# syntax=docker/dockerfile:1
# Baton as a container: see docs/howto/deployment.md.

FROM python:3.11-slim AS build

# An index that has the build of torch for the processor alone, which is far smaller (docs/howto/deployment.md); without one,
# the usual build, which also runs on a GPU.
ARG TORCH_INDEX=

RUN python -m venv /opt/baton
ENV PATH=/opt/baton/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src

# What Baton depends on, in a layer of its own: it changes less often than Baton does.
COPY pyproject.toml constraints.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*project['dependencies'], *project['optional-dependencies']['local'], sep='\n')" > requirements.txt \
    && pip install --constraint constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} --requirement requirements.txt

COPY . .
RUN --mount=type=cache,target=/root/.cache/pip pip install --no-deps .


FROM python:3.11-slim

RUN useradd --system --user-group --uid 10001 --home-dir /data --no-create-home --shell /usr/sbin/nologin baton \
    && install --directory --owner baton --group baton --mode 700 /data
COPY --from=build /opt/baton /opt/baton
ENV PATH=/opt/baton/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/data \
    PIP_NO_CACHE_DIR=1 \
    BATON_HOME=/data \
    BATON_CACHE=/data/cache

USER baton
WORKDIR /data
VOLUME /data
EXPOSE 8000

# A sign of life. Whether the models are there is /readyz, which needs a key.
HEALTHCHECK --start-period=60s --timeout=5s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]

ENTRYPOINT ["baton"]
CMD ["serve", "--host", "0.0.0.0"]
