# mineral-batch on a CPU:
#   docker build -t mineral-batch .
#   docker run --rm -v "$PWD/photos:/photos:ro" -v "$PWD/results:/results" mineral-batch predict /photos -o /results
FROM python:3.11-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY runtime runtime
COPY train train
COPY export export
COPY benchmarks benchmarks
RUN python -m venv /opt/mineral && /opt/mineral/bin/pip install --no-cache-dir -c constraints.txt '.[cpu,cloud,parquet]'

FROM python:3.11-slim
COPY --from=build /opt/mineral /opt/mineral
ENV PATH=/opt/mineral/bin:$PATH PYTHONUNBUFFERED=1
RUN useradd --create-home --uid 1000 mineral
USER 1000
WORKDIR /home/mineral
ENTRYPOINT ["mineral-batch"]
CMD ["--help"]
