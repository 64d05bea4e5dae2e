# One image for the index job and the service. docs/deployment.md explains how to build and run it.
ARG BASE=python:3.11-slim-bookworm

# List the packages in a stage of its own. The next stage is by far the largest; this way it is rebuilt only if
# the list or a pin changes, and not for every change of pyproject.toml.
FROM ${BASE} AS wanted
# The build of FAISS: gpu or cpu. The GPU build also runs without a GPU, but brings 1.2 GB of CUDA libraries.
ARG FAISS=gpu
# The project's extras: "heic int8 milvus ray" for a cluster.
ARG EXTRAS="heic int8"
COPY pyproject.toml .
RUN python3 -c 'import sys, tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(*p["dependencies"], *(one for name in sys.argv[1:] for one in p["optional-dependencies"][name]), sep="\n")' $EXTRAS > /wanted.txt \
    && if [ "$FAISS" = cpu ]; then sed -i -e '/^faiss-gpu/d' -e '/^faiss-cpu/s/;.*//' /wanted.txt; fi

FROM ${BASE} AS dependencies
# Another index of PyTorch wheels, for the build without CUDA. Pip's own PIP_EXTRA_INDEX_URL does the same.
ARG TORCH_INDEX_URL=
WORKDIR /build
RUN python3 -m venv /opt/loci
COPY --from=wanted /wanted.txt ./
COPY requirements.txt ./
RUN /opt/loci/bin/pip install --no-cache-dir --disable-pip-version-check \
        ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} --constraint requirements.txt --requirement wanted.txt

FROM dependencies AS project
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY model model
COPY indexer indexer
COPY service service
COPY loci loci
RUN /opt/loci/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --prefix /opt/project .

FROM ${BASE}
# A fixed uid, so that a volume keeps its owner when the image changes.
RUN groupadd --gid 10001 loci \
    && useradd --uid 10001 --gid loci --no-create-home --home-dir /tmp --shell /usr/sbin/nologin loci \
    && mkdir /data /photos \
    && chown loci:loci /data
# Two layers, so that a new version of the project transfers megabytes, not the gigabytes of dependencies.
COPY --from=dependencies /opt/loci /opt/loci
COPY --from=project /opt/project /opt/loci
# Everything written outside /data goes to /tmp. With a tmpfs there, the root can be read-only.
ENV PATH=/opt/loci/bin:$PATH \
    HOME=/tmp \
    USER=loci \
    TMPDIR=/tmp \
    XDG_CACHE_HOME=/tmp/.cache \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    LOCI_HOST=0.0.0.0 \
    LOCI_PORT=8000 \
    LOCI_INDEX=/data/index
USER loci
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['LOCI_PORT']), timeout=4); c.request('GET', '/healthz'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["loci"]
CMD ["serve"]
