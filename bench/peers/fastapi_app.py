"""The seed's four endpoints as a Python developer would write them: FastAPI, pydantic, SQLAlchemy's ORM with asyncpg.

Run as a script of its own with DATABASE_URL and PORT in the environment; the table has to be there.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

import uvicorn
from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import DateTime, String, Text, delete, func, make_url, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# The default, 5 connections that stay and 10 that are opened and closed on demand, spends its time on logging in to the
# database and made a quarter fewer saves; 20 and 32 were no better than 10.
engine = create_async_engine(
    make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+asyncpg"), pool_size=10, max_overflow=0
)
new_session = async_sessionmaker(engine, expire_on_commit=False)


class Base(DeclarativeBase):
    pass


class ChatStateSession(Base):
    __tablename__ = "chat_state_sessions"

    session_id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    user_session_id: Mapped[str] = mapped_column(String(255), unique=True)
    chat_state: Mapped[str] = mapped_column(Text)
    last_activity: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.now(), onupdate=lambda: datetime.now(UTC)
    )


class CreateChatStateSession(BaseModel):
    user_session_id: str = Field(min_length=1, max_length=255)
    chat_state: str
    last_activity: datetime | None = None


class UpdateChatStateSession(BaseModel):
    chat_state: str | None = None
    last_activity: datetime | None = None


class ChatState(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    chat_state: str
    last_activity: datetime


class ChatStateRecord(ChatState):
    session_id: UUID
    user_session_id: str
    created_at: datetime
    updated_at: datetime


class Message(BaseModel):
    message: str


async def database_session() -> AsyncIterator[AsyncSession]:
    async with new_session() as session:
        yield session


Database = Annotated[AsyncSession, Depends(database_session)]


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


@app.post("/chat-state-sessions", status_code=201, response_model=ChatStateRecord)
async def create_chat_state_session(body: CreateChatStateSession, database: Database) -> ChatStateSession:
    """The upsert of SQLAlchemy's documentation: INSERT … ON CONFLICT DO UPDATE that returns ORM objects."""
    now = datetime.now(UTC)
    statement = insert(ChatStateSession).values(
        user_session_id=body.user_session_id,
        chat_state=body.chat_state,
        last_activity=body.last_activity or now,
    )
    statement = statement.on_conflict_do_update(
        index_elements=[ChatStateSession.user_session_id],
        set_={
            "chat_state": statement.excluded.chat_state,
            "last_activity": statement.excluded.last_activity,
            "updated_at": now,
        },
    )
    saved = await database.scalars(statement.returning(ChatStateSession), execution_options={"populate_existing": True})
    session = saved.one()
    await database.commit()
    return session


@app.get("/chat-state-sessions/{user_session_id}", response_model=ChatState)
async def get_chat_state_session(user_session_id: str, database: Database) -> ChatStateSession:
    return await find(user_session_id, database)


@app.put("/chat-state-sessions/{user_session_id}", response_model=ChatStateRecord)
async def update_chat_state_session(
    user_session_id: str, body: UpdateChatStateSession, database: Database
) -> ChatStateSession:
    session = await find(user_session_id, database)
    if body.chat_state is not None:
        session.chat_state = body.chat_state
    session.last_activity = body.last_activity or datetime.now(UTC)
    await database.commit()
    return session


@app.delete("/chat-state-sessions/{user_session_id}")
async def delete_chat_state_session(user_session_id: str, database: Database) -> Message:
    deleted = await database.scalars(
        delete(ChatStateSession)
        .where(ChatStateSession.user_session_id == user_session_id)
        .returning(ChatStateSession.session_id)
    )
    if deleted.one_or_none() is None:
        raise HTTPException(404, "Session not found")
    await database.commit()
    return Message(message="Session deleted")


async def find(user_session_id: str, database: AsyncSession) -> ChatStateSession:
    statement = select(ChatStateSession).where(ChatStateSession.user_session_id == user_session_id)
    session = await database.scalar(statement)
    if session is None:
        raise HTTPException(404, "Session not found")
    return session


if __name__ == "__main__":
    # uvicorn takes uvloop and httptools where they are installed, as here.
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), access_log=False, log_level="warning")
