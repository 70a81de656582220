# The package on a CPU, with the versions that the tests ran with: the demo, smoke runs, evaluation of small models.
#
#   docker build -f docker/cpu.Dockerfile -t opd_trl:cpu .
#   docker run --rm -it -v "$PWD/runs:/work/runs" opd_trl:cpu demo
#
# Without a build argument torch comes with CUDA, several gigabytes. PyTorch's own index has builds for CPUs:
#   --build-arg EXTRA_INDEX=<its address>
FROM python:3.11-slim-bookworm
ARG EXTRA_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_EXTRA_INDEX_URL=${EXTRA_INDEX} OMP_WAIT_POLICY=PASSIVE
WORKDIR /opt/opd_trl
COPY setup.cfg pyproject.toml constraints.txt README.md LICENSE ./
COPY opd_trl opd_trl
COPY recipes recipes
RUN pip install -c constraints.txt ".[demo,math,rules,serve]" && useradd --create-home --uid 1000 opd && install -d -o opd /work
USER 1000
WORKDIR /work
ENTRYPOINT ["opd-trl"]
CMD ["--help"]
