# One image for every part of fedbus; `--target browser` adds Chromium for headless browser clients.
ARG PYTHON_BASE=python:3.11-slim-bookworm
ARG NODE_BASE=node:20-bookworm-slim

FROM ${NODE_BASE} AS page
WORKDIR /page
COPY browser_client/package.json browser_client/package-lock.json browser_client/.npmrc ./
RUN npm ci --no-audit --no-fund
COPY browser_client/ ./
RUN npm run build

FROM ${PYTHON_BASE} AS fedbus
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY bus/ bus/
COPY agents/ agents/
COPY artifacts/ artifacts/
COPY data/ data/
RUN pip install --no-cache-dir -c constraints.txt -e .
COPY --from=page /page/dist browser_client/dist/
RUN useradd --create-home --uid 1000 fedbus && mkdir .fedbus && chown fedbus .fedbus
USER fedbus
ENV PYTHONUNBUFFERED=1
ENTRYPOINT ["python", "-m"]
CMD ["agents.cli", "--help"]

FROM fedbus AS browser
USER root
RUN apt-get update && apt-get install -y --no-install-recommends chromium && rm -rf /var/lib/apt/lists/*
USER fedbus
