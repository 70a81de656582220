# The package on GPUs: training with DeepSpeed or FSDP2. Never built or run by us: this project has no GPU.
#
#   docker build -f docker/cuda.Dockerfile -t opd_trl:cuda .
#   docker run --rm -it --gpus all --ipc=host -v "$PWD:/work" opd_trl:cuda opd --config my_recipe.yaml
#
# vLLM has an image of its own: docker/compose.yaml runs a teacher in it, beside the trainer.
FROM nvidia/cuda:12.8.1-devel-ubuntu24.04
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/opt/venv/bin:$PATH
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends python3-dev python3-venv g++ git \
    && rm -rf /var/lib/apt/lists/* && python3 -m venv /opt/venv
WORKDIR /opt/opd_trl
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY opd_trl opd_trl
COPY recipes recipes
# Versions are bounded in setup.cfg; constraints.txt pins a torch for CPUs.
# hadolint ignore=DL3013
RUN pip install ".[deepspeed,math,rules,serve,wandb]"
WORKDIR /work
ENTRYPOINT ["opd-trl"]
CMD ["--help"]
