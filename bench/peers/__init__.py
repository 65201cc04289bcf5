"""The peers: servers that people use today for what chatstate does, each as its own users would run it."""

from __future__ import annotations

from bench.peers.fastapi_sqlalchemy import FastApiSqlAlchemy
from bench.peers.kinto import Kinto
from bench.peers.nestjs import NestPrisma
from bench.peers.pocketbase import PocketBase
from bench.systems import System

REPLACED: list[System] = [NestPrisma(processes=1), NestPrisma(processes=2)]
"""The service that chatstate replaces, as the seed describes it, with one process and with two."""

OTHERS: list[System] = [FastApiSqlAlchemy(), PocketBase(), Kinto()]
