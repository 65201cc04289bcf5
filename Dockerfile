# chatstate in a container. Without a key nobody can come in from outside, so the first start makes one and prints it once:
#
#     docker build -t chatstate .
#     docker run -d --name chatstate --stop-timeout 45 -p 127.0.0.1:3000:3000 -v chatstate:/var/lib/chatstate chatstate
#     docker logs chatstate
#
# The key stays in that log: rotate it once you have others. Commands work inside: docker exec chatstate chatstate keys list.
# Settings are environment variables (-e CHATSTATE_ALLOWED_ORIGINS=…, -e DATABASE_URL=…). With PostgreSQL: compose.yaml.

FROM python:3.11-slim AS build
WORKDIR /src
COPY requirements.txt pyproject.toml README.md LICENSE ./
COPY src src
RUN python -m venv /opt/chatstate \
    && /opt/chatstate/bin/pip install --no-cache-dir --require-hashes -r requirements.txt \
    && /opt/chatstate/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.11-slim
RUN groupadd --system --gid 10001 chatstate \
    && useradd --system --uid 10001 --gid 10001 --home-dir /var/lib/chatstate --shell /usr/sbin/nologin chatstate \
    && install -d -o chatstate -g chatstate -m 700 /var/lib/chatstate
COPY --from=build /opt/chatstate /opt/chatstate
ENV PATH=/opt/chatstate/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    CHATSTATE_HOST=0.0.0.0 \
    CHATSTATE_FIRST_KEY=true
USER 10001:10001
WORKDIR /var/lib/chatstate
VOLUME /var/lib/chatstate
EXPOSE 3000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "from os import environ as e; from urllib.request import urlopen; urlopen(f'http://127.0.0.1:{e.get(\"CHATSTATE_PORT\") or e.get(\"PORT\") or 3000}/readyz', timeout=4)"]
ENTRYPOINT ["chatstate"]
CMD ["serve"]
