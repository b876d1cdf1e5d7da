# One image for every part of fedbus; `--target browser` adds Chromium for headless browser clients.
ARG PYTHON_BASE=python:3.11-slim-bookworm
ARG NODE_BASE=node:20-bookworm-slim

FROM ${NODE_BASE} AS page
WORKDIR /page
COPY browser_client/package.json browser_client/package-lock.json browser_client/.npmrc ./
RUN npm ci --no-audit --no-fund
COPY browser_client/ ./
RUN npm run build

FROM ${PYTHON_BASE} AS packages
WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE ./
# Without a source there is nothing of fedbus itself to install but its command: a changed source fetches nothing again.
RUN python -m venv --without-pip /opt/fedbus \
 && pip --python /opt/fedbus/bin/python install --no-cache-dir --disable-pip-version-check -c constraints.txt . \
 && find /opt/fedbus -type d \( -name tests -o -path '*/onnx/backend/test' \) -prune -exec rm -r {} +

FROM ${PYTHON_BASE} AS fedbus
RUN groupadd --gid 1000 fedbus \
 && useradd --uid 1000 --gid fedbus --home-dir /var/lib/fedbus --no-create-home --shell /usr/sbin/nologin fedbus \
 && install --directory --owner fedbus --group fedbus /var/lib/fedbus
COPY --from=packages /opt/fedbus /opt/fedbus
COPY bus/ /app/bus/
COPY agents/ /app/agents/
COPY artifacts/ /app/artifacts/
COPY data/ /app/data/
COPY fedbus/ /app/fedbus/
COPY --from=page /page/dist /app/browser_client/dist/
ENV PATH=/opt/fedbus/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN PYTHONDONTWRITEBYTECODE= python -m compileall -q /app
USER fedbus
WORKDIR /var/lib/fedbus
ENTRYPOINT ["python", "-m"]
CMD ["agents.cli", "--help"]

FROM fedbus AS browser
USER root
# Chromium's own sandbox needs rights that a container without privileges does not get; here the container is the sandbox.
RUN mkdir -p /etc/chromium.d \
 && echo 'export CHROMIUM_FLAGS="$CHROMIUM_FLAGS --no-sandbox"' > /etc/chromium.d/in-a-container \
 && apt-get update \
 && apt-get install -y --no-install-recommends chromium \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log
USER fedbus
