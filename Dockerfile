# An image for machines that reach no package index: everything is inside, torch for CUDA 12.8 (driver 570 or newer).
#
#   docker build -t kit .
#   docker run --rm --gpus all -v "$PWD/reports:/reports" kit report --out /reports
#
# For another driver: --build-arg TORCH=... --build-arg INDEX=..., as `python3 -m kit check` names them on the machine.
FROM python:3.12-slim
# So that a report names the commit, and `kit sign` and `kit verify` find ssh-keygen.
RUN apt-get update && apt-get install -y --no-install-recommends git openssh-client && rm -rf /var/lib/apt/lists/*
ARG TORCH=torch==2.11.0 INDEX=https://download.pytorch.org/whl/cu128
RUN pip install --no-cache-dir $TORCH --index-url $INDEX
WORKDIR /kit
COPY requirements-gpu.txt .
RUN pip install --no-cache-dir -r requirements-gpu.txt
COPY . .
RUN git config --global --add safe.directory /kit
ENTRYPOINT ["python", "-m", "kit"]
CMD ["report", "--out", "/reports"]
